"""One-shot pruning without any fine-tuning: every criterion, with every kind of repair, beside Torch-Pruning's.

    python benchmarks/one_shot.py --out one_shot.jsonl --budgets 0.7 0.5 0.3

Prunes a trained network (ResNet-56 of CIFAR-10 unless told otherwise) to fractions of its multiply-adds, looking at
1,024 images of the training part, and writes a line of JSON a trial: accuracy on the test part, agreement with the
whole network, and the seconds that statistics, cut and repair took.  Goes on where it stopped.  --plot draws what was
written, --table prints it.  Criteria named torch-pruning:... are those of that library, on the same layers and with the
same budget.  Needs the folder named by PRUNUS_SHARED (default ../shared).
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
from prunus.criteria import criteria, needs
from prunus.data import load
from prunus.measure.counting import macs, params
from prunus.recovery import METHODS, prepare
from prunus.zoo import build

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
INNER = "layer*.conv1.*"  # the convolutions inside blocks; the residual streams keep their widths
THEIRS = {
    "torch-pruning:random": "RandomImportance",
    "torch-pruning:l2": "GroupMagnitudeImportance",
    "torch-pruning:bn-scale": "BNScaleImportance",
    "torch-pruning:fpgm": "FPGMImportance",
    "torch-pruning:lamp": "LAMPImportance",
    "torch-pruning:taylor": "GroupTaylorImportance",
    "torch-pruning:hessian": "GroupHessianImportance",
}
FILLED = {"none": "none", "bias": "none", "least-squares": "left", "blocks": "full"}


def main() -> None:
    """Parse the command line and run, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet56", help="resnet20, resnet56, densenet_bc40 or efficientnet_lite0")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    unit_wise = [entry.name for entry in criteria if not weights_alone(entry)]
    parser.add_argument("--criteria", nargs="*", default=unit_wise + [*THEIRS])
    parser.add_argument("--repair", nargs="*", default=["none", "least-squares"], choices=["none", *METHODS])
    parser.add_argument("--allocator", default="global")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--test", type=int, nargs=2, default=[0, 10_000], help="first and last test image")
    parser.add_argument("--everything", action="store_true", help="cut the residual streams as well")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--table", action="store_true", help="print what was written, and do nothing else")
    args = parser.parse_args()
    if args.plot is not None:
        draw(args.out, args.plot)
    elif args.table:
        table(args.out)
    else:
        run(args)


def weights_alone(entry: Any) -> bool:
    """Whether a criterion scores single weights, and no units."""
    return entry.name in ("wanda", "obc", "lamp")


