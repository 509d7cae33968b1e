"""A network with gates: what the header says is attached."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn

import prunus
from prunus.dynamic import dynamic_
from prunus.surgery.attached import PREFIX
from tests.security.fuzz import Format
from tests.security.tensorfile import changed, edited

KEY = f"{PREFIX}dynamic"


def net() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def write(folder: Path) -> list[Path]:
    paths = [folder / f"{method}.safetensors" for method in ("manidp", "fbs")]
    for path in paths:
        if not path.exists():
            torch.manual_seed(0)
            model = net()
            dynamic_(model, torch.randn(1, 3, 12, 12), path.stem)
            prunus.save(model, path)
    return paths


def change(rng: random.Random, source: Path) -> bytes:
    return changed(rng, source, KEY, ("fbs", "manidp", "channel-gating", "0", "3", "9", "keep"), ("placement",))


def read(path: Path) -> nn.Module:
    return prunus.load(path, net)


CORPUS = {
    "a gate of 10^10": edited(lambda data: data["placement"]["places"][0].update(outputs=10**10), KEY),
    "a gate of another layer": edited(lambda data: data["placement"]["places"][0].update(layer="9"), KEY),
    "a layer out of the model": edited(lambda data: data["placement"]["places"][0].update(layer="nowhere"), KEY),
    "two gates": edited(lambda data: data["placement"]["places"].append(data["placement"]["places"][0]), KEY),
    "an option of another type": edited(lambda data: data["options"].update(keep="x"), KEY),
    "an option that is none": edited(lambda data: data["options"].update(__class__=1), KEY),
}
FORMAT = Format("gated", write, change, read, CORPUS, lambda model: model(torch.randn(1, 3, 12, 12)))
