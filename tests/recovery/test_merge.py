"""Merging changes nothing where units are multiples of others, whatever lies in series, nor does an identity there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.recovery import merge_
from prunus.recovery.alike import Likeness, Read
from prunus.recovery.merge import nearest
from tests.contract.test_series import PLACES, Inverted, identity

COPY, OF = 4, 1  # the unit that is a multiple, and of which


class Net(nn.Module):
    """Layers by name, and a forward of them: images (N, 3, 4, 4), or tokens (N, 5, 8), -> (N, 3)."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.1)
                    if tensor.dim() > 1:
                        tensor.sub_(0.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(into: int, out: int, kernel: int = 1, **more: Any) -> nn.Module:
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, **more)


def images() -> Tensor:
    return torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def multiply_(net: nn.Module, chain: Sequence[tuple[str, float]], units: int = 6) -> None:
    """Make the copy of a unit by layers in series, each of which multiplies what comes of it by a factor of its own."""
    total = 1.0
    for name, factor in chain:
        layer = getattr(net, name)
        shared = layer if isinstance(layer, nn.Parameter) else layer.weight
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            mean, var = (unit_of(t, 0, units) for t in (layer.running_mean, layer.running_var))
            mean[COPY], var[COPY] = total * mean[OF], 2 * var[OF]
            grown = ((var[COPY] + layer.eps) / (var[OF] + layer.eps)).sqrt()
            unit_of(layer.weight, 0, units)[COPY] = factor * grown * unit_of(layer.weight, 0, units)[OF]
        else:
            rows = unit_of(shared, 2 if name == "at" else 0, units)
            rows[COPY] = factor * rows[OF]
        total = total * factor if not isinstance(layer, nn.InstanceNorm2d) else factor
        if getattr(layer, "bias", None) is not None:
            bias = unit_of(layer.bias, 0, units)
            bias[COPY] = total * bias[OF]


def unit_of(tensor: Tensor, dim: int, units: int) -> Tensor:
    """A view whose first dimension is the units, each with all of its rows."""
    return tensor.movedim(dim, 0).unflatten(0, (units, -1))


def pooled(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.mean((2, 3)))


def bn() -> nn.Module:
    return nn.BatchNorm2d(6)


def residual(m: Any, x: Tensor) -> Tensor:
    x = m.n(m.a(x)).relu()
    return pooled(m.fc, (x + m.nc(m.c(m.b(x).relu()))).relu())


def attention(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.out((m.q(x) @ m.k(x).mT).softmax(-1) @ m.v(x)).mean(1))


def squeezed(m: Any, x: Tensor) -> Tensor:
    x = m.n(m.a(x)).relu()
    return pooled(m.fc, m.b(x * m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()).relu())


def two_readers(m: Any, x: Tensor) -> Tensor:
    x = m.a(x).relu()
    return pooled(m.fc, m.b(x)) + pooled(m.fc2, m.d(x).relu())


