"""How much faster is a network that skips channels than the dense one in the fastest dense runtime?

    PYTHONPATH=. python benchmarks/dynamic.py --out records/2026-11-25-manidp/latency.jsonl
    PYTHONPATH=. python benchmarks/dynamic.py --cases resnet56 --weights resnet56-manidp-0.5.safetensors --out ...

Cases: ``layer WxS``, a 3x3 convolution of W channels on S x S pixels with half of its input and output channels on (the
difference between six such layers in a row and two, so that gates, lists and their calls are counted and the rest is
not); ``blocks WxS``, two basic blocks behind a 1x1 stem, half of the channels on; networks of the zoo, and ResNet-50 at
224 x 224, with gates everywhere, so many channels on that about 2.2 times fewer multiply-adds are left.  Channels are
chosen by fbs gates with random weights, other ones for every input; or by gates from a file of `prunus.save`, for test
images of CIFAR-10 (of the folder named by PRUNUS_SHARED).  Gates are counted.  Dense is the backbone without gates in
torch, ONNX Runtime, OpenVINO and the engine.  One thread, float32, batch 1 unless told, all in turns in one process,
medians of CPU time.  A line of JSON a case.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from benchmarks.runtime import in_turns
from prunus import zoo
from prunus.core.backends import backends
from prunus.core.inputs import Inputs
from prunus.data import load
from prunus.dynamic import by_lists, dynamic_, dynamic_of, gates, realised, skipping, static_
from prunus.export import to_onnx
from prunus.runtime import compile, profile
from prunus.zoo.resnet import BasicBlock

LAYERS, BLOCKS = ((64, 56), (128, 28), (256, 14)), ((64, 56), (128, 28))
HALF, RATE = 0.5, 0.58  # of the channels; the second saves about 55 % of the multiply-adds of basic blocks
FEW, MANY = 2, 6  # layers in a row


class Blocks(nn.Module):
    """A 1x1 stem and two basic blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.blocks = nn.Sequential(*(BasicBlock(width, width, 1, "A") for _ in range(2)))
        self.linear = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.blocks(self.stem(x))).mean((2, 3)))


class Layers(nn.Module):
    """A 1x1 stem and 3x3 convolutions in a row."""

    def __init__(self, width: int, many: int) -> None:
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, width, 1), nn.Linear(width, 10)
        one = [
            (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(many)
        ]
        self.layers = nn.Sequential(*(module for layer in one for module in layer))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layers(self.stem(x)).mean((2, 3)))


def main() -> None:
    """Measure, print, write a line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", help="of those above, all of them if none is named")
    parser.add_argument("--weights", type=Path, help="a file of prunus.save, of the only network named")
    parser.add_argument("--share", type=float, help="of the channels that are on")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--torch", action="store_true", help="torch's ways of skipping, too")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = cases()
    for name in asked.cases or found:
        size, share, makers = found[name]
        share = asked.share or share
        rows = []
        for make in makers:
            net = gated(make, size, share) if asked.weights is None else prunus.load(asked.weights, make)
            x = torch.randn(asked.batch, 3, size, size) if asked.weights is None else images(name, asked.batch)
            rows.append(measure(net.eval(), x, asked.seconds, asked.torch))
        row = rows[0] if len(rows) == 1 else difference(*rows)
        weights = asked.weights.name if asked.weights else ""
        row = {"case": name, "batch": asked.batch, "share": share, "weights": weights} | judged(row)
        print(json.dumps(row), flush=True)
        if asked.out:
            with open(asked.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def cases() -> dict[str, tuple[int, float, list[Callable[[], nn.Module]]]]:
    """The size of the picture, the share of channels that are on, and what makes the network, by the case's name."""
    found: dict[str, tuple[int, float, list[Callable[[], nn.Module]]]] = {}
    for w, s in LAYERS:
        found[f"layer {w}x{s}"] = (s, HALF, [lambda w=w, n=n: Layers(w, n) for n in (FEW, MANY)])  # type: ignore[misc]
    for w, s in BLOCKS:
        found[f"blocks {w}x{s}"] = (s, HALF, [lambda w=w: Blocks(w)])  # type: ignore[misc]
    for name in ("resnet20", "resnet56", "vgg16", "mobilenetv2"):
        found[name] = (32, RATE, [getattr(zoo, name)])
    found["resnet50"] = (224, RATE, [lambda: zoo.build("torchvision:resnet50").module])
    return found


