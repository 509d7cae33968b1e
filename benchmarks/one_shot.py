"""One-shot pruning without any fine-tuning: every criterion, with and without repair.

    python benchmarks/one_shot.py --out one_shot.jsonl --budgets 0.7 0.5 0.3

Prunes a trained network of CIFAR-10 (ResNet-56 unless told otherwise) to fractions of its multiply-adds, looking at
1,024 images of the training part, and writes a line of JSON a trial: accuracy on the test part (the first --test images
of it), without repair and with it, and the seconds taken.  Goes on where it stopped.  --plot draws what was written.
Needs the folder named by PRUNUS_SHARED (default ../shared).
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
from prunus.criteria import criteria
from prunus.data import load
from prunus.train.evaluation import count_correct
from prunus.zoo import build

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
INNER = "layer*.conv1.*"  # the convolutions inside blocks; the residual streams keep their widths


def main() -> None:
    """Parse the command line and run, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--criteria", nargs="*", default=[entry.name for entry in criteria])
    parser.add_argument("--allocators", nargs="+", default=["global"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--everything", action="store_true", help="cut the residual streams as well")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.plot is not None:
        draw(args.out, args.plot)
    else:
        run(args)


def run(args: argparse.Namespace) -> None:
    """Every trial that is not yet in the file."""
    torch.set_num_threads(2)
    model = build(f"prunus:{args.model}", weights=SHARED / "models/cifar10" / f"{args.model}.safetensors")
    data = load(str(SHARED / "data/cifar10"), preprocess=model.preprocess, seed=0)
    calibration = []
    for batch in data.train.batches(128, model.preprocess, seed=0, train=True, augment="none"):
        calibration.append(batch)
        if 128 * len(calibration) >= args.images:
            break
    test = list(data.test.batches(500, model.preprocess))[: -(-args.test // 500)]
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    tried = {key(trial) for trial in done}
    for budget in args.budgets:
        for name in args.criteria:
            for allocator in args.allocators:
                for repair in (False, True):
                    trial: dict[str, Any] = {"model": args.model, "criterion": name, "allocator": allocator}
                    trial |= {"macs": budget, "repair": repair, "everything": args.everything}
                    trial |= {"test": 500 * len(test), "images": args.images}
                    if key(trial) not in tried:
                        trial |= attempt(copy.deepcopy(model.module), model.example(), trial, calibration, test)
                        print(json.dumps(trial), flush=True)
                        with args.out.open("a") as file:
                            file.write(json.dumps(trial) + "\n")


def key(trial: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a trial another one."""
    return tuple(
        trial[k] for k in ("model", "criterion", "allocator", "macs", "repair", "everything", "test", "images")
    )


def attempt(module: Any, example: Any, trial: dict[str, Any], calibration: Any, test: Any) -> dict[str, Any]:
    """One cut: its accuracy, what is left, and the seconds it took."""
    start = time.perf_counter()
    try:
        report = prunus.prune_(
            module,
            example,
            budget=prunus.Budget(macs=trial["macs"]),
            criterion=trial["criterion"],
            allocator=trial["allocator"],
            only=() if trial["everything"] or trial["model"] != "resnet56" else [INNER],
            data=calibration,
            repair=trial["repair"],
        )
    except prunus.PrunusError as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - start
    correct, total = count_correct(report.model, test)
    cost = {kind: report.after[kind] / report.before[kind] for kind in ("params", "macs")}
    return {"accuracy": correct / total, "left": cost, "seconds": round(seconds, 1)}


def draw(path: Path, to: Path) -> None:
    """Accuracy of every criterion at each budget: hollow without repair, full with it."""
    import matplotlib.pyplot as plt

    trials = [t for t in map(json.loads, path.read_text().splitlines()) if "accuracy" in t]
    budgets = sorted({t["macs"] for t in trials}, reverse=True)
    figure, axes = plt.subplots(1, len(budgets), figsize=(2 + 4 * len(budgets), 6), sharey=True, squeeze=False)
    for axis, budget in zip(axes[0], budgets):
        here = [t for t in trials if t["macs"] == budget]
        best = {t["criterion"]: max(u["accuracy"] for u in here if u["criterion"] == t["criterion"]) for t in here}
        names = sorted(best, key=lambda name: best[name])
        for t in here:
            place = (100 * t["accuracy"], names.index(t["criterion"]))
            axis.plot(*place, "o", color="C0", fillstyle="full" if t["repair"] else "none")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(f"{budget:g} of the MACs")
        axis.set_xlabel("accuracy, %")
        axis.grid(alpha=0.3)
    figure.suptitle("One shot, no fine-tuning\nhollow: cut; full: repaired")
    figure.tight_layout()
    figure.savefig(to, dpi=120)


if __name__ == "__main__":
    main()
