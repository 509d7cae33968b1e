"""What every latency backend promises: it makes a network ready once, and then runs that network, on that batch."""

import copy

import pytest
import torch
from torch import nn

from prunus.core import Inputs
from prunus.core.backends import backends
from prunus.measure import latency

INSTALLED = [entry for entry in backends if entry.declares.get("installed", lambda: True)()]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.parametrize("entry", INSTALLED, ids=lambda e: e.name)
def test_it_runs_the_network_as_torch_does_and_leaves_it_alone(entry):
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 3, 6, 6)
    call = entry.call(model, Inputs.of(x), 1)
    outputs = [call(), call()]
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    with torch.no_grad():
        expected = model.eval()(x)
    for out in outputs:
        out = out if isinstance(out, torch.Tensor) else torch.as_tensor(out[0])
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entry", INSTALLED, ids=lambda e: e.name)
def test_it_is_described_and_can_be_timed(entry):
    assert entry.line
    result = latency(network(), torch.zeros(1, 3, 6, 6), backend=entry.name, batch=2, seconds=0.01)
    assert result.runs >= 5
    assert 0 < result.p10 <= result.median_ms <= result.p90
