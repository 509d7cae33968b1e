"""Recalibration against statistics computed with numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from prunus.core import InputError
from prunus.recovery import Recalibrated, recalibrate_


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU())


def batches(count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 3, 8, 8) + i, torch.zeros(6)) for i in range(count)]


def expected(model: nn.Sequential, data: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Averages of the batches' means and unbiased variances, of the convolution's output without dropout."""
    means, variances = [], []
    for x, _ in data:
        rows = model[0](x).detach().double().numpy().transpose(1, 0, 2, 3).reshape(4, -1)
        means.append(rows.mean(1))
        variances.append(rows.var(1, ddof=1))
    return np.mean(means, 0), np.mean(variances, 0)


def test_statistics_are_the_exact_averages_over_batches() -> None:
    model, data = network(), batches()
    assert recalibrate_(model, data) == Recalibrated(layers=1, batches=5)
    mean, variance = expected(model, data)
    np.testing.assert_allclose(model[2].running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model[2].running_var.numpy(), variance, rtol=1e-5)


def test_limit_takes_the_first_batches_only() -> None:
    model, data = network(), batches()
    assert recalibrate_(model, data, limit=2).batches == 2
    np.testing.assert_allclose(model[2].running_mean.numpy(), expected(model, data[:2])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_flags_momentum_and_parameters_are_as_before(training: bool) -> None:
    model = network().train(training)
    model[1].eval()
    flags = [m.training for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    recalibrate_(model, batches())
    assert [m.training for m in model.modules()] == flags
    assert model[2].momentum == 0.3
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_two_layers_see_each_other_normalised_by_the_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    recalibrate_(model, [torch.randn(50, 3) * 7 + 2 for _ in range(4)])
    torch.testing.assert_close(model[1].running_mean, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(model[1].running_var, torch.full((3,), 50 / 49), atol=1e-4, rtol=0)


def test_a_network_without_batch_norm_is_left_alone() -> None:
    assert recalibrate_(nn.Linear(2, 2), []) == Recalibrated(0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "there was no batch"),
        ([torch.full((4, 3, 8, 8), float("nan"))], "old statistics were put back"),
        ([torch.ones(1, 3, 3, 3)], "too small"),
    ],
)
def test_bad_data_is_refused_and_nothing_changes(data: list[torch.Tensor], message: str) -> None:
    model = network()
    model[2].running_mean.fill_(5.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        recalibrate_(model, data)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model[2].momentum == 0.3
    assert model[2].training
