"""Masked weights, stored as their values and where they are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import prunus
from prunus.surgery import files
from prunus.surgery.packed import GAPS, VALUES
from tests.security.fuzz import Format
from tests.security.tensorfile import changed, parts, whole


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))


def write(folder: Path) -> list[Path]:
    paths = [folder / "gaps.safetensors", folder / "bits.safetensors"]
    for path, density in zip(paths, (0.05, 0.4)):
        if not path.exists():
            torch.manual_seed(0)
            model = net()
            groups = prunus.tensors(model)
            plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=density))
            prunus.mask_(model, groups, plan)
            prunus.save(model, path, compress=True)
    return paths


def read(path: Path) -> nn.Module:
    prunus.read_plan(path)
    return prunus.load(path, net)


def bomb(honest: list[Path]) -> bytes:
    """10 kB that say they are 7.6 GB of zeros."""
    header, data = parts(honest[0].read_bytes())
    header["__metadata__"][files.PACKED] = json.dumps({"2.weight": [2 * 10**9]})
    return whole(header, data)


def many(honest: list[Path]) -> bytes:
    """A thousand tensors of zeros, each small enough by itself."""
    header, data = parts(honest[0].read_bytes())
    shapes = {f"t{i}": [1 << 22] for i in range(1000)}
    for name in shapes:
        for end, dtype in ((VALUES, "F32"), (GAPS, "U8")):
            header[name + end] = {"dtype": dtype, "shape": [0], "data_offsets": [len(data)] * 2}
    header["__metadata__"][files.PACKED] = json.dumps(shapes)
    return whole(header, data)


CORPUS = {"bomb": bomb, "many": many}
FORMAT = Format(
    "packed", write, lambda rng, source: changed(rng, source, files.PACKED), read, CORPUS, need=lambda size: 64 * size
)