def source(args: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    """The trained network, batches to calibrate on, and the test batches."""
    if args.model == "efficientnet_lite0":
        model = build("timm:tf_efficientnet_lite0", weights=SHARED / "models/imagenet/efficientnet_lite0.safetensors")
        data = load(str(SHARED / "data/imagenet-sample"), preprocess=model.preprocess, seed=0)
    else:
        weights = next((SHARED / "models/cifar10").glob(f"{args.model}*"))
        model = build(f"prunus:{args.model}", weights=weights)
        data = load(str(SHARED / "data/cifar10"), preprocess=model.preprocess, seed=0)
    calibration: list[Any] = []
    for batch in data.train.batches(128, model.preprocess, seed=0, train=True, augment="none"):
        calibration.append(batch)
        if 128 * len(calibration) >= args.images:
            break
    images = data.test.batches(100, model.preprocess)
    test = [batch for i, batch in enumerate(images) if args.test[0] <= 100 * i < args.test[1]]
    return model, calibration, test


def run(args: argparse.Namespace) -> None:
    """Every trial that is not yet in the file."""
    torch.set_num_threads(args.threads)
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    tried = {key(trial) for trial in done}
    model, calibration, test = source(args)
    whole = predictions(model.module, test)
    right = torch.cat([y for _, y in test])

    def note(trial: dict[str, Any]) -> None:
        print(json.dumps(trial), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(trial) + "\n")

    def seen(net: Any) -> dict[str, float]:
        found = predictions(net, test)
        return {"accuracy": share(found == right), "agreement": share(found == whole)}

    common = {"model": args.model, "allocator": args.allocator, "everything": args.everything, "images": args.images}
    common |= {"test": f"{args.test[0]}-{args.test[1]}", "threads": args.threads}
    if key(common | {"criterion": "whole network", "macs": 1.0, "repair": "none"}) not in tried:
        told = {"criterion": "whole network", "macs": 1.0, "repair": "none", "accuracy": share(whole == right)}
        note(common | told)
    for name in args.criteria:
        kinds = ["none"] if name in THEIRS else args.repair
        trials = [common | {"criterion": name, "macs": b, "repair": kind} for b in args.budgets for kind in kinds]
        left = [trial for trial in trials if key(trial) not in tried]
        cuts = theirs if name in THEIRS else ours
        if left:
            try:
                for trial, (net, facts) in zip(left, cuts(model.module, model.example(), left, calibration)):
                    note(trial | seen(net) | facts)
            except (prunus.PrunusError, RuntimeError, AttributeError) as error:
                note(left[0] | {"error": f"{type(error).__name__}: {error}"})


def key(trial: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a trial another one."""
    return tuple(
        trial[k] for k in ("model", "criterion", "allocator", "macs", "repair", "everything", "test", "images")
    )


def share(hits: Any) -> float:
    """The fraction that is true."""
    return float(hits.double().mean())


def predictions(net: Any, test: Any) -> Any:
    """The class that a network gives every test image."""
    net.eval()
    with torch.inference_mode():
        return torch.cat([net(x).argmax(1) for x, _ in test])


def ours(module: Any, example: Any, trials: list[dict[str, Any]], calibration: Any) -> Any:
    """Statistics and scores once; then a cut and a repair a trial."""
    name, start = trials[0]["criterion"], time.perf_counter()
    inner = not trials[0]["everything"] and trials[0]["model"].startswith("resnet")
    base = copy.deepcopy(module)
    groups = prunus.trace(base, example, only=[INNER] if inner else ())
    wanted = needs(name)
    scores = prunus.score(groups, name, prunus.collect(base, groups, calibration, wanted) if wanted else None)
    scored = time.perf_counter() - start
    for trial in trials:
        start, net = time.perf_counter(), copy.deepcopy(module)
        mine = groups.bind(net)
        plan = prunus.allocate(mine, scores, prunus.Budget(macs=trial["macs"]), allocator=trial["allocator"])
        kind = trial["repair"]
        mend = None if kind == "none" else prepare(kind, net, mine, plan, calibration)
        report = prunus.shrink_(net, mine, plan)
        if mend is not None:
            mend(report.model, prunus.trace(report.model, example, in_place=False))
        left = {cost: report.after[cost] / report.before[cost] for cost in ("params", "macs")}
        seconds = {"score": round(scored, 1), "cut": round(time.perf_counter() - start, 1)}
        yield report.model, {"left": left, "seconds": seconds}


def theirs(module: Any, example: Any, trials: list[dict[str, Any]], calibration: Any) -> Any:
    """Cuts by Torch-Pruning: the largest of its global ratios' networks that is within the budget, by bisection."""
    import torch_pruning as tp

    before = costs(module, example)
    for trial in trials:
        torch.manual_seed(0)
        start, importance = time.perf_counter(), getattr(tp.importance, THEIRS[trial["criterion"]])
        low, high, best = 0.0, 1.0, (module, before)
        for _ in range(9):
            ratio, net = (low + high) / 2, copy.deepcopy(module).eval()
            layers = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
            only = [m for name, m in layers.items() if "conv1" in name and "layer" in name]
            inner = not trial["everything"] and trial["model"].startswith("resnet")
            whole = [m for m in layers.values() if m not in only] if inner else [list(layers.values())[-1]]
            asked = {"global_pruning": True, "pruning_ratio": ratio, "max_pruning_ratio": 0.99, "ignored_layers": whole}
            pruner = tp.pruner.BasePruner(net, example, importance(), **asked)
            if trial["criterion"].endswith(("taylor", "hessian")):
                slopes(net, pruner, calibration)
            pruner.step()
            cost = costs(net, example)
            fits = cost["macs"] <= trial["macs"] * before["macs"]
            best = (net, cost) if fits else best
            low, high = (low, ratio) if fits else (ratio, high)
        left = {kind: best[1][kind] / before[kind] for kind in ("params", "macs")}
        yield best[0], {"left": left, "seconds": {"cut": round(time.perf_counter() - start, 1)}}


def costs(net: Any, example: Any) -> dict[str, int]:
    """By prunus's own counters."""
    return {"params": params(net), "macs": macs(net, example).total}


def slopes(net: Any, pruner: Any, calibration: Any) -> None:
    """The gradients that its importances of data read, as its examples collect them (128 samples one by one)."""
    if hasattr(pruner.importance, "accumulate_grad"):
        pruner.importance.zero_grad()
        x, y = calibration[0]
        for one in torch.nn.functional.cross_entropy(net(x), y, reduction="none"):
            net.zero_grad()
            one.backward(retain_graph=True)
            pruner.importance.accumulate_grad(net)
    else:
        for x, y in calibration:
            torch.nn.functional.cross_entropy(net(x), y).backward()


def table(path: Path) -> None:
    """A row a criterion, best first: accuracy, repaired or not, at every budget."""
    trials = [t for t in map(json.loads, path.read_text().splitlines()) if "left" in t]
    budgets = sorted({t["macs"] for t in trials}, reverse=True)
    columns = [(budget, repair) for budget in budgets for repair in ("none", "bias", "least-squares", "blocks")]
    columns = [c for c in columns if any((t["macs"], t["repair"]) == c for t in trials)]
    heads = [f"{budget:g} {'cut' if repair == 'none' else repair}" for budget, repair in columns]
    print("| criterion | " + " | ".join(heads) + " | seconds to score | to cut and repair |")
    print("|---" * (len(columns) + 3) + "|")
    names = {t["criterion"] for t in trials}
    top = {n: max(t["accuracy"] for t in trials if t["criterion"] == n and t["macs"] == min(budgets)) for n in names}
    for name in sorted(names, key=lambda n: -top[n]):
        mine = {(t["macs"], t["repair"]): t for t in trials if t["criterion"] == name}
        cells = [f"{100 * mine[c]['accuracy']:.2f}" if c in mine else "" for c in columns]
        took = [max(t["seconds"].get(kind, 0) for t in mine.values()) for kind in ("score", "cut")]
        print(f"| {name} | " + " | ".join(cells) + f" | {took[0]:.0f} | {took[1]:.0f} |")


def draw(path: Path, to: Path) -> None:
    """Accuracy of every criterion at each budget, by the kind of repair."""
    import matplotlib.pyplot as plt

    everything = [json.loads(line) for line in path.read_text().splitlines()]
    trials = [t for t in everything if "left" in t]
    budgets = sorted({t["macs"] for t in trials}, reverse=True)
    names = sorted({t["criterion"] for t in trials})
    last = {t["criterion"]: t["accuracy"] for t in sorted(trials, key=lambda t: t["accuracy"])}
    names.sort(key=lambda name: last[name])
    figure, axes = plt.subplots(1, len(budgets), figsize=(3 + 3.6 * len(budgets), 1.5 + 0.23 * len(names)), sharey=True)
    for axis, budget in zip(axes if len(budgets) > 1 else [axes], budgets):
        for t in (t for t in trials if t["macs"] == budget):
            color = "C1" if t["criterion"] in THEIRS else "C0"
            place = (100 * t["accuracy"], names.index(t["criterion"]))
            axis.plot(*place, "o", color=color, fillstyle=FILLED[t["repair"]], markersize=6)
        for t in (t for t in everything if t["criterion"] == "whole network"):
            axis.axvline(100 * t["accuracy"], color="grey", linewidth=0.8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(f"{budget:g} of the multiply-adds", fontsize=10)
        axis.set_xlabel("accuracy, %")
        axis.grid(alpha=0.3)
    figure.suptitle(
        "No fine-tuning. Hollow: as cut; half: least squares; full: blocks; orange: Torch-Pruning", fontsize=11
    )
    figure.tight_layout()
    figure.savefig(to, dpi=110)


if __name__ == "__main__":
    main()
