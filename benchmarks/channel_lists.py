"""How much faster is a convolution with a part of its channels active, than dense in the faster of two runtimes?

    PYTHONPATH=. python benchmarks/channel_lists.py --out channel_lists.json

One layer a line, batch 1, float32, one thread, all in turns in one process, medians.  The whole call is measured: lists
are read, active channels are brought into the kernel's layout, and outputs back, zero where a channel is not active.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.runtime import in_turns, openvino
from prunus.export import to_onnx
from prunus.export.onnxruntime import session
from prunus.runtime import DynamicConv2d, compile

LAYERS = [(64, 64, 56, 3), (128, 128, 28, 3), (256, 256, 14, 3), (512, 512, 7, 3), (256, 64, 56, 1), (1024, 256, 14, 1)]
LAYERS += [(16, 16, 32, 3), (64, 64, 8, 3)]


def measure(c_in: int, c_out: int, size: int, k: int, fractions: list[float], seconds: float) -> dict[str, Any]:
    """Milliseconds of a layer in the other runtimes, compiled, and by lists; ratios to the faster of the others."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(c_in, c_out, k, padding=k // 2).eval(), torch.randn(1, c_in, size, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        to_onnx(conv, x, path, verify=False)
        runner, vino = session(path, threads=1), openvino(path, x.numpy(), 1)
    feed = {runner.get_inputs()[0].name: x.numpy()}
    run, whole = DynamicConv2d(conv, x), compile(conv, x)
    calls = {"onnxruntime": lambda: runner.run(None, feed), "openvino": vino, "compiled, dense": lambda: whole(x)}
    for f in fractions:
        lists = [torch.randperm(c)[: int(f * c)].sort().values for c in (c_in, c_out)]
        calls[f"lists {f:g}"] = partial(run, x, *lists)
    ms = in_turns(calls, seconds, time.process_time)
    best = min(ms["onnxruntime"], ms["openvino"])
    ratios = {name: best / t for name, t in ms.items() if name not in ("onnxruntime", "openvino")}
    return {"layer": [c_in, c_out, size, k], "ms": ms, "best": best, "ratio": ratios}


def main() -> None:
    """Measure, print a line each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--out", type=Path)
    args, rows = parser.parse_args(), []
    for layer in LAYERS:
        row = measure(*layer, args.fractions, args.seconds)
        rows.append(row)
        ratios = {name: round(ratio, 2) for name, ratio in row["ratio"].items()}
        print(row["layer"], f"best {row['best']:.3f} ms", ratios, flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
