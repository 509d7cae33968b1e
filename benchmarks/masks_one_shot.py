"""One-shot masks of single weights, without any training: what selects, what is repaired, and the accuracy left.

    python benchmarks/masks_one_shot.py --out masks.jsonl --densities 0.5 0.2 0.1

Masks a trained network of CIFAR-10 to a density of its weights, looking at --images of the training part, and writes a
line of JSON a trial: accuracy on the first --test images of the test part, and the seconds taken.  Goes on where it
stopped.  Needs the folder named by PRUNUS_SHARED (default ../shared).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.criteria import needs
from prunus.data import load
from prunus.recovery import recalibrate_
from prunus.train.evaluation import count_correct
from prunus.zoo import build

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
METHODS: dict[str, tuple[str, str, str | bool, Any]] = {  # criterion, allocator, repair, settings of `tensors`
    "magnitude": ("l1", "global", False, {}),
    "magnitude, uniform": ("l1", "uniform", False, {}),
    "lamp": ("lamp", "global", False, {}),
    "magnitude, erk": ("l1", "erk", False, {}),
    "magnitude + batch norms": ("l1", "global", "batch norms", {}),
    "wanda": ("wanda", "uniform", False, {"rows": True}),
    "magnitude + repair": ("l1", "global", "exact", {}),
    "magnitude + sweep": ("l1", "global", "fast", {}),
    "lamp + repair": ("lamp", "global", "exact", {}),
    "wanda + repair": ("wanda", "uniform", "exact", {"rows": True}),
    "sparsegpt": ("l1", "uniform", "sparsegpt", {}),
    "sparsegpt, magnitude's densities": ("l1", "global", "sparsegpt", {}),
    "obc, uniform": ("l1", "uniform", "obc", {}),
    "obc, magnitude's densities": ("l1", "global", "obc", {}),
    "obc": ("obc", "global", "exact", {}),
    "2:4 magnitude": ("l1", "uniform", False, {"grain": "2:4"}),
    "2:4 wanda": ("wanda", "uniform", False, {"grain": "2:4"}),
    "2:4 sparsegpt": ("l1", "uniform", "sparsegpt", {"grain": "2:4"}),
}


def main() -> None:
    """Every trial that is not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.2, 0.1])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what was written, and do nothing else")
    args = parser.parse_args()
    if args.table:
        print(table([json.loads(line) for line in args.out.read_text().splitlines()]))
        return
    torch.set_num_threads(args.threads)
    model = build(f"prunus:{args.model}", weights=SHARED / "models/cifar10" / f"{args.model}.safetensors")
    data = load(str(SHARED / "data/cifar10"), preprocess=model.preprocess, seed=0)
    calibration: list[Any] = []
    for batch in data.train.batches(128, model.preprocess, seed=0, train=True, augment="none"):
        calibration.append(batch)
        if 128 * len(calibration) >= args.images:
            break
    test = list(data.test.batches(500, model.preprocess))[: -(-args.test // 500)]
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    tried = {(t["model"], t["method"], t["density"]) for t in done}
    if (args.model, "whole network", 1.0) not in tried:
        correct, total = count_correct(model.module, test)
        whole = {"model": args.model, "method": "whole network", "density": 1.0, "images": 0, "test": args.test}
        note(args.out, whole | {"accuracy": correct / total, "left": 1.0, "seconds": 0.0})
    for density in args.densities:
        for method in args.methods:
            if (args.model, method, density) not in tried and not (method.startswith("2:4") and density != 0.5):
                trial = {
                    "model": args.model,
                    "method": method,
                    "density": density,
                    "images": args.images,
                    "test": args.test,
                }
                trial |= attempt(copy.deepcopy(model.module), METHODS[method], density, calibration, test)
                note(args.out, trial)


def note(path: Path, trial: dict[str, Any]) -> None:
    """Write a trial down."""
    print(json.dumps(trial), flush=True)
    with path.open("a") as file:
        file.write(json.dumps(trial) + "\n")


def table(trials: list[dict[str, Any]]) -> str:
    """A row a method: accuracy at every density, and the seconds of the longest trial."""
    densities = sorted({t["density"] for t in trials if t["density"] < 1}, reverse=True)
    lines = [
        "| method | " + " | ".join(f"{d:g}" for d in densities) + " | seconds |",
        "|---" * (len(densities) + 2) + "|",
    ]
    for method in dict.fromkeys(t["method"] for t in trials):
        mine = {t["density"]: t for t in trials if t["method"] == method}
        cells = [f"{100 * mine[d]['accuracy']:.2f}" if d in mine else "" for d in densities]
        if 1.0 in mine:
            cells = [f"{100 * mine[1.0]['accuracy']:.2f}"] * len(densities)
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {max(t['seconds'] for t in mine.values()):.0f} |")
    return "\n".join(lines)


def attempt(module: Any, method: Any, density: float, calibration: Any, test: Any) -> dict[str, Any]:
    """One masking: its accuracy, the density, and the seconds it took."""
    criterion, allocator, repair, settings = method
    start = time.perf_counter()
    groups = prunus.tensors(module, **settings)
    stats = prunus.collect(module, groups, calibration, needs(criterion))
    scores = prunus.score(groups, criterion, stats)
    budget = density if groups.pattern is None else int(groups.costs()["density"] * density) + 1
    plan = prunus.allocate(groups, scores, prunus.Budget(density=budget), allocator=allocator)
    norms = repair == "batch norms"
    report = prunus.mask_(module, groups, plan, repair=False if norms else repair, data=calibration)
    if norms:
        recalibrate_(module, calibration, limit=None)
    seconds = time.perf_counter() - start
    correct, total = count_correct(module, test)
    return {"accuracy": correct / total, "left": round(report.density, 4), "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
