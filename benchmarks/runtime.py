"""How much faster is a network with zeros, in prunus's engine, than dense in the faster of ONNX Runtime and OpenVINO?

    python benchmarks/runtime.py --models torchvision:resnet50 prunus:resnet56 prunus:vgg16 --out runtime.jsonl

Batch 1, float32, all in turns in one process, medians; milliseconds of processor time where there is one thread, as a
busy machine interrupts long calls more than short ones.  --masks: zeros drawn at random; chosen by magnitude over the
whole network (layers are then unequally sparse); drawn in the 1x1 convolutions alone (pointwise); or among the
coefficients of filters in a basis, as many as random has among weights (interspace); or none, but channels removed, by
multiples of 8, until so much fewer multiply-adds are left (channels).  Weights are random: the time does not depend on
them.  The engine's layers are tuned by the clock.  Real zeros, of a training or a one-shot method: --files MODEL=FILE,
as `prunus.save` wrote it.  The largest difference from ONNX Runtime's outputs, what runs where, torch's share of the
time, and the seconds of compiling and tuning (of the processor) are reported.  --out goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.bases import fold_, interspaced
from prunus.core import Inputs
from prunus.core.backends import backends
from prunus.export import to_onnx
from prunus.runtime import compile
from prunus.runtime.profile import by_torch
from prunus.zoo import build

TURN = 0.03  # seconds that one engine runs before the next one has its turn
LEAST = 5  # turns of every engine
SIZES = {"torchvision": 224, "timm": 224, "prunus": 32}
OTHERS = ("onnxruntime", "openvino")
MASKS = ("random", "magnitude", "pointwise", "interspace", "channels")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["torchvision:resnet50", "prunus:resnet56", "prunus:vgg16"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--masks", nargs="*", default=["random", "magnitude"], choices=MASKS)
    parser.add_argument("--files", nargs="*", default=[], metavar="MODEL=FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for every network in every engine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true", help="print what is in --out, and do nothing else")
    return parser.parse_args()


def with_zeros(name: str, sparsity: float, masks: str) -> nn.Module:
    """A network of that name in which this fraction of the weights of layers is zero."""
    torch.manual_seed(0)
    model = build(name).module.eval()
    if masks == "magnitude":
        groups = prunus.tensors(model)
        scores = prunus.score(groups, "l1")
        prunus.mask_(model, groups, prunus.allocate(groups, scores, prunus.Budget(density=1 - sparsity)))
        return model
    if masks == "channels":
        example = torch.randn(1, 3, *[SIZES[name.split(":")[0]]] * 2)
        budget = prunus.Budget(macs=1 - sparsity)
        return prunus.prune_(model, example, allocator="uniform", budget=budget, round_to=8).model
    if masks == "interspace":
        prunus.interspace_(model)
        for *_, basis in interspaced(model):
            basis.vectors.data = torch.linalg.qr(torch.randn(basis.vectors.shape))[0]
    for name, p in model.named_parameters():
        if p.dim() > 1 and not name.endswith("vectors") and (masks != "pointwise" or p.shape[2:] == (1, 1)):
            p.data[torch.rand_like(p) < sparsity] = 0
    return model


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
        plain = copy.deepcopy(model)
        if any(interspaced(plain)):
            fold_(plain)  # the others see filters, which are dense
        to_onnx(plain, example, path, verify=False)
        calls = {name: backends[name].call(path, Inputs.of(example), threads) for name in OTHERS}
    want = torch.from_numpy(calls["onnxruntime"]()[0])
    start = time.process_time()  # of all threads: beside other work a clock on the wall says little
    compile(model, example, threads=threads)
    compiling = time.process_time() - start
    tuned = compile(model, example, threads=threads, tune=True)
    tuning = time.process_time() - start - compiling
    calls["prunus"] = lambda: tuned(example)
    times = in_turns(calls, seconds, time.process_time if threads == 1 else time.perf_counter)
    return {
        "ms": times,
        "ratio": min(times[name] for name in OTHERS) / times["prunus"],
        "error": float((tuned(example) - want).abs().max() / want.abs().max()),
        "operations": {kind: len(names) for kind, names in tuned.report().items()},
        "by_torch": by_torch(tuned),
        "compile_seconds": compiling,
        "tune_seconds": tuning,
        "activation_bytes": tuned.size,
        "weight_bytes": tuned.weights,
    }


def rows(args: argparse.Namespace) -> Iterator[tuple[str, str, float, Callable[[], nn.Module]]]:
    """Model, masks, sparsity, and how the network is made."""
    for name in args.models:
        for masks in args.masks:
            for sparsity in args.sparsities:
                yield name, masks, sparsity, partial(with_zeros, name, sparsity, masks)
    for name, _, path in (text.partition("=") for text in args.files):
        model = prunus.load(path, build(name).factory).eval()
        weights = [g.slices[0].tensor for g in prunus.tensors(model)]
        zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        yield name, Path(path).stem, round(zeros, 3), partial(lambda model: model, model)


def table(done: list[dict[str, Any]]) -> None:
    """What was measured, a row a network."""
    print("| network | zeros | of weights | threads | ONNX Runtime | OpenVINO | prunus | times faster ", end="")
    print("| compile, s | tune, s |")
    print("|---" * 10 + "|")
    for d in sorted(done, key=lambda d: (d["threads"], d["model"], d["masks"], d["sparsity"])):
        ms = " | ".join(f"{d['ms'][name]:.3g}" for name in (*OTHERS, "prunus"))
        name = d["model"].partition(":")[2]
        rest = f"{d['threads']} | {ms} | {d['ratio']:.2f} | {d['compile_seconds']:.1f} | {d['tune_seconds']:.1f}"
        print(f"| {name} | {d['masks']} | {100 * d['sparsity']:.0f} % | {rest} |")
    for said in sorted({f"{d['model']}: {d['by_torch']}" for d in done if d["by_torch"]}):
        print(said)


def main() -> None:
    """Measure what is not yet in the file, print and write a line each."""
    args = parse()
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    if args.table:
        table(done)
        return
    tried = {(d["model"], d["masks"], d["sparsity"], d["threads"]) for d in done}
    for name, masks, sparsity, make in rows(args):
        if (name, masks, sparsity, args.threads) in tried:
            continue
        size = SIZES[name.split(":")[0]]
        example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        row = measure(make(), example, args.threads, args.seconds)
        ms = "  ".join(f"{k} {v:.3g} ms" for k, v in row["ms"].items())
        print(f"{name} {masks} {sparsity}: {row['ratio']:.2f} x  ({ms}, error {row['error']:.0e})", flush=True)
        if args.out:
            with args.out.open("a") as file:
                row = {"model": name, "masks": masks, "sparsity": sparsity, "threads": args.threads, **row}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
