"""Operators that no rule knows: labels pass where running them shows that they may, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.tracing.probe import learn
from tests.tracing.test_random_networks import zeroed_by_hand

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ORDER = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])


def curve(x: Tensor) -> Tensor:
    return x**3 + x.sigmoid() + 1


def flip(x: Tensor) -> Tensor:
    return x.flip(1)


def pool(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 2)


def fold(x: Tensor) -> Tensor:
    """Space into channels: every channel becomes four, one after another."""
    return nn.functional.pixel_unshuffle(x, 2)


def permute(x: Tensor) -> Tensor:
    return x[:, ORDER]


def mix(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def sort(x: Tensor) -> Tensor:
    return x[:, x.mean((0, 2, 3)).argsort()]


def count(x: Tensor) -> Tensor:
    return x * torch.arange(x.shape[1]).view(1, -1, 1, 1)


def share(x: Tensor) -> Tensor:
    return x / x.shape[1]


def half(x: Tensor) -> Tensor:
    return torch.cat([x[:, : x.shape[1] // 2]] * 2, 1)


def first(x: Tensor) -> Tensor:
    """Untouched but for the first channel."""
    return torch.cat([2 * x[:, :1], x[:, 1:]], 1)


PASS = {flip: 8, curve: 8, pool: 8, fold: 8}
STAY = (permute, mix, sort, count, share, half, first)
SCHEMA = "(Tensor x) -> Tensor"


def registered(f):
    return torch.library.custom_op(f"prunus_probe::{f.__name__}", lambda x: f(x), mutates_args=(), schema=SCHEMA)


OPERATORS = {f: registered(f) for f in (*PASS, *STAY)}


@torch.library.custom_op("prunus_probe::sized", mutates_args=())
def sized(x: Tensor, channels: int) -> Tensor:
    return x.reshape(x.shape[0], channels, -1).cumsum(2).reshape(x.shape)


@torch.library.custom_op("prunus_probe::both", mutates_args=())
def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x * y, x - y


@torch.library.custom_op("prunus_probe::partly", mutates_args=())
def partly(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two results, of which the second counts the channels."""
    return x + 1, count(x)


@torch.library.custom_op("prunus_probe::crossed", mutates_args=())
def crossed(x: Tensor, y: Tensor) -> Tensor:
    return x + y.flip(1)


@torch.library.custom_op("prunus_probe::write", mutates_args=("x",))
def write(x: Tensor) -> None:
    x.mul_(2)


class Net(nn.Module):
    """Two convolutions with an operator between them and a third behind."""

    def __init__(self, function, width: int = 8) -> None:
        super().__init__()
        self.function, self.width = function, width
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self, x))


def cut(net: Net) -> prunus.Groups:
    """Trace, cut, and compare with the original in which the removed units are zero."""
    groups = prunus.trace(net, X)
    keep = torch.ones(groups.units, dtype=torch.bool)
    for group in groups:
        keep[group.offset + torch.tensor([0, 3, 4])] = False
    expected = zeroed_by_hand(net, groups, keep)(X.double())
    prunus.shrink_(net, groups, groups.plan(keep))
    assert torch.allclose(net.double()(X.double()), expected, rtol=1e-9, atol=1e-12)
    return groups


def sizes(groups: prunus.Groups) -> dict[str, int]:
    return {g.id: g.units for g in groups}


def said(groups: prunus.Groups, what: str) -> str:
    return next((f.why for f in groups.fixed if f.what.partition(":")[0] == what or f.what == what), "")


@pytest.mark.parametrize("function", PASS, ids=lambda f: f.__name__)
def test_units_pass_where_each_row_comes_from_one(function):
    groups = cut(Net(lambda s, x: OPERATORS[function](s.a(x)), 32 if function is fold else 8))
    assert sizes(groups) == {"a": PASS[function]}
    assert said(groups, f"operator prunus_probe::{function.__name__}") == "no rule: its index map was learnt by runs"
    columns = next(s.index.tolist() for g in groups for s in g.slices if s.name == "c.weight")
    each = {flip: [[7 - k] for k in range(8)], fold: [list(range(4 * k, 4 * k + 4)) for k in range(8)]}
    assert columns == each.get(function, [[k] for k in range(8)])


@pytest.mark.parametrize("function", STAY, ids=lambda f: f.__name__)
def test_units_stay_where_rows_are_mixed_counted_or_moved_by_number(function):
    groups = prunus.trace(Net(lambda s, x: OPERATORS[function](s.a(x))), X)
    name = f"prunus_probe::{function.__name__}"
    assert sizes(groups) == {}
    assert said(groups, f"operator {name}") == "no rule: what it touches is left alone"
    assert said(groups, "a") == f"the operator {name} has no rule"


@pytest.mark.parametrize("function", [count, share, first], ids=lambda f: f.__name__)
def test_a_map_is_not_believed_on_values_that_hide_the_difference(function):
    """Zeros are counted, shared and scaled alike: other values are tried as well."""
    x = torch.zeros(2, 8, 3, 3)
    assert (0, 1) not in learn(OPERATORS[function]._opoverload, (x,), {}, [(0, 1)])


def test_a_size_among_the_arguments_stays():
    groups = prunus.trace(Net(lambda s, x: sized(s.a(x), s.width)), X)
    assert sizes(groups) == {} and "prunus_probe::sized has no rule" in said(groups, "a")


def test_two_operands_that_meet_are_cut_alike():
    groups = cut(Net(lambda s, x: sum(both(s.a(x), s.b(x)))))
    assert sizes(groups) == {"a": 8}
    assert {s.name for s in groups["a"].with_role("out")} == {"a.weight", "b.weight"}


def test_operands_that_meet_in_another_order_stay():
    assert sizes(prunus.trace(Net(lambda s, x: crossed(s.a(x), s.b(x))), X)) == {}


def test_one_result_that_counts_spoils_the_other():
    assert sizes(prunus.trace(Net(lambda s, x: partly(s.a(x))[0]), X)) == {}


def test_what_an_operator_writes_in_place_stays():
    def forward(s, x):
        write(y := s.a(x))
        return y

    groups = prunus.trace(Net(forward), X)
    assert sizes(groups) == {} and "prunus_probe::write has no rule" in said(groups, "a")
