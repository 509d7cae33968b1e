"""Writing into views, constants of any size, and pieces of size one: the labels of the whole stay true."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from tests.tracing.test_random_networks import zeroed_by_hand

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers of 8 and 5 channels, a function of both, and a consumer of 8."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.low, self.high = function, 3, 8
        torch.manual_seed(0)
        self.a, self.b, self.c, self.g = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.c(self.function(self, self.a(x), self.b(x), x))


def added_to_a_view(s, a, b, x):
    a = a.clone()
    a[:, s.low :] += b
    return a


def written_beside(s, a, b, x):
    out = torch.zeros_like(a)
    out[:, : s.low] = a[:, : s.low]
    out[:, s.low :] = b
    return out + a


def written_into_zeros(s, a, b, x):
    out = a.new_zeros(a.shape[0], s.high, *a.shape[2:])
    out[:, s.low : s.high] = b
    return out * 2 + a


def written_into_nothing(s, a, b, x):
    out = a.new_empty(a.shape)
    out.copy_(a)
    out[:, s.low :].mul_(b)
    return out


def masked(s, a, b, x):
    return a.masked_fill_(a > 0, 0.5)


def masked_in_a_view(s, a, b, x):
    a = a.clone()
    a[:, s.low :].masked_fill_(b > 0, 0.5)
    return a


def put(s, a, b, x):
    a = a.clone()
    a[:, :, [0, 2]] = a[:, :, [1, 3]] * 3
    return a


def viewed(s, a, b, x):
    a = a.clone()
    a.view(a.shape[0], 2, -1, *a.shape[2:])[:, 1].mul_(3)
    return a


def transposed(s, a, b, x):
    a = a.clone()
    a.transpose(0, 1).add_(a.mean((0, 2, 3)).view(-1, 1, 1, 1))
    return a


def expanded(s, a, b, x):
    gate = s.g(x.mean((2, 3), keepdim=True)).expand(-1, s.high, -1, -1)
    return a * gate + gate


def expanded_like(s, a, b, x):
    return s.g(x).expand_as(a) + a


def one_row(s, a, b, x):
    a = a.clone()
    a[:, 2:3] = a[:, 2:3] * s.g(x)
    return a


def one_row_elsewhere(s, a, b, x):
    a = a.clone()
    a[:, 2:3] = b[:, 1:2]
    return a


def one_row_repeated(s, a, b, x):
    return a * b[:, 1:2]


def one_row_expanded(s, a, b, x):
    return a + b[:, 1:2].expand(-1, s.high, -1, -1)


def by_number(s, a, b, x):
    a = a.clone()
    a[:, 2] = b[:, 1]
    return a


def by_numbers(s, a, b, x):
    a = a.clone()
    a.index_copy_(1, torch.tensor([1, 4, 5, 2, 0]), b)
    return a


EACH, PIECES = {"a": 8, "b": 5}, {"a": 3, "a#2": 5}  # b is written to, or with, the last five of a
FREE = {  # the groups that are left: units whose places the code counts by numbers of its own stay
    added_to_a_view: PIECES,
    written_beside: {"a": 5},  # the layer g, which it does not visit, might read three channels
    written_into_zeros: PIECES,
    written_into_nothing: PIECES,
    masked: EACH,
    masked_in_a_view: PIECES,
    put: EACH,
    viewed: {"a": 4, "b": 5},
    transposed: EACH,
    expanded: EACH,
    expanded_like: EACH,
    one_row: {"a": 5, "b": 5},
    one_row_elsewhere: {"a": 5, "b": 3},
    one_row_repeated: {"a": 8, "b": 3},
    one_row_expanded: {"a": 8, "b": 3},
    by_number: {},
    by_numbers: {},
}


@pytest.mark.parametrize("function", FREE, ids=lambda f: f.__name__)
def test_what_is_written_is_cut_with_what_it_is_written_to(function):
    groups = prunus.trace(Net(function), X)
    assert {g.id: g.units for g in groups} == FREE[function]
    for seed in range(3):
        keep = torch.rand(groups.units, generator=torch.Generator().manual_seed(seed)) < 0.6
        keep[[g.offset for g in groups]] = True
        model = Net(function).eval()
        expected = zeroed_by_hand(model, groups, keep)(X.double())
        report = prunus.shrink_(model, groups, groups.plan(keep))
        assert torch.allclose(report.model.double()(X.double()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("function", [one_row_repeated, one_row_expanded], ids=lambda f: f.__name__)
def test_a_piece_of_size_one_that_is_repeated_stays_whatever_the_code_allows(function):
    groups = prunus.trace(Net(function), X, in_place=False)
    assert {g.id: g.units for g in groups} == {"a": 8, "b": 4}
    assert 1 not in groups["b"].with_role("out")[0].index