# a network, its inputs, the group, and by which factors a unit of it is a multiple of another
CASES: dict[str, tuple[Callable[[], Net], Callable[[], Tensor], str, list[list[tuple[str, float]]]]] = {
    "plain": (
        lambda: Net(lambda m, x: pooled(m.fc, m.n(m.a(x)).relu()), a=conv(3, 6), n=bn(), fc=nn.Linear(6, 3)),
        images, "a", [[("a", 2.0), ("n", 3.0)]],
    ),
    "depthwise": (
        lambda: Net(lambda m, x: pooled(m.fc, m.e(m.d(m.n(m.a(x)).relu()).relu())), a=conv(3, 6), n=bn(),
                    d=conv(6, 6, 3, groups=6), e=conv(6, 6, 3, groups=6, bias=False), fc=nn.Linear(6, 3)),
        images, "a", [[("a", 2.0), ("n", 3.0), ("d", 0.5), ("e", 4.0)]],
    ),
    "norms": (
        lambda: Net(lambda m, x: pooled(m.b, m.n3(m.n2(m.n(m.a(x))).relu())), a=conv(3, 6), n=bn(), n2=bn(), n3=bn(),
                    b=nn.Linear(6, 3)),
        images, "a", [[("a", 2.0), ("n", 2.0), ("n2", 3.0), ("n3", 0.7)]],
    ),
    "residual": (
        lambda: Net(residual, a=conv(3, 6), n=bn(), b=conv(6, 5), c=conv(5, 6, bias=False), nc=bn(),
                    fc=nn.Linear(6, 3)),
        images, "a", [[("a", 2.0), ("n", 3.0)], [("c", 4.0), ("nc", 1.5)]],
    ),
    "two readers": (
        lambda: Net(two_readers, a=conv(3, 6), b=conv(6, 5), d=conv(6, 6, 3, groups=6), fc=nn.Linear(5, 3),
                    fc2=nn.Linear(6, 3)),
        images, "a", [[("a", 2.0), ("d", 3.0)]],
    ),
    "flat": (
        lambda: Net(lambda m, x: m.fc(m.n(m.a(x).relu().flatten(1))), a=conv(3, 6), n=nn.BatchNorm1d(96),
                    fc=nn.Linear(96, 3)),
        images, "a", [[("a", 2.0), ("n", 3.0)]],
    ),
    "scale": (
        lambda: Net(lambda m, x: pooled(m.fc, m.g * m.p(m.a(x))), a=conv(3, 6), p=nn.PReLU(6),
                    g=nn.Parameter(torch.ones(6, 1, 1)), fc=nn.Linear(6, 3)),
        images, "a", [[("p", 1.0)], [("a", 2.0), ("g", 3.0)]],
    ),
    "divisor": (
        lambda: Net(lambda m, x: pooled(m.fc, m.a(x).relu() / m.g), a=conv(3, 6), g=nn.Parameter(torch.ones(6, 1, 1)),
                    fc=nn.Linear(6, 3)),
        images, "a", [[("a", 2.0)], [("g", 0.25)]],
    ),
    "instance norm": (
        lambda: Net(lambda m, x: pooled(m.fc, m.n(m.a(x)).relu()), a=conv(3, 6),
                    n=nn.InstanceNorm2d(6, eps=0.0, affine=True), fc=nn.Linear(6, 3)),
        images, "a", [[("a", 2.0), ("n", 3.0)]],
    ),
    "squeeze": (
        lambda: Net(squeezed, a=conv(3, 6), n=bn(), down=conv(6, 4), up=conv(4, 6), b=conv(6, 5), fc=nn.Linear(5, 3)),
        images, "a", [[("a", 2.0), ("n", 3.0)], [("up", 1.0)]],
    ),
    "attention": (
        lambda: Net(attention, q=nn.Linear(8, 6), k=nn.Linear(8, 6), v=nn.Linear(8, 6), out=nn.Linear(6, 4),
                    fc=nn.Linear(4, 3)),
        tokens, "v", [[("v", 2.0)]],
    ),
    "gated": (
        lambda: Net(lambda m, x: m.fc(m.down(F.relu(m.gate(x)) * m.up(x)).mean(1)), gate=nn.Linear(8, 6),
                    up=nn.Linear(8, 6), down=nn.Linear(6, 4), fc=nn.Linear(4, 3)),
        tokens, "gate", [[("gate", 2.0)], [("up", 3.0)]],
    ),
    "positions": (
        lambda: Net(lambda m, x: m.fc((m.a(x) + m.at).relu().mean(1)), a=nn.Linear(8, 6),
                    at=nn.Parameter(torch.ones(1, 5, 6)), fc=nn.Linear(6, 3)),
        tokens, "a", [[("a", 2.0)], [("at", 2.0)]],
    ),
}  # fmt: skip


def removed(groups: prunus.Groups, id: str, *units: int) -> prunus.Plan:
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[[groups[id].offset + unit for unit in units]] = False
    return groups.plan(keep)