def images(model: str, many: int) -> Tensor:
    """The first test images of CIFAR-10, as the network takes them."""
    shared = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
    origin = zoo.build(f"prunus:{model}", weights=shared / f"models/cifar10/{model}.safetensors")
    data = load(shared / "data/cifar10", preprocess=origin.preprocess, decide=0)
    return next(x for x, _ in data.test.batches(many, origin.preprocess))


def gated(make: Callable[[], nn.Module], size: int, share: float) -> nn.Module:
    """A network with norms that have seen data, and fbs gates of random weights, a share of the channels on."""
    torch.manual_seed(0)
    net = make()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        net.train()(torch.randn(8, 3, size, size))
    dynamic_(net.eval(), torch.randn(1, 3, size, size), "fbs")
    for gate in gates(net):
        nn.init.normal_(gate.predict.weight, std=0.1 / gate.inputs**0.5)  # type: ignore[union-attr, arg-type, operator]
        gate.count.fill_(max(1, round(share * gate.outputs)))  # type: ignore[union-attr, operator]
    return net


def measure(net: nn.Module, x: Tensor, seconds: float, by_torch: bool) -> dict[str, Any]:
    """Milliseconds of every way to run it, what is saved, errors, and where the engine's time goes."""
    backbone = copy.deepcopy(net)
    static_(backbone)
    said = realised(net, [x])
    ours = {"gates, engine": by_lists(net, x)}
    if by_torch:
        ours |= {"gates, torch": skipping(net, x), "masked, torch": net}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "dense.onnx"
        to_onnx(backbone, x, path, verify=False)
        whole = compile(backbone, x)
        calls: dict[str, Callable[[], Any]] = {"dense, torch": lambda: backbone(x), "dense, engine": lambda: whole(x)}
        for name in ("onnxruntime", "openvino"):
            calls[f"dense, {name}"] = backends[name].call(path, Inputs.of(x), 1)
        calls |= {key: (lambda m=model: m(x)) for key, model in ours.items()}
        ms = in_turns(calls, seconds, time.process_time)
        right = net(x)
        error = max(float((m(x) - right).abs().max() / right.abs().max()) for m in ours.values())
    kinds: dict[str, float] = {}
    for step in profile(ours["gates, engine"]):  # type: ignore[arg-type]
        kinds[step.kind] = kinds.get(step.kind, 0.0) + step.share
    return {
        "ms": ms,
        "saved": round(said.reduction, 4),
        "error": error,
        "engine": {kind: round(share, 3) for kind, share in kinds.items()},
        "method": type(dynamic_of(net).method).__name__,  # type: ignore[union-attr]
    }


def difference(few: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """One layer of those that the second row has more than the first."""
    ms = {k: (many["ms"][k] - few["ms"][k]) / (MANY - FEW) for k in few["ms"]}
    return many | {"ms": ms, "saved": 1 - HALF**2}


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """With the ratios to the fastest dense engine, and to torch."""
    ms = row["ms"]
    best = min(t for k, t in ms.items() if k.startswith("dense"))
    others = min(t for k, t in ms.items() if k in ("dense, onnxruntime", "dense, openvino"))
    ratios = {k: round(best / t, 3) for k, t in ms.items() if not k.startswith("dense")}
    return row | {
        "ms": {k: round(t, 4) for k, t in ms.items()},
        "to the fastest dense": ratios,
        "to the faster of the others": round(others / ms["gates, engine"], 3),
    }


if __name__ == "__main__":
    main()
