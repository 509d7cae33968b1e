"""Theorem 1: with a basis of their own, sparse coefficients come nearer to given filters than sparse filters do."""

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus import InputError
from prunus.bases import dictionary, sparse_dictionary
from prunus.bases.basis import coefficients


def gaussian(n: int = 200, m: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_error(u: torch.Tensor, density: float) -> float:
    """Of the best sparse filters: the root of the sum of the squares that are not the largest."""
    squares = np.sort(u.numpy().ravel() ** 2)
    return float(np.sqrt(squares[: u.numel() - int(density * u.numel() + 1e-9)].sum()))


def test_the_first_error_is_that_of_plain_pruning_and_one_step_of_the_basis_is_its_least_squares_solution():
    u = gaussian()
    _, _, errors = sparse_dictionary(u, 0.1, rounds=1)
    assert errors[0] == pytest.approx(plain_error(u, 0.1), rel=1e-12)
    keep = np.abs(u.numpy()) >= np.sort(np.abs(u.numpy()).ravel())[-180]
    r = u.numpy() * keep
    basis = np.linalg.solve(r.T @ r, r.T @ u.numpy())  # the normal equations
    assert errors[1] == pytest.approx(np.linalg.norm(u.numpy() - r @ basis), rel=1e-10)
    again = np.zeros_like(r)
    for i, row in enumerate(keep):  # and of one filter after the other
        if row.any():
            again[i, row] = np.linalg.lstsq(basis[row].T, u.numpy()[i], rcond=None)[0]
    assert errors[2] == pytest.approx(np.linalg.norm(u.numpy() - again @ basis), rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_experiment_of_the_theorem(seed):
    u = gaussian(seed=seed)
    basis, r, errors = sparse_dictionary(u, 0.1, rounds=40)
    assert all(b <= a + 1e-12 for a, b in zip(errors, errors[1:]))
    assert 0.97 < errors[1] / errors[0] < 0.99  # one run of the specification: 31.519, 30.896, 30.711
    assert 0.95 < errors[-1] / errors[0] < 0.98
    assert int(r.count_nonzero()) == 180 and torch.allclose(basis.norm(dim=1), torch.ones(9).double())
    assert float((u - r @ basis).norm()) == pytest.approx(errors[-1], rel=1e-10)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.6, 0.9])
def test_the_error_is_strictly_below_that_of_plain_pruning_at_any_sparsity(density):
    u = gaussian(60, 4, seed=5)
    assert sparse_dictionary(u, density)[2][-1] < plain_error(u, density) - 1e-6


def test_filters_that_are_kept_or_gone_as_a_whole_gain_nothing():
    u = gaussian(20, 9)
    u = u.sign() * (u.abs() + 1)  # so that scale alone decides
    u[4:] *= 1e-2
    _, r, errors = sparse_dictionary(u, 4 / 20)
    assert torch.equal(r.ne(0).any(1), r.ne(0).all(1)) and int(r.ne(0).all(1).sum()) == 4
    assert errors[-1] == pytest.approx(errors[0], rel=1e-12)


def test_nothing_is_lost_where_everything_is_kept():
    u = gaussian()
    basis, r, errors = sparse_dictionary(u, 1.0, rounds=2)
    assert errors[-1] < 1e-12 and torch.allclose(r @ basis, u)


def test_filters_of_zeros_and_of_a_low_rank_do_no_harm():
    u = torch.outer(torch.linspace(1, 2, 50, dtype=torch.float64), torch.linspace(-1, 1, 9, dtype=torch.float64))
    _, r, errors = sparse_dictionary(u, 1 / 9, rounds=5)
    assert r.isfinite().all() and errors[-1] < 0.8 * plain_error(u, 1 / 9)
    assert sparse_dictionary(torch.zeros(5, 4).double(), 0.5)[2][-1] == 0


def test_a_trained_network_starts_from_the_dictionary_with_the_masks_that_go_with_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).double()
    plain = torch.cat([net[i].weight.reshape(-1, 9).detach() for i in (0, 2)])
    report = prunus.interspace_(net, "coarse", dictionary(0.2))
    assert report.error == pytest.approx(sparse_dictionary(plain, 0.2)[2][-1] / float(plain.norm()), rel=1e-9)
    assert report.error < plain_error(plain, 0.2) / float(plain.norm())
    nonzero = sum(int(coefficients(net[i]).count_nonzero()) for i in (0, 2))
    assert nonzero == int(0.2 * plain.numel())
    groups = prunus.tensors(net)
    assert prunus.mask_(net, groups, groups.plan(groups.alive_weights())).density == pytest.approx(0.2, abs=1e-3)


def test_a_density_out_of_range_is_refused():
    for density in (0, -0.1, 1.5):
        with pytest.raises(InputError, match="a number in .0, 1."):
            sparse_dictionary(gaussian(), density)
