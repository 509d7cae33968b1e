"""What do zeros cost?  Trained networks masked in one shot, and recovered, for `runtime.py` to time.

    python benchmarks/runtime_accuracy.py --network resnet56 --folder runs/masked --densities 0.1 --epochs 3
    python benchmarks/runtime_accuracy.py --network efficientnet_lite0 --folder runs/masked --densities 0.3 0.2 \
        --methods "sparsegpt, lamp's densities" --images 256 --epochs 12 --teach --batch 32 --lr 0.01

Masks a trained network in one shot, the kept weights solved again from images of the training part, and (--epochs)
trains it on with its zeros held, by the labels or (--teach) by what the dense network says of the images alone.  Every
network goes to a file in the folder, and its accuracy on the test part to `accuracy.jsonl` there.  Goes on where it
stopped, inside the training too.  `runtime.py --files` times the files.  EfficientNet-Lite0 is masked in its 1x1
convolutions; its sample of ImageNet has even rows to calibrate on, and to train, and odd rows to test.  Needs the
folder named by PRUNUS_SHARED (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from prunus.criteria import needs
from prunus.data import Data, load
from prunus.recovery import recalibrate_
from prunus.train import evaluate, fit
from prunus.zoo import Model, build

SHARED = Path(os.environ.get("PRUNUS_SHARED", "../shared"))
SOURCES = {
    "resnet56": ("prunus:resnet56", "models/cifar10/resnet56.safetensors", "data/cifar10"),
    "efficientnet_lite0": (
        "timm:tf_efficientnet_lite0",
        "models/imagenet/efficientnet_lite0.safetensors",
        "data/imagenet-sample",
    ),
}
METHODS: dict[str, tuple[str, str, str | bool]] = {  # criterion, allocator, repair
    "magnitude": ("l1", "global", False),
    "magnitude + repair": ("l1", "global", "exact"),
    "lamp + repair": ("lamp", "global", "exact"),
    "obc": ("obc", "global", "exact"),
    "sparsegpt": ("l1", "uniform", "sparsegpt"),
    "sparsegpt, lamp's densities": ("lamp", "global", "sparsegpt"),
}


def main() -> None:
    """Every network that is not yet in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(SOURCES), default="resnet56")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1])
    parser.add_argument("--methods", nargs="+", default=["obc"], choices=list(METHODS))
    parser.add_argument("--images", type=int, default=512, help="that the repair looks at")
    parser.add_argument("--recalibrate", action="store_true", help="batch norms too, from the same images")
    parser.add_argument("--epochs", type=int, default=0, help="of training with the zeros held")
    parser.add_argument("--train", type=int, default=25_000, help="images of an epoch")
    parser.add_argument("--teach", action="store_true", help="train by the dense network's outputs alone")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    name, weights, source = SOURCES[args.network]
    model = build(name, weights=SHARED / weights)
    data = load(str(SHARED / source), preprocess=model.preprocess, seed=0, decide=0.1 if args.epochs else 0.0)
    note(args, model, data, model.module, "dense", 1.0)
    for density in args.densities:
        for method in args.methods:
            masked = reread(model, args, method, density) or one_shot(args, model, data, method, density)
            note(args, model, data, masked, method, density)
            if args.recalibrate:
                recalibrate_(masked, calibration(args, model, data))
                prunus.save(masked, file_of(args, f"{method}, recalibrated", density), compress=True)
                note(args, model, data, masked, f"{method}, recalibrated", density)
            if args.epochs:
                recover(args, model, masked, method, density)
                note(args, model, data, masked, f"{method}, recovered", density)


def file_of(args: Any, method: str, density: float) -> Path:
    """Where a network is kept."""
    slug = "-".join(method.replace("+", " ").replace(",", " ").replace("'", "").split())
    return Path(args.folder / f"{args.network}-{slug}-{density:g}.safetensors")


def reread(model: Model, args: Any, method: str, density: float) -> nn.Module | None:
    """A network that was made before."""
    path = file_of(args, method, density)
    return prunus.load(path, model.factory) if path.is_file() else None


def one_shot(args: Any, model: Model, data: Data, method: str, density: float) -> nn.Module:
    """Masked, and its kept weights solved again."""
    criterion, allocator, repair = METHODS[method]
    module = model.factory().eval()
    module.load_state_dict(model.module.state_dict())
    only = [] if args.network.startswith("resnet") else pointwise(module)
    groups = prunus.tensors(module, only=only)
    images = calibration(args, model, data)
    stats = prunus.collect(module, groups, images, needs(criterion))
    plan = prunus.allocate(
        groups, prunus.score(groups, criterion, stats), prunus.Budget(density=density), allocator=allocator
    )
    prunus.mask_(module, groups, plan, repair=repair, data=images if repair else None)
    prunus.save(module, file_of(args, method, density), compress=True)
    return module


def calibration(args: Any, model: Model, data: Data) -> list[Any]:
    """Batches of the training part."""
    batches = data.train.batches(128, model.preprocess, seed=0, train=True, augment="none")
    return [batch for batch, _ in zip(batches, range(-(-args.images // 128)))]


def pointwise(module: nn.Module) -> list[str]:
    """The weights of the 1x1 convolutions."""
    convolutions = {name: m for name, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    return [f"{name}.weight" for name, m in convolutions.items() if m.kernel_size == (1, 1)]


def recover(args: Any, model: Model, masked: nn.Module, method: str, density: float) -> None:
    """Train on with the zeros held."""
    stage = file_of(args, f"{method}, recovered", density).stem
    done = args.folder / f"{stage}.safetensors"
    if done.is_file():
        prunus.load_(masked, done)
        return
    prunus.hold_(masked)
    data = load(str(SHARED / SOURCES[args.network][2]), preprocess=model.preprocess, seed=0, limit=args.train)
    fit(
        masked,
        data,
        preprocess=model.preprocess,
        epochs=args.epochs,
        lr=args.lr,
        batch=args.batch,
        teacher=model.module.eval() if args.teach else None,
        distill={"temperature": 2.0, "weight": 1.0} if args.teach else None,
        weight_decay=1e-4,
        precision="32",
        channels_last=False,
        folder=args.folder / "training",
        stage=stage,
        resume=True,
    )
    prunus.save(masked, done, compress=True)


def note(args: Any, model: Model, data: Data, module: nn.Module, method: str, density: float) -> None:
    """A line of accuracy, unless it is there."""
    path, key = args.folder / "accuracy.jsonl", (args.network, method, density)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if any((t["network"], t["method"], t["density"]) == key for t in lines):
        return
    groups = prunus.tensors(module)
    nonzero = sum(int(g.slices[0].tensor.count_nonzero()) for g in groups)
    total = sum(g.slices[0].tensor.numel() for g in groups)
    top1 = evaluate(module, data.test, model.preprocess, progress=False)
    trial = {"network": args.network, "method": method, "density": density, "accuracy": top1}
    trial |= {"of_all_weights": round(nonzero / total, 4), "images": args.images, "epochs": args.epochs}
    print(json.dumps(trial), flush=True)
    with path.open("a") as file:
        file.write(json.dumps(trial) + "\n")


if __name__ == "__main__":
    main()
