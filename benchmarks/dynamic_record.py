"""Networks that prune themselves for every input, beside static pruning at equal multiply-adds: CIFAR-10.

    python benchmarks/dynamic_record.py --out records/2026-11-25-manidp/trials.jsonl --images 50000 --epochs 10 \\
        --periods 400 --lr 0.05 --precision bf16-mixed
    python benchmarks/dynamic_record.py --out records/2026-11-25-manidp/trials.jsonl --table --plot error.png

Every trial begins with the trained network and goes through the same images, epochs and learning rates; those of static
pruning are cut first, to the multiply-adds that the dynamic network of the same line of --keep came to, gates included.
Slimming has one epoch of sparse training on top.  Settings were chosen on the first 2,000 test images; errors and
multiply-adds are those of the other 8,000.  A line of JSON a trial; what is there is not done again.  --models keeps
the networks (`prunus.save`), for benchmarks/dynamic.py.  Needs the folder named by PRUNUS_SHARED (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus.data import load
from prunus.data.order import stratified
from prunus.dynamic import dynamic_, realised, warm_start_
from prunus.measure.counting import macs
from prunus.train import evaluate, fit
from prunus.zoo import build

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
PUBLISHED = {  # error of the network, error after, multiply-adds saved: Tang et al. 2021
    "resnet20": {"manidp": (7.78, 7.95, 0.542), "fbs": (7.78, 9.03, 0.531)},
    "resnet56": {"manidp": (6.30, 6.36, 0.624), "fbs": (6.30, 6.48, 0.536)},
}
METHODS: dict[str, dict[str, Any]] = {
    "manidp": {"init": "ones", "until": 0.2, "similarity": 0.1},
    "fbs": {"init": "ones", "until": 0.2},
    "channel-gating": {"until": 0.2},
}
CHOSEN_ON = 2_000  # test images, on which settings were chosen, and which are not measured on
STATIC = {"slimming": "bn-gamma", "l2": "l2"}


def main() -> None:
    """Parse the command line; run, or print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.6])
    parser.add_argument("--trials", nargs="+", default=["none", "manidp", "l2", "slimming", "fbs"])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--periods", type=int, default=40)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto", help="as of prunus.train.fit")
    parser.add_argument("--set", type=json.loads, default={}, help='options of the method, e.g. {"similarity": 0.1}')
    parser.add_argument("--models", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    if asked.table or asked.plot:
        rows = read(asked.out)
        if asked.table:
            table(rows)
        if asked.plot:
            plot(rows, asked.plot)
        return
    torch.set_num_threads(asked.threads)
    for keep in asked.keep:
        for trial in asked.trials:
            run(asked, trial, keep)


def run(asked: argparse.Namespace, trial: str, keep: float) -> None:
    """One trial, unless its line is there."""
    key = {"model": asked.model, "trial": trial, "keep": None if trial == "none" else keep}
    key |= {"images": asked.images, "epochs": asked.epochs, "lr": asked.lr}
    key |= {"set": asked.set} if trial in METHODS and asked.set else {}
    rows = read(asked.out)
    if any(all(row.get(k) == v for k, v in ({"set": None} | key).items()) for row in rows):
        return
    torch.manual_seed(0)
    origin = build(f"prunus:{asked.model}", weights=SHARED / f"models/cifar10/{asked.model}.safetensors")
    net, x, preprocess = origin.module, origin.example(1), origin.preprocess
    data = load(SHARED / "data/cifar10", preprocess=preprocess, decide=0)
    data = replace(data, test=data.test.take(torch.arange(CHOSEN_ON, len(data.test.labels))))
    data = replace(data, train=data.train.take(stratified(data.train.labels, asked.images, 0)))
    dense, started, facts = macs(net, x).total, time.perf_counter(), {}
    common: dict[str, Any] = {"preprocess": preprocess, "weight_decay": 5e-4, "batch": 128}
    common |= {"precision": asked.precision}
    with tempfile.TemporaryDirectory() as folder:
        tuned = {**common, "epochs": asked.epochs, "lr": asked.lr, "stage": "finetune", "folder": folder}
        if trial in METHODS:
            options = METHODS[trial] | {"keep": keep} | asked.set
            dynamic_(net, x, trial, **options)
            if trial != "channel-gating":
                warm_start_(net, [b for b, _ in islice(data.train.batches(128, preprocess, train=True), 8)])
            fit(net, data, **tuned, periods=asked.periods)
            facts = {"options": options, "periods": asked.periods}
        elif trial in STATIC:
            target = next(r["macs"] for r in rows if r["trial"] == "manidp" and r["keep"] == keep and same(r, key))
            if trial == "slimming":
                penalty = {"name": "bn-gamma", "strength": 1e-3}
                groups = prunus.trace(net, x)
                sparse = {**common, "epochs": 1, "lr": 0.01, "schedule": "constant", "stage": "sparsify"}
                fit(net, data, **sparse, regularizer=penalty, groups=groups)
            prunus.prune_(net, x, budget=prunus.Budget(macs=target), criterion=STATIC[trial], allocator="global")
            facts = {"before": error(net, data, preprocess)}
            fit(net, data, **tuned)
        row = key | facts | {"error": error(net, data, preprocess), "dense": dense, "macs": cost(net, data, origin)}
        if trial in METHODS:
            said = realised(net.eval(), (batch for batch, _ in data.test.batches(250, preprocess)))
            row |= {"macs": said.mean, "realised": said.facts()}
        row |= {"saved": round(1 - row["macs"] / dense, 4), "seconds": round(time.perf_counter() - started)}
    if asked.models:
        asked.models.mkdir(parents=True, exist_ok=True)
        prunus.save(net, asked.models / f"{asked.model}-{trial}-{keep}.safetensors")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with open(asked.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def same(row: dict[str, Any], key: dict[str, Any]) -> bool:
    """Whether two trials had the same network, images and epochs."""
    return all(row[k] == key[k] for k in ("model", "images", "epochs", "lr"))


def error(net: nn.Module, data: Any, preprocess: Any) -> float:
    """Per cent of the test images."""
    return round(100 * (1 - evaluate(net, data.test, preprocess, progress=False)), 2)


def cost(net: nn.Module, data: Any, origin: Any) -> int:
    """Multiply-adds of one image."""
    return int(macs(net, origin.example(1)).total)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> None:
    """As Markdown, with what was published."""
    print("| network | how | images x epochs | keep rate | error | change | multiply-adds saved | by image | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        whole = next((w["error"] for w in rows if w["trial"] == "none" and w["model"] == r["model"]), r["error"])
        quantiles = r.get("realised", {}).get("quantiles")
        spread = f"{1 - quantiles[-1]:.1%} to {1 - quantiles[0]:.1%}" if quantiles else ""
        told = f"{r['keep'] or ''} | {r['error']:.2f} | {r['error'] - whole:+.2f} | {r['saved']:.1%} | {spread}"
        how = r["trial"] + "".join(f", {k} {v}" for k, v in r.get("set", {}).items())
        long = "" if r["trial"] == "none" else f"{r['images']:,} x {r['epochs']}"
        print(f"| {r['model']} | {how} | {long} | {told} | {r['seconds']} |")
    for model in dict.fromkeys(r["model"] for r in rows):
        for method, (before, after, saved) in PUBLISHED.get(model, {}).items():
            told = f"{after:.2f} | {after - before:+.2f} | {saved:.1%}"
            print(f"| {model} | {method}, published | 50,000 x 400 | | {told} | | |")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Error over the multiply-adds saved."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(r["model"] for r in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(5.2 * len(models), 3.8), squeeze=False)
    for axis, model in zip(axes[0], models):
        own = [r for r in rows if r["model"] == model]
        for trial in dict.fromkeys(r["trial"] for r in own):
            points = sorted((100 * r["saved"], r["error"]) for r in own if r["trial"] == trial)
            style = "k--" if trial == "none" else "o-"
            points = [(0, points[0][1]), (75, points[0][1])] if trial == "none" else points
            axis.plot(*zip(*points), style, label="unpruned" if trial == "none" else trial)
        for method, (_, after, saved) in PUBLISHED.get(model, {}).items():
            axis.plot(100 * saved, after, "k*" if method == "manidp" else "k^", label=f"{method}, published")
        axis.set(title=model, xlabel="multiply-adds saved, %", ylabel="test error, %")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
