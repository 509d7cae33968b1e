"""Rewritten networks: a list of operators as JSON, and tensors."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus.surgery import files
from tests.security.fuzz import Format
from tests.security.mutate import DEEPEST
from tests.security.tensorfile import changed, edited
from tests.surgery.rewriting import Attention, Fixed, Recurrent, whole

EXAMPLES = {
    "fixed": (Fixed, (2, 3, 6, 6)),
    "gru": (lambda: Recurrent(nn.GRU), (1, 4, 5)),
    "attention": (Attention, (1, 4, 5)),
}


def write(folder: Path) -> list[Path]:
    out = []
    for name, (make, shape) in EXAMPLES.items():
        path = folder / f"{name}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            prunus.save(whole(make().eval(), torch.randn(shape)).eval(), path)
        out.append(path)
    return out


@cache
def operators() -> tuple[str, ...]:
    """Every overload of every operator of ATen: most must be refused, the rest must be safe."""
    names = torch._C._dispatch_get_all_op_names()
    aten = [name.removeprefix("aten::") for name in names if name.startswith("aten::")]
    return tuple(f"aten.{n}" if "." in n else f"aten.{n}.default" for n in sorted(aten))


def change(rng: random.Random, source: Path) -> bytes:
    return changed(rng, source, files.GRAPH, (*operators(), "float32", "float16", "int64"), ("steps",))


def use(model: Any) -> None:
    torch.manual_seed(0)
    shape = [n.at(2) if hasattr(n, "at") else n for n in model.program.eval.given[0].shape]
    model(torch.randn(shape))


def step(name: str, args: list[Any], kwargs: Any = None, at: int = 0, out: bool = True) -> Any:
    """A change that puts one more step into the list, of which the network returns the result."""

    def apply(data: Any) -> None:
        graph = data["program"]["eval"]
        numbers = [n for s in graph["steps"] for n in s[3] if n is not None]
        number = max([*numbers, *map(int, graph["state"]), *(g[0] for g in graph["given"])]) + 1
        graph["steps"].append([f"aten.{name}", args, kwargs or {}, [number]])
        graph["outputs"] = {"tensor": number}

    return edited(apply, files.GRAPH)


X = {"tensor": 0}  # the input
CORPUS = {
    "reads beyond its storage": step("_reshape_alias.default", [X, [4096], [1]]),
    "as_strided": step("as_strided.default", [X, [4096], [1], 0]),
    "csr": step("_convert_indices_from_coo_to_csr.default", [X, 100]),
    "coo": step("_convert_indices_from_csr_to_coo.default", [X, X]),
    "segment_reduce": step("segment_reduce.default", [X, "sum"], {"unsafe": True}),
    "resize": step("resize_.default", [X, [1 << 20]]),
    "zeros": step("zeros.default", [[1 << 40]]),
    "overflow": step("zeros.default", [[1 << 32, 1 << 32]]),
    "wide": edited(lambda data: data.__setitem__("program", [[]] * 10**6), files.GRAPH),
    "deep": edited(lambda data: data["program"]["eval"].__setitem__("outputs", DEEPEST), files.GRAPH),
}
FORMAT = Format("rewritten", write, change, prunus.load, CORPUS, use)