@pytest.mark.parametrize("name", CASES)
def test_a_multiple_of_another_unit_is_merged_without_a_change(name: str) -> None:
    make, draw, id, chains = CASES[name]
    net, x = make(), draw()
    for chain in chains:
        multiply_(net, chain)
    before = net(x).detach()
    groups = prunus.trace(net, x)
    plan = removed(groups, id, COPY)
    plain = copy.deepcopy(net)
    prunus.shrink_(plain, groups.bind(plain), plan)
    assert (plain(x) - before).abs().max() > 1e-3 * before.abs().max()
    done = merge_(net, groups, plan)
    assert (done.units, done.groups, done.notes) == (1, 1, ())
    prunus.shrink_(net, groups, plan)
    torch.testing.assert_close(net(x).detach(), before, rtol=1e-11, atol=1e-12)


def test_weights_that_forward_computes_make_units_as_layers_read_them() -> None:
    net = Net(lambda m, x: pooled(m.fc, m.a(x).relu()), a=conv(3, 6), fc=nn.Linear(6, 3))
    nn.utils.parametrizations.weight_norm(net.a)
    with torch.no_grad():
        net.a.bias[COPY] = 3 * net.a.bias[OF]
        net.a.parametrizations.weight.original0[COPY] = 3 * net.a.parametrizations.weight.original0[OF]
        net.a.parametrizations.weight.original1[COPY] = 7 * net.a.parametrizations.weight.original1[OF]
    x, before = images(), net(images()).detach()
    groups = prunus.trace(net, x)
    plan = removed(groups, groups[0].id, COPY)
    assert merge_(net, groups, plan).units == 1
    prunus.shrink_(net, groups, plan)
    torch.testing.assert_close(net(x).detach(), before, rtol=1e-11, atol=1e-12)


# in front of norms, behind them, behind activations; everywhere; a 1x1 right before what reads, else units are others
KINDS = [(kind, tuple(range(first, PLACES, 3))) for kind in ("depthwise", "norm") for first in range(3)]
KINDS += [("depthwise", tuple(range(PLACES))), ("norm", tuple(range(PLACES))), ("pointwise", (8,))]


@cache
def halved(kind: str = "", places: tuple[int, ...] = ()) -> Tensor:
    """Outputs of a network with identities in series that lost half of its units, merged with the others."""
    net, draw = Inverted().double().eval(), torch.Generator().manual_seed(2)
    for tensor in net.buffers():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.2)
    for place in places:
        net.places[place] = identity(kind, 4 if place < 3 else 5).double().eval()
    x = torch.randn(3, 3, 6, 6, generator=draw, dtype=torch.float64)
    groups = prunus.trace(net, x)
    plan = groups.plan(groups.mask(removed(groups, "stem", 1, 3)) & groups.mask(removed(groups, "a", 0, 2)))
    assert merge_(net, groups, plan).groups == 2
    prunus.shrink_(net, groups, plan)
    return net(x).detach()


@pytest.mark.parametrize(("kind", "places"), KINDS, ids=lambda v: v if isinstance(v, str) else "".join(map(str, v)))
def test_an_identity_in_series_changes_nothing(kind: str, places: tuple[int, ...]) -> None:
    torch.testing.assert_close(halved(kind, places), halved(), rtol=1e-10, atol=1e-12)


def alike(*rows: list[float]) -> Likeness:
    """Of two units with one channel, of which the second is removed."""
    return Likeness.of((torch.tensor([1]), torch.tensor([0])), torch.tensor(rows, dtype=torch.float64)[:, None])


def told(one: Likeness) -> list[float]:
    """The inner product of the two units, and of each with itself."""
    return [one.products.item(), *one.squares.flatten().tolist()]


