"""Training under masks in `fit`: to the density, and killed and resumed to the bit."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import prunus
from prunus.core import FileError
from prunus.data import Preprocess, Split
from prunus.train import fit
from prunus.train.engine import Engine


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    return nn.Sequential(*layers)


def data():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (160, 1, 8, 8), dtype=torch.uint8, generator=g)
    return SimpleNamespace(train=Split(images, torch.arange(160) % 4), decide=None)


def trained(folder, method, *, resume=False, **options):
    model = network()
    fit(
        model, data(), preprocess=Preprocess(mean=(0.5,), std=(0.5,), channels=1, size=(8, 8)), epochs=3, lr=0.05,
        batch=32, sparse={"method": method, "density": 0.2, "options": options}, folder=folder, resume=resume,
        every=1e-9, quiet=True, augment="none",
    )  # fmt: skip
    return model


@pytest.mark.parametrize("method", ["rigl", "dpf", "snfs", "str"])
def test_killed_and_resumed_is_unbroken_to_the_bit(method, tmp_path, monkeypatch):
    options = {} if method == "str" else {"every": 2}
    whole = trained(tmp_path / "whole", method, **options)
    left = sum(int(g.slices[0].tensor.count_nonzero()) for g in prunus.tensors(whole))
    assert left <= 0.2 * (72 + 4 * 288)
    update, count = Engine.update, [0]

    def dies(self, loss, lr):
        count[0] += 1
        if count[0] == 8:
            raise RuntimeError("killed")
        update(self, loss, lr)

    monkeypatch.setattr(Engine, "update", dies)
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path / "cut", method, **options)
    monkeypatch.setattr(Engine, "update", update)
    resumed = trained(tmp_path / "cut", method, resume=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    with pytest.raises(FileError, match="sparse was"):
        trained(tmp_path / "cut", "set", resume=True)
