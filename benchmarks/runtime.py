"""How much faster is a network with zeros, in prunus's engine, than dense in the faster of ONNX Runtime and OpenVINO?

    python benchmarks/runtime.py --models torchvision:resnet50 prunus:resnet56 prunus:vgg16 --out runtime.json

Batch 1, float32, all in turns in one process, medians; milliseconds of processor time where there is one thread, as a
busy machine interrupts long calls more than short ones.  Zeros are drawn at random, or chosen by magnitude
over the whole network (layers are then unequally sparse).  Weights are random: the time does not depend on them.
The largest difference from ONNX Runtime's outputs, what runs where, and the seconds of compiling are reported.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.export import to_onnx
from prunus.export.onnxruntime import session
from prunus.runtime import compile
from prunus.zoo import build

TURN = 0.03  # seconds that one engine runs before the next one has its turn
LEAST = 5  # turns of every engine
SIZES = {"torchvision": 224, "timm": 224, "prunus": 32}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["torchvision:resnet50", "prunus:resnet56", "prunus:vgg16"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--masks", nargs="+", default=["random", "magnitude"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for every network in every engine")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def with_zeros(name: str, sparsity: float, masks: str, example: Tensor) -> nn.Module:
    """A network of that name in which this fraction of the weights of layers is zero."""
    torch.manual_seed(0)
    model = build(name).module.eval()
    if masks == "magnitude":
        groups = prunus.tensors(model)
        scores = prunus.score(groups, "l1")
        prunus.mask_(model, groups, prunus.allocate(groups, scores, prunus.Budget(density=1 - sparsity)))
    else:
        for p in model.parameters():
            if p.dim() > 1:
                p.data[torch.rand_like(p) < sparsity] = 0
    return model


def openvino(path: Path, x: Any, threads: int) -> Callable[[], Any]:
    """OpenVINO on the CPU, float32."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda: request.infer([x])


def in_turns(calls: dict[str, Callable[[], Any]], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """The median milliseconds of a call, each engine having turns of at least `TURN` seconds, warm."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(LEAST, int(seconds / TURN))):
        for name, call in calls.items():
            call()
            start, runs = clock(), 0
            while clock() - start < TURN:
                call()
                runs += 1
            found[name].append(1e3 * (clock() - start) / runs)
    return {name: median(turns) for name, turns in found.items()}


def measure(model: nn.Module, example: Tensor, threads: int, seconds: float) -> dict[str, Any]:
    """Milliseconds in every engine, the ratio to the faster of the others, the error, what runs where."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(model, example, path, verify=False)
        runner, x = session(path, threads=threads), example.numpy()
        ours = {"openvino": openvino(path, x, threads)}
    feed = {runner.get_inputs()[0].name: x}
    start = time.perf_counter()
    compiled = compile(model, example, threads=threads)
    compiling = time.perf_counter() - start
    calls = {"onnxruntime": lambda: runner.run(None, feed), **ours, "prunus": lambda: compiled(example)}
    times = in_turns(calls, seconds, time.process_time if threads == 1 else time.perf_counter)
    want = torch.from_numpy(runner.run(None, feed)[0])
    return {
        "ms": times,
        "ratio": min(times["onnxruntime"], times["openvino"]) / times["prunus"],
        "error": float((compiled(example) - want).abs().max() / want.abs().max()),
        "operations": {kind: len(names) for kind, names in compiled.report().items()},
        "by_torch": compiled.report().get("torch", []),
        "compile_seconds": compiling,
        "activation_bytes": compiled.size,
        "weight_bytes": compiled.weights,
    }


def main() -> None:
    """Measure, print a line each, write JSON."""
    args, rows = parse(), []
    for name in args.models:
        size = SIZES[name.split(":")[0]]
        example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        for masks in args.masks:
            for sparsity in args.sparsities:
                row = measure(with_zeros(name, sparsity, masks, example), example, args.threads, args.seconds)
                rows.append({"model": name, "masks": masks, "sparsity": sparsity, "threads": args.threads, **row})
                ms = "  ".join(f"{k} {v:.3g} ms" for k, v in row["ms"].items())
                print(f"{name} {masks} {sparsity}: {row['ratio']:.2f} x  ({ms}, error {row['error']:.0e})", flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
