"""Weights and a plan, carried out on a freshly built original."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus.surgery import files
from tests.security.fuzz import Format
from tests.security.mutate import DEEPEST
from tests.security.tensorfile import changed, edited


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.norm(self.a(x)).relu())


class Net(nn.Module):
    """Something of everything that a plan can say: groups, an integer of its own, a norm, blocks, an added bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.first, self.second = Block(), Block()
        self.mix, self.width = nn.Conv2d(8, 8, 3, groups=8, bias=False), 8
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(self.norm(self.stem(x)).relu()))
        return self.head(self.mix(x).view(x.shape[0], self.width, -1).mean(2))


def cut(dropped: bool) -> nn.Module:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(1, 3, 10, 10)
    if dropped:
        prunus.drop_blocks_(net, x, data=[x], n=1)
    prunus.prune_(net, x, budget=prunus.Budget(params=0.6), criterion="random", absorb=True)
    return net


def write(folder: Path) -> list[Path]:
    paths = [folder / "plain.safetensors", folder / "dropped.safetensors"]
    for path in paths:
        if not path.exists():
            prunus.save(cut(path.stem == "dropped"), path)
    return paths


def change(rng: random.Random, source: Path) -> bytes:
    texts = ("stem", "first.a", "second", "width", "groups", "stride[0]", "padding_mode", "num_features", "head.weight")
    prefer = rng.choice(("edits", "added", "dropped", "tensors", "ties"))
    return changed(rng, source, files.KEY, texts, (prefer,))


def read(path: Path) -> Net:
    """Load onto a fresh original; where it is refused, that is as it was."""
    prunus.read_plan(path)
    net = Net().eval()
    before = {k: dict(vars(m)) for k, m in net.named_modules()}
    shapes = {k: v.shape for k, v in net.state_dict().items()}
    try:
        prunus.load_(net, path)
    except prunus.PrunusError:
        assert {k: dict(vars(m)) for k, m in net.named_modules()} == before
        assert {k: v.shape for k, v in net.state_dict().items()} == shapes
        raise
    return net


def edit(module: Any, attribute: Any, old: Any, new: Any) -> Any:
    entry = {"module": module, "attribute": attribute, "old": old, "new": new}
    return edited(lambda plan: plan["edits"].append(entry), files.KEY)


def add(**entry: Any) -> Any:
    return edited(lambda plan: plan["added"].append(entry), files.KEY)


CORPUS = {
    "an absent attribute": edit("stem", "nothing", None, 1),
    "a hook": edit("stem", "_forward_hooks", None, {"1": 1}),
    "a mode": edit("stem", "padding_mode", "zeros", "circular"),
    "a class constant": edit("stem", "__constants__[0]", "stride", "x"),
    "a bool": edit("stem", "training", False, True),
    "out of the model": edit("", "forward.__globals__", None, 1),
    "a method": edit("", "forward", None, 1),
    "stride zero": edit("mix", "stride[0]", 1, 0),
    "a bias of 10^10": add(name="stem.bias", kind="bias", shape=[10**10], dtype="float32"),
    "a bias of another width": add(name="stem.bias", kind="bias", shape=[9], dtype="float32"),
    "a selection of 10^10": add(name="norm.select", kind="select", shape=[10**10], dtype="int64"),
    "a bias of a class": add(name="stem.bias", kind="bias", shape=[8], dtype="Tensor"),
    "an added forward": add(name="stem.forward", kind="bias", shape=[8], dtype="float32"),
    "a tuple of 10^9": edited(
        lambda plan: plan.__setitem__("dropped", [{"module": "first", "given": "", "length": 10**9}]), files.KEY
    ),
    "the whole is dropped": edited(
        lambda plan: plan.__setitem__("dropped", [{"module": "", "given": "", "length": 0}]), files.KEY
    ),
    "deep": edited(lambda plan: plan.__setitem__("inputs", DEEPEST), files.KEY),
    "a mask of 10^18": edited(
        lambda plan: plan.__setitem__("masks", {"stem.weight": {"shape": [10**9, 10**9], "bits": "oA=="}}), files.KEY
    ),
}


FORMAT = Format("state", write, change, read, CORPUS, lambda net: net(torch.randn(1, 3, 10, 10)))
