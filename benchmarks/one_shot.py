"""One-shot pruning without any fine-tuning: every criterion, with and without repair, beside Torch-Pruning's.

    python benchmarks/one_shot.py --out one_shot.jsonl --budgets 0.7 0.5 0.3

Prunes a trained network of CIFAR-10 (ResNet-56 unless told otherwise) to fractions of its multiply-adds, looking at
1,024 images of the training part, and writes a line of JSON a trial: accuracy on the test part (the first --test images
of it), as it was cut and after every kind of repair, and the seconds taken.  Goes on where it stopped.  --plot draws
what was written, --table prints it.  Criteria named torch-pruning:... are those of that library, on the same layers
and with the same budget.  Needs the folder named by PRUNUS_SHARED (default ../shared).
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
from prunus.measure.counting import macs, params
from prunus.recovery import METHODS
from prunus.train.evaluation import count_correct
from prunus.zoo import build

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
THEIRS = {
    "torch-pruning:random": "RandomImportance",
    "torch-pruning:l2": "GroupMagnitudeImportance",
    "torch-pruning:bn-scale": "BNScaleImportance",
    "torch-pruning:fpgm": "FPGMImportance",
    "torch-pruning:lamp": "LAMPImportance",
    "torch-pruning:Taylor": "GroupTaylorImportance",
    "torch-pruning:Hessian": "GroupHessianImportance",
}
FILLED = {"none": "none", "bias": "none", "least-squares": "left", "blocks": "full"}
INNER = "layer*.conv1.*"  # the convolutions inside blocks; the residual streams keep their widths


def main() -> None:
    """Parse the command line and run, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--criteria", nargs="*", default=[entry.name for entry in criteria] + [*THEIRS])
    parser.add_argument("--repair", nargs="*", default=["none", "least-squares"], choices=["none", *METHODS])
    parser.add_argument("--table", action="store_true", help="print what was written, and do nothing else")
    parser.add_argument("--allocators", nargs="+", default=["global"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--everything", action="store_true", help="cut the residual streams as well")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.plot is not None:
        draw(args.out, args.plot)
    elif args.table:
        table(args.out)
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
                for repair in ["none"] if name in THEIRS else args.repair:
                    trial: dict[str, Any] = {"model": args.model, "criterion": name, "allocator": allocator}
                    trial |= {"macs": budget, "repair": repair, "everything": args.everything}
                    trial |= {"test": 500 * len(test), "images": args.images}
                    if key(trial) not in tried:
                        cut = theirs if name in THEIRS else attempt
                        trial |= cut(copy.deepcopy(model.module), model.example(), trial, calibration, test)
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
            repair=False if trial["repair"] == "none" else trial["repair"],
        )
    except prunus.PrunusError as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - start
    correct, total = count_correct(report.model, test)
    cost = {kind: report.after[kind] / report.before[kind] for kind in ("params", "macs")}
    return {"accuracy": correct / total, "left": cost, "seconds": round(seconds, 1)}


def theirs(module: Any, example: Any, trial: dict[str, Any], calibration: Any, test: Any) -> dict[str, Any]:
    """One cut by Torch-Pruning: the largest of its global ratios' networks that is within the budget, by bisection."""
    import torch_pruning as tp

    torch.manual_seed(0)
    start, importance = time.perf_counter(), getattr(tp.importance, THEIRS[trial["criterion"]])
    before = costs(module, example)
    low, high, best = 0.0, 1.0, None
    for _ in range(10):
        ratio, net = (low + high) / 2, copy.deepcopy(module).eval()
        layers = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
        last = list(layers.values())[-1]
        only = [m for name, m in layers.items() if "conv1" in name and "layer" in name]
        whole = [last] if trial["everything"] or not only else [m for m in layers.values() if m not in only]
        asked = {"global_pruning": True, "pruning_ratio": ratio, "max_pruning_ratio": 0.99, "ignored_layers": whole}
        pruner = tp.pruner.BasePruner(net, example, importance(), **asked)
        if "Taylor" in trial["criterion"] or "Hessian" in trial["criterion"]:
            slopes(net, pruner, calibration)
        pruner.step()
        cost = costs(net, example)
        fits = cost["macs"] <= trial["macs"] * before["macs"]
        best = (net, cost) if fits else best
        low, high = (low, ratio) if fits else (ratio, high)
    if best is None:
        return {"error": "no ratio meets the budget"}
    seconds = time.perf_counter() - start
    correct, total = count_correct(best[0], test)
    left = {kind: best[1][kind] / before[kind] for kind in ("params", "macs")}
    return {"accuracy": correct / total, "left": left, "seconds": round(seconds, 1)}


def costs(net: Any, example: Any) -> dict[str, int]:
    """By prunus's own counters."""
    return {"params": params(net), "macs": macs(net, example).total}


def slopes(net: Any, pruner: Any, calibration: Any) -> None:
    """The gradients that its importances of data read, as its examples collect them (of 256 samples one by one)."""
    if hasattr(pruner.importance, "accumulate_grad"):
        pruner.importance.zero_grad()
        for x, y in calibration[:2]:
            for one in torch.nn.functional.cross_entropy(net(x), y, reduction="none"):
                net.zero_grad()
                one.backward(retain_graph=True)
                pruner.importance.accumulate_grad(net)
    else:
        for x, y in calibration:
            torch.nn.functional.cross_entropy(net(x), y).backward()


def table(path: Path) -> None:
    """A row a criterion, best first: accuracy, repaired or not, at every budget."""
    trials = [t for t in map(json.loads, path.read_text().splitlines()) if "accuracy" in t]
    budgets = sorted({t["macs"] for t in trials}, reverse=True)
    columns = [(budget, repair) for budget in budgets for repair in ("none", *METHODS)]
    columns = [c for c in columns if any((t["macs"], t["repair"]) == c for t in trials)]
    print("| criterion | " + " | ".join(f"{budget:g} {repair}" for budget, repair in columns) + " | seconds |")
    print("|---" * (len(columns) + 2) + "|")
    best = {t["criterion"]: sum(u["accuracy"] for u in trials if u["criterion"] == t["criterion"]) for t in trials}
    for name in sorted(best, key=lambda name: -best[name]):
        mine = {(t["macs"], t["repair"]): t for t in trials if t["criterion"] == name}
        cells = [f"{100 * mine[c]['accuracy']:.2f}" if c in mine else "" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + f" | {max(t['seconds'] for t in mine.values()):.0f} |")


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
            color = "C1" if t["criterion"] in THEIRS else "C0"
            axis.plot(*place, "o", color=color, fillstyle=FILLED[t["repair"]])
        axis.set_yticks(range(len(names)), names)
        axis.set_title(f"{budget:g} of the MACs")
        axis.set_xlabel("accuracy on the test part, %")
        axis.grid(alpha=0.3)
    figure.suptitle(
        "No fine-tuning: hollow as cut, half repaired by least squares, full by blocks; orange: Torch-Pruning"
    )
    figure.tight_layout()
    figure.savefig(to, dpi=120)


if __name__ == "__main__":
    main()