def test_inner_products_by_hand() -> None:
    a, b = alike([1, 2], [3, -1]), alike([2, 0], [5, 1])
    assert told(a) == [1, 5, 10] and told(b) == [10, 4, 26]
    assert told(a.plus(b)) == [11, 9, 36] and told(a.scaled(torch.tensor([[[2.0, 0]], [[5, 1]]]))) == [10, 20, 260]
    assert told(a.times(b)) == pytest.approx([10 / 140, 20 / 140, 260 / 140])  # over their mean size
    shift = torch.tensor([[1.0], [2]])
    squares = [(5 + 1) * 4, (10 + 4) * 26]
    assert told(a.shifted(shift).times(b)) == pytest.approx([2 * v / sum(squares) for v in ((1 + 2) * 10, *squares)])
    assert told(alike([1], [-2]).bent) == [0, 1, 4] and told(a.bounded) == pytest.approx([2 / 15, 1, 1])
    assert told(alike([0], [0]).bounded) == [1, 1, 1]
    assert told(a.normed) == pytest.approx([1 / math.sqrt(50), 1, 1])


def test_constants_add_up_until_a_nonlinearity_and_go_through_kernels_by_their_sum() -> None:
    one = alike([1], [2]).shifted(torch.tensor([[3.0], [4]])).scaled(torch.tensor([[[1.0, 2]], [[1, -3]]]))
    assert told(one) == [2 * -5, 1 * 5, 4 * 10] and one.shift.flatten().tolist() == [9, -8]
    one = one.shifted(torch.tensor([[1.0], [2]]))
    assert told(one.absorbed) == [-10 + 10 * -6, 5 + 100, 40 + 36] and not one.absorbed.shift.any()
    assert told(one.bent) == [0, 105, 76]
    assert told(one.normed)[1:] == pytest.approx([1, 1]) and not one.normed.shift.any()


def test_channels_of_a_unit_go_by_themselves_or_as_one() -> None:
    pairs = torch.tensor([1]), torch.tensor([0])
    two = Likeness.of(pairs, torch.tensor([[[1.0], [2]], [[3], [5]]]))
    assert two.products.flatten().tolist() == [3, 10] and told(two.whole) == [13, 5, 34]
    assert two.scaled(torch.tensor([[[2.0], [3]], [[1], [1]]])).products.flatten().tolist() == [6, 30]
    three = Likeness.of(pairs, torch.ones(2, 3, 1))
    assert told(two.plus(three)) == [13 + 3, 5 + 3, 34 + 3]
    shifted = two.shifted(torch.tensor([[1.0, 2], [3, 4]]))
    assert told(shifted.whole) == [13 + 3 + 8, 5 + 1 + 4, 34 + 9 + 16]


def twice_gated(forward: Callable[[Any, Tensor], Tensor], first: float, second: float) -> tuple[Net, prunus.Groups]:
    """A network whose first layer makes two rows of every unit; those of the copy are multiples of another's."""
    net = Net(forward, both=nn.Linear(8, 12), fc=nn.Linear(6, 3))
    with torch.no_grad():
        for rows in (net.both.weight, net.both.bias):
            rows[COPY], rows[6 + COPY] = first * rows[OF], second * rows[6 + OF]
    return net, prunus.trace(net, tokens())


def by_sigmoid(m: Any, x: Tensor) -> Tensor:
    value, gate = m.both(x).chunk(2, -1)
    return m.fc((value.relu() * gate.sigmoid()).mean(1))


GATES = {
    "glu": (lambda m, x: m.fc(F.glu(m.both(x)).mean(1)), 3.0, 1.0),
    "sigmoid": (by_sigmoid, 3.0, 1.0),
    "bilinear": (lambda m, x: m.fc(torch.mul(*m.both(x).chunk(2, -1)).mean(1)), 3.0, 2.0),
}


@pytest.mark.parametrize("name", GATES)
def test_packed_gates_are_the_product_of_their_halves(name: str) -> None:
    net, groups = twice_gated(*GATES[name])
    x, before = tokens(), net(tokens()).detach()
    plan = removed(groups, "both", COPY)
    assert merge_(net, groups, plan).units == 1
    prunus.shrink_(net, groups, plan)
    torch.testing.assert_close(net(x).detach(), before, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["glu", "sigmoid"])
