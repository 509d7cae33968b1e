"""What do masks in blocks of output channels gain: 2x1 and 4x1 beside single weights, by the engine's own kernels.

    python benchmarks/runtime_blocks.py --out blocks.jsonl
    python benchmarks/runtime_blocks.py --out blocks.jsonl --table

Single layers with a rectifier, batch 1, one thread, milliseconds of the processor, medians in turns in one process.  Of
the engine the layer's kernel alone counts, as it stands between others in a network, of ONNX Runtime and OpenVINO the
whole call (dense).  `together` is how many output channels share a list of weights, as the engine chose.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runtime import OTHERS, in_turns
from torch import Tensor, nn

import prunus
from prunus.core import Inputs
from prunus.core.backends import backends
from prunus.export import to_onnx
from prunus.runtime import CompiledNetwork, compile
from prunus.runtime.memory import SIGNATURE

LAYERS = {  # input and output channels, window, picture
    "3x3 64@56": (64, 64, 3, 56),
    "3x3 256@14": (256, 256, 3, 14),
    "3x3 512@7": (512, 512, 3, 7),
    "1x1 1024>256@14": (1024, 256, 1, 14),
}
GRAINS: dict[str, Any] = {"1x1": "element", "2x1": (2, 1), "4x1": (4, 1)}


def layer(name: str) -> tuple[nn.Module, Tensor]:
    """A layer, and an input of it."""
    torch.manual_seed(0)
    inputs, outputs, window, size = LAYERS[name]
    net = nn.Sequential(nn.Conv2d(inputs, outputs, window, padding=window // 2), nn.ReLU())
    return net.eval(), torch.randn(1, inputs, size, size)


def masked(name: str, grain: str, sparsity: float) -> tuple[nn.Module, Tensor]:
    """The layer with this fraction of its weights zero, in blocks."""
    net, x = layer(name)
    groups = prunus.tensors(net, GRAINS[grain])
    prunus.mask_(net, groups, prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=1 - sparsity)))
    return net, x


def kernels(network: CompiledNetwork) -> Callable[[], None]:
    """The network's kernels but for those that move pictures between layouts."""
    (segment,) = network.segments
    assert isinstance(segment, np.ndarray)
    table, count = segment.view(np.int64)[:2].tolist()
    pairs = np.ctypeslib.as_array((ctypes.c_int64 * (2 * count)).from_address(table)).reshape(count, 2).tolist()
    calls = [
        (SIGNATURE(kernel), arguments)
        for (kernel, arguments), step in zip(pairs, network.steps, strict=True)
        if step.kind != "layout"
    ]

    def run(held: CompiledNetwork = network) -> None:  # whose memory the kernels run on
        for call, arguments in calls:
            call(arguments, 0, 1)

    return run


def measure(name: str, sparsity: float, seconds: float) -> dict[str, Any]:
    """Milliseconds of every mask, and of the dense layer elsewhere."""
    calls: dict[str, Callable[[], Any]] = {}
    how = {}
    net, x = layer(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        to_onnx(net, x, path, verify=False)
        for other in OTHERS:
            calls[other] = backends[other].call(path, Inputs.of(x), 1)
    for grain in GRAINS:
        net, x = masked(name, grain, sparsity)
        network = compile(net, x)
        with torch.no_grad():
            assert torch.allclose(network(x), net(x), atol=1e-4)
        calls[grain] = kernels(network)
        how[grain] = next(n.numbers["choice"] for n in network.graph.nodes.values() if n.kind == "conv")
    ms = in_turns(calls, seconds, time.process_time)
    flops = 2 * x.shape[2] * x.shape[3] * net[0].weight.numel() * (1 - sparsity)
    return {
        "ms": ms,
        "faster": {grain: min(ms[o] for o in OTHERS) / ms[grain] for grain in GRAINS},
        "gflops": {grain: flops / ms[grain] / 1e6 for grain in GRAINS},
        "choice": how,
    }


def table(done: list[dict[str, Any]]) -> None:
    """A row a layer and sparsity."""
    print(
        "| layer | zeros | ONNX Runtime | OpenVINO | 1x1 | 2x1 | 4x1 | times faster | GFLOP/s of nonzeros | together |"
    )
    print("|---" * 10 + "|")
    for d in done:
        ms = " | ".join(f"{d['ms'][k]:.3g}" for k in (*OTHERS, *GRAINS))
        each = (" / ".join(format(d[k][g], f) for g in GRAINS) for k, f in (("faster", ".2f"), ("gflops", ".0f")))
        together = " / ".join(f"{d['choice'][g][3]} {d['choice'][g][5]}" for g in GRAINS)
        print(f"| {d['layer']} | {100 * d['sparsity']:.0f} % | {ms} | {' | '.join(each)} | {together} |")


def main() -> None:
    """Measure what is not yet in the file; print and write a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--table", action="store_true", help="print what is in --out, and do nothing else")
    args = parser.parse_args()
    done = [json.loads(text) for text in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        table(done)
        return
    tried = {(d["layer"], d["sparsity"]) for d in done}
    for name in LAYERS:
        for sparsity in args.sparsities:
            if (name, sparsity) not in tried:
                row = {"layer": name, "sparsity": sparsity, **measure(name, sparsity, args.seconds)}
                table([row])
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
