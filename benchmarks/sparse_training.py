"""Sparse training, plain and in the interspace: every method by one schedule, on real pictures.

    python benchmarks/sparse_training.py --out trials.jsonl                     # goes on where it stopped
    python benchmarks/sparse_training.py --out trials.jsonl --table
    python benchmarks/sparse_training.py --out trials.jsonl --plot trials.png

Trains ResNet-20 on the first --images of CIFAR-10's training part (drawn evenly over the classes) and writes a line of
JSON a trial: accuracy on all 10,000 test images, which nothing looks at before, and the density that came out.  A trial
is (method, basis, density, seed); all are trained by the same schedule, batch and augmentation.  "magnitude" masks the
dense network of its seed and basis, and trains it by the whole schedule once more (learning-rate rewinding): twice the
training of the others.  Needs the folder named by PRUNUS_SHARED (default ../shared).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunus
from prunus.data import load
from prunus.masks import FAMOUS, choose, collapse, mask_, methods
from prunus.train import evaluate, fit
from prunus.zoo import build

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
GRID = ["dense", "random", "snip", "synflow", "rigl", "gmp", "magnitude"]
SETTINGS = ("model", "images", "epochs", "batch", "lr", "precision")  # the same for all trials of a table


def main() -> None:
    """Every trial that is not yet in the file; or the table, or the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=GRID, help="dense, a name in FAMOUS or of a sparse training")
    parser.add_argument("--bases", nargs="+", default=["none", "fine"], choices=["none", "fine", "medium", "coarse"])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--precision", default="bf16-mixed", choices=["32", "bf16-mixed"])
    parser.add_argument("--dense", type=Path, help="where dense networks are kept (default: beside --out)")
    parser.add_argument("--table", action="store_true", help="print what was written, and do nothing else")
    parser.add_argument("--plot", type=Path, help="draw what was written, and do nothing else")
    args = parser.parse_args()
    if args.table or args.plot:
        trials = read(args.out)
        print(table(trials)) if args.table else draw(trials, args.plot)
        return
    preprocess = build(f"prunus:{args.model}").preprocess
    data = load(str(SHARED / "data/cifar10"), preprocess=preprocess, seed=0, decide=0, limit=args.images)
    whole = load(str(SHARED / "data/cifar10"), preprocess=preprocess, seed=0, decide=0).test
    common = {name: getattr(args, name) for name in SETTINGS}
    done = {key(trial) for trial in read(args.out)}
    for seed, density, method, basis in itertools.product(args.seeds, args.densities, args.methods, args.bases):
        asked = {"method": method, "basis": basis, "density": 1.0 if method == "dense" else density, "seed": seed}
        if key(asked | common) not in done:
            trial = asked | common | attempt(asked, args, data, whole)
            done.add(key(trial))
            print(json.dumps(trial), flush=True)
            with args.out.open("a") as file:
                file.write(json.dumps(trial) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The trials that are written."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(trial: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a trial another one."""
    return tuple(trial[name] for name in ("method", "basis", "density", "seed", *SETTINGS))


def attempt(asked: dict[str, Any], args: argparse.Namespace, data: Any, test: Any) -> dict[str, Any]:
    """Train one network: its accuracy, what is left of it, and what it took."""
    start, clock = time.perf_counter(), time.process_time()
    method, basis, density, seed = asked["method"], asked["basis"], asked["density"], asked["seed"]
    model = build(f"prunus:{args.model}", seed=seed)
    net, preprocess = model.module, model.preprocess
    if basis != "none":
        prunus.interspace_(net, sharing=basis)
    groups = prunus.tensors(net)
    found, sparse, options = None, None, dict(FAMOUS.get(method, {}))
    dense = (args.dense or args.out.parent) / ("dense-" + "-".join(str(getattr(args, n)) for n in SETTINGS))
    dense = dense.with_name(f"{dense.name}-{basis}-{seed}.safetensors")
    if method == "magnitude":
        net.load_state_dict(load_file(dense))
    if options:
        criterion = options.pop("criterion")
        batches = data.train.batches(128, preprocess, seed=seed, train=True, augment="none")
        seen = [batch for batch, _ in zip(batches, range(2))]
        settings = options | {"density": density, "seed": seed}
        plan = choose(net, groups, criterion, **settings, data=seen).plan
        found = collapse(net, groups, plan, [seen[0][0][:1]])
        mask_(net, groups, plan)
    elif method != "dense":
        assert method in methods, f"no method '{method}'"
        sparse = {"method": method, "density": density, "groups": groups}
    scored = time.perf_counter() - start
    schedule = {"name": "cosine", "warmup": 0.5}
    settings = {"epochs": args.epochs, "lr": args.lr, "batch": args.batch, "precision": args.precision}
    history = fit(net, data, preprocess=preprocess, **settings, schedule=schedule, sparse=sparse, seed=seed, quiet=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16-mixed"):
        accuracy = evaluate(net, test, preprocess, progress=False)
    if method == "dense":
        own = {name: t.clone(memory_format=torch.contiguous_format) for name, t in net.state_dict().items()}
        save_file(own, dense)  # a basis may be shared
    return {
        "accuracy": accuracy,
        "left": left(net, groups),
        "thinnest": min((left(net, [g]), g.id) for g in groups),
        "loss": round(history.rows[-1].loss, 4),
        "collapse": str(found) if found else "",
        "seconds": round(time.perf_counter() - start, 1),
        "seconds_scoring": round(scored, 1),
        "cpu_seconds": round(time.process_time() - clock, 1),
        "threads": torch.get_num_threads(),
    }


def left(net: nn.Module, groups: Any) -> float:
    """Nonzero weights, or coefficients, over all of them."""
    tensors = [g.slices[0].tensor.detach() for g in groups]
    return sum(int(t.count_nonzero()) for t in tensors) / sum(t.numel() for t in tensors)


def accuracies(trials: list[dict[str, Any]]) -> dict[tuple[str, str, float], dict[int, float]]:
    """Accuracies in percent by seed, by method, basis and density."""
    found: dict[tuple[str, str, float], dict[int, float]] = {}
    for t in sorted(trials, key=lambda t: t["seed"]):
        found.setdefault((t["method"], t["basis"], t["density"]), {})[t["seed"]] = 100 * t["accuracy"]
    return found


def table(trials: list[dict[str, Any]]) -> str:
    """A row a method: the mean over the seeds and each of them, plain and in every basis, with what that gains."""
    found = accuracies(trials)
    bases = [b for b in ("none", "fine", "medium", "coarse") if any(b == basis for _, basis, _ in found)]
    densities = sorted({d for m, _, d in found if m != "dense"}, reverse=True)
    heads, rows, gains = [], {name: [] for name in names_of(found)}, dict[tuple[str, float], list[float]]()
    for d, b in itertools.product(densities, bases):
        heads += [f"{d:g} plain"] if b == "none" else [f"{d:g} {b}", "gain"]
        for name, cells in rows.items():
            mine, plain = (found.get((name, basis, 1.0 if name == "dense" else d), {}) for basis in (b, "none"))
            cells.append(cell(mine))
            if b != "none":
                both = [mine[seed] - plain[seed] for seed in mine if seed in plain]
                cells.append(f"{statistics.mean(both):+.1f}" if both else "")
                if name != "dense":
                    gains.setdefault((b, d), []).extend(both)
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    for (b, d), g in gains.items():
        won = sum(x > 0 for x in g)
        lines.append(f"\n{b} at {d:g}: {statistics.mean(g):+.2f} points over plain, better in {won} of {len(g)} pairs.")
    return "\n".join(lines)


def names_of(found: Iterable[tuple[str, str, float]]) -> list[str]:
    """The methods that were tried, those of the grid first."""
    tried = [name for name, *_ in found]
    return [name for name in dict.fromkeys((*GRID, *tried)) if name in tried]


def cell(values: dict[int, float]) -> str:
    """The mean over the seeds, and what it is of."""
    each = f" ({', '.join(f'{v:.1f}' for v in values.values())})" if len(values) > 1 else ""
    return f"{statistics.mean(values.values()):.1f}{each}" if values else ""


def draw(trials: list[dict[str, Any]], to: Path) -> None:
    """A panel a method: accuracy over density, plain and in the interspace, and the dense networks as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = accuracies(trials)
    names = [name for name in names_of(found) if name != "dense"]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 2.8 * rows), sharex=True, sharey=True)
    for axis, name in itertools.zip_longest(panels(axes), names):
        if name is None:
            axis.axis("off")
            continue
        for color, basis in enumerate(("none", "fine", "medium", "coarse")):
            of = sorted((d, list(values.values())) for (m, b, d), values in found.items() if (m, b) == (name, basis))
            if of:
                label = "plain" if basis == "none" else f"interspace, {basis}"
                axis.plot([d for d, _ in of], [statistics.mean(v) for _, v in of], "o-", color=f"C{color}", label=label)
                each = [(d, x) for d, v in of for x in v]
                axis.plot(*zip(*each), ".", color=f"C{color}", alpha=0.5)
            if ("dense", basis, 1.0) in found:
                axis.axhline(
                    statistics.mean(found["dense", basis, 1.0].values()), color=f"C{color}", linestyle=":", linewidth=1
                )
        axis.set_xscale("log")
        densities = sorted({d for m, _, d in found if m != "dense"})
        axis.set_xticks(densities, [f"{d:g}" for d in densities])
        axis.minorticks_off()
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    panels(axes)[0].legend(fontsize=8)
    figure.supxlabel("density of weights or coefficients (dotted: dense)", fontsize=10)
    figure.supylabel("test accuracy, %", fontsize=10)
    figure.tight_layout()
    figure.savefig(to, dpi=110)


def panels(axes: Any) -> list[Any]:
    """The panels in a list."""
    return list(axes.flat) if hasattr(axes, "flat") else [axes]


if __name__ == "__main__":
    main()
