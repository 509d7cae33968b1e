"""What scores are divided by before all groups are ranked together: every normaliser, criterion by criterion.

    python benchmarks/normalizers.py --out normalizers.jsonl [--criteria thinet obs] [--data training]

Cuts the inner convolutions of a trained ResNet-20 (CIFAR-10) to 0.6 of the multiply-adds by the global allocator, and
writes a line of JSON a trial: accuracy as cut, and with the statistics of batch norms taken again.  `training` is
augmented images of the training part, which the defaults were chosen on; `test` the first of the test part.  Goes on
where it stopped.  Needs the folder named by PRUNUS_SHARED (default ../shared).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.criteria import criteria, needs, score
from prunus.data import load
from prunus.recovery import recalibrate_
from prunus.zoo import build

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
OF_WEIGHTS = ("wanda", "obc", "lamp")


def main() -> None:
    """Every criterion with every normaliser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--criteria", nargs="*", default=[e.name for e in criteria if e.name not in OF_WEIGHTS])
    parser.add_argument("--normalizers", nargs="*", default=["none", "mean", "max", "l2", "sum", "rank"])
    parser.add_argument("--data", choices=["training", "test"], default="training")
    parser.add_argument("--images", type=int, default=256, help="that criteria and batch norms look at")
    parser.add_argument("--judged", type=int, default=500, help="images that accuracy is measured on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = build("prunus:resnet20", weights=SHARED / "models/cifar10/resnet20.safetensors")
    data = load(str(SHARED / "data/cifar10"), preprocess=model.preprocess, seed=0)
    plain = data.train.batches(128, model.preprocess, seed=0, train=True, augment="none")
    calibration = [*islice(plain, args.images // 128)]
    training = data.train.batches(125, model.preprocess, seed=1, train=True)
    judged = data.test.batches(125, model.preprocess) if args.data == "test" else training
    judged = [*islice(judged, args.judged // 125)]
    net = model.module.eval()
    groups = prunus.trace(net, model.example(), only=["layer*.conv1.*"])
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    tried = {(t["criterion"], t["normalizer"], t["data"]) for t in done}
    for name in args.criteria:
        left = [kind for kind in args.normalizers if (name, kind, args.data) not in tried]
        stats = prunus.collect(net, groups, calibration, needs(name)) if left and needs(name) else None
        for kind in left:
            cut = trial(net, groups, score(groups, name, stats, normalize=kind))
            before = accuracy(cut, judged)
            recalibrate_(cut, calibration)
            found = {"criterion": name, "normalizer": kind, "data": args.data}
            found |= {"cut": before, "recalibrated": accuracy(cut, judged)}
            print(json.dumps(found), flush=True)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")


def trial(net: Any, groups: Any, scores: Any) -> Any:
    """The network, cut to the budget by the global allocator."""
    smaller = copy.deepcopy(net)
    mine = groups.bind(smaller)
    return prunus.shrink_(smaller, mine, prunus.allocate(mine, scores, prunus.Budget(macs=0.6)), verify=False).model


def accuracy(net: Any, batches: Any) -> float:
    """Top-1 in percent."""
    with torch.inference_mode():
        right = sum(int((net.eval()(x).argmax(1) == y).sum()) for x, y in batches)
    return round(100 * right / sum(len(y) for _, y in batches), 1)


if __name__ == "__main__":
    main()
