"""What every export format promises: one file, compared with the network, which is left as it was."""

import copy

import pytest
import torch
from torch import nn

from prunus.export import exporters


@pytest.mark.parametrize("entry", exporters, ids=lambda e: e.name)
def test_one_file_and_the_error_it_has(entry, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).train()
    before = copy.deepcopy(model.state_dict())
    error = entry.call(model, torch.zeros(2, 3, 6, 6), tmp_path / "model", verify=True)
    assert 0 <= error <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert entry.line
