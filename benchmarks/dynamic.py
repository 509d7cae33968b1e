"""How much faster is a network that skips channels than the dense one in the fastest dense runtime?

    PYTHONPATH=. python benchmarks/dynamic.py --out records/2026-11-25-manidp/latency.jsonl
    PYTHONPATH=. python benchmarks/dynamic.py --networks resnet56 --weights resnet56-manidp-0.6.safetensors --out ...

Blocks are two basic blocks of ImageNet's size behind a 1x1 stem, half of their channels on, chosen by fbs gates with
random weights; networks are those of CIFAR, gated the same way, or from a file of `prunus.save`.  Gates, gathers and
scatters are counted.  Dense is the backbone without gates in torch, ONNX Runtime, OpenVINO and the engine.  One thread,
float32, all in turns in one process, medians of CPU time.  A line of JSON a case.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from benchmarks.runtime import in_turns, openvino
from prunus import zoo
from prunus.dynamic import by_lists, dynamic_, dynamic_of, gates, realised, skipping, static_
from prunus.dynamic.skip import report
from prunus.export import to_onnx
from prunus.export.onnxruntime import session
from prunus.runtime import compile
from prunus.zoo.resnet import BasicBlock

BLOCKS = ((64, 56), (128, 28))


class Blocks(nn.Module):
    """A 1x1 stem and two basic blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.blocks = nn.Sequential(*(BasicBlock(width, width, 1, "A") for _ in range(2)))
        self.linear = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.blocks(self.stem(x))).mean((2, 3)))


def main() -> None:
    """Measure, print, write a line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet20", "resnet56"])
    parser.add_argument("--weights", type=Path, help="a file of prunus.save, of the only network named")
    parser.add_argument("--share", type=float, default=0.5, help="of the channels that are on")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--blocks", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases: list[tuple[str, Callable[[], nn.Module], int]] = []
    if asked.blocks:
        cases += [(f"blocks {width}x{size}", lambda w=width: Blocks(w), size) for width, size in BLOCKS]
    cases += [(name, getattr(zoo, name), 32) for name in asked.networks]
    for name, make, size in cases:
        net = gated(make, size, asked.share) if asked.weights is None else prunus.load(asked.weights, make)
        for batch in asked.batches:
            row = measure(net.eval(), torch.randn(batch, 3, size, size), asked.seconds)
            row = {"case": name, "batch": batch, "share": asked.share, "weights": str(asked.weights or "")} | row
            print(json.dumps(row), flush=True)
            if asked.out:
                with open(asked.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def gated(make: Callable[[], nn.Module], size: int, share: float) -> nn.Module:
    """A network with fbs gates of random weights, a share of the channels on."""
    torch.manual_seed(0)
    net = make().eval()
    dynamic_(net, torch.randn(1, 3, size, size), "fbs")
    for gate in gates(net):
        nn.init.normal_(gate.predict.weight, std=0.1 / gate.inputs**0.5)  # type: ignore[union-attr, arg-type, operator]
        gate.count.fill_(round(share * gate.outputs))  # type: ignore[union-attr, operator]
    return net


def measure(net: nn.Module, x: Tensor, seconds: float) -> dict[str, Any]:
    """Milliseconds of every way to run it, the ratios to the fastest dense one, and the errors."""
    import copy

    backbone = copy.deepcopy(net)
    static_(backbone)
    said = realised(net, [x])
    ours = {"torch, skipping": skipping(net, x), "torch, always skipping": skipping(net, x, dense="never")}
    ours |= {"engine, lists": by_lists(net, x)}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "dense.onnx"
        to_onnx(backbone, x, path, verify=False)
        runner, feed = session(path, threads=1), x.numpy()
        name, whole = runner.get_inputs()[0].name, compile(backbone, x)
        calls: dict[str, Callable[[], Any]] = {
            "dense, torch": lambda: backbone(x),
            "dense, onnxruntime": lambda: runner.run(None, {name: feed}),
            "dense, openvino": openvino(path, feed, 1),
            "dense, engine": lambda: whole(x),
            "torch, masked": lambda: net(x),
        }
        calls |= {key: (lambda m=model: m(x)) for key, model in ours.items()}
        ms = in_turns(calls, seconds, time.process_time)
        right = net(x)
        errors = {k: float((m(x) - right).abs().max() / right.abs().max()) for k, m in ours.items()}
    best = min(t for k, t in ms.items() if k.startswith("dense"))
    return {
        "ms": {k: round(t, 4) for k, t in ms.items()},
        "to the fastest dense": {k: round(best / ms[k], 3) for k in ours},
        "to dense torch": {k: round(ms["dense, torch"] / ms[k], 3) for k in ours},
        "saved": round(said.reduction, 4),
        "errors": errors,
        "said": report(ours["torch, skipping"]),
        "method": type(dynamic_of(net).method).__name__,  # type: ignore[union-attr]
    }


if __name__ == "__main__":
    main()