def test_a_gate_that_is_bounded_does_not_multiply_by_its_size(name: str) -> None:
    net, groups = twice_gated(GATES[name][0], 3.0, 5.0)
    ((_, one),) = Read(net, groups, groups["both"], torch.arange(6) != COPY).readers
    assert float(one.products[0, 0, OF] / one.squares[0, OF]) == pytest.approx(3 * 2 * 5 / (1 + 25))


def test_of_a_square_the_square_of_the_factor_counts() -> None:
    net = Net(lambda m, x: m.fc(m.a(x).relu().pow(2).mean(1)), a=nn.Linear(8, 6), fc=nn.Linear(6, 3))
    multiply_(net, [("a", 3.0)])
    groups = prunus.trace(net, tokens())
    ((_, one),) = Read(net, groups, groups["a"], torch.arange(6) != COPY).readers
    assert float(one.products[0, 0, OF] / one.squares[0, OF]) == pytest.approx(9)


def test_what_is_summed_over_units_leaves_them_alone() -> None:
    net = Net(lambda m, x: m.fc(m.a(x).relu()).mean(1) + m.a(x).relu().sum((1, 2))[:, None], a=nn.Linear(8, 6),
              fc=nn.Linear(6, 3))  # fmt: skip
    groups = prunus.trace(net, tokens())
    done = merge_(net, groups, removed(groups, "a", COPY))
    assert done.units == 0 and "runs over its units" in done.notes[0]


def likeness_of(net: Net, x: Tensor) -> Likeness:
    """What the one layer reads that reads units of a network; the kept ones are 0 and 1."""
    groups = prunus.trace(net, x)
    (group,) = (g for g in groups if g.with_role("in"))
    ((_, one),) = Read(net, groups, group, torch.arange(6) < 2).readers
    return one


def test_constants_go_through_views_sums_and_a_norm_by_hand() -> None:
    net = Net(lambda m, x: m.fc(m.n((m.a(x) + m.p - m.q).transpose(1, 2)).mean(2)), a=nn.Linear(8, 6),
              p=nn.Parameter(torch.ones(6)), q=nn.Parameter(torch.ones(6)), n=nn.BatchNorm1d(6),
              fc=nn.Linear(6, 3))  # fmt: skip
    scale = net.n.weight / (net.n.running_var + net.n.eps).sqrt()
    constant = scale * (net.a.bias + net.p - net.q - net.n.running_mean) + net.n.bias
    rows = torch.cat([scale[:, None] * net.a.weight, constant[:, None]], 1).detach()
    one = likeness_of(net, tokens())
    torch.testing.assert_close(one.squares[0], rows.square().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(one.products[0], (rows[2:] @ rows[:2].mT).clamp(min=0), rtol=1e-12, atol=1e-14)


def test_a_weight_that_reads_twice_counts_both() -> None:
    layers = {"a": nn.Linear(8, 6), "fc": nn.Linear(6, 3)}
    once = likeness_of(Net(lambda m, x: m.fc(m.a(x).relu().mean(1)), **layers), tokens())
    twice = likeness_of(Net(lambda m, x: m.fc(m.a(x).relu().mean(1)) + m.fc(m.a(x).relu().amax(1)), **layers), tokens())
    torch.testing.assert_close(twice.products, 2 * once.products)


def test_all_that_reads_chooses_the_unit() -> None:
    pairs, first = (torch.tensor([2]), torch.tensor([0, 1])), torch.ones(3, 1, 1)
    second = torch.tensor([[[1.0, 0]], [[0, 1]], [[0, 1]]])
    target, factors = nearest([Likeness.of(pairs, v) for v in (first, second)], 3)
    assert target.tolist() == [1] and factors.tolist() == [[1], [1]]
