r"""How alike units are where layers read them, by all that makes them on the way there.

What a tensor carries of a unit is followed as a vector :math:`f_u`, of which only inner products are needed:

================================  ==============================================================================
a layer that makes units          :math:`f_u` is its filter
its bias, the shift of a norm     a constant :math:`c_u`, one more entry of :math:`f_u` from the next nonlinearity on
a norm's scale, a depthwise       :math:`f_u \otimes v_u` and :math:`c_u \sum v_u`: factors in series multiply
kernel :math:`v_u` in series
a sum                             the vectors beside each other; constants are added
a product of activations          :math:`f_u \otimes f_u'`
================================  ==============================================================================

So :math:`f_h = t f_k` where all that makes a unit is a multiple of what makes the other, whatever lies in series, and
an identity in series changes nothing.  Behind a function that is bounded, such as a sigmoid, no multiple is alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.core import Group, Groups, Operator, Slice
from prunus.core.operators import alike
from prunus.core.series import OF_ITSELF, SHIFTS, Way, multiplies

NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
BOUNDED = {"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "tanh", "tanh_"}
LINEAR = {  # a constant on top of what varies is one behind them
    *("add", "add_", "sub", "sub_", "cat", "view", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand"),
    *("alias", "detach", "clone", "contiguous", "_to_copy", "split", "split_with_sizes", "chunk", "unbind"),
}


@dataclass(frozen=True, eq=False)
class Likeness:
    """What a tensor carries of the units of a group, channel by channel of a unit.

    Attributes:
        pairs: numbers of the removed units ``(r,)`` and of the kept ones ``(k,)``.
        products: ``(m, r, k)``, inner products of a removed and a kept unit.
        squares: ``(m, units)``, of every unit with itself.
        shift: ``(m, units)``, a constant on top.
    """

    pairs: tuple[Tensor, Tensor]
    products: Tensor
    squares: Tensor
    shift: Tensor

    @staticmethod
    def of(pairs: tuple[Tensor, Tensor], rows: Tensor) -> Likeness:
        """Of vectors ``(units, m, n)``."""
        rows = rows.transpose(0, 1)
        squares = rows.square().sum(-1)
        return Likeness(pairs, rows[:, pairs[0]] @ rows[:, pairs[1]].mT, squares, torch.zeros_like(squares))

    @property
    def absorbed(self) -> Likeness:
        """The constant as one more entry of the vectors."""
        products = self.shift[:, self.pairs[0], None] * self.shift[:, None, self.pairs[1]]
        shift = torch.zeros_like(self.shift)
        return Likeness(self.pairs, self.products + products, self.squares + self.shift.square(), shift)

    @property
    def whole(self) -> Likeness:
        """All channels of a unit as one."""
        a = self.absorbed
        return Likeness(a.pairs, *(t.sum(0, keepdim=True) for t in (a.products, a.squares, a.shift)))

    @property
    def bent(self) -> Likeness:
        """Behind a nonlinearity, where what pointed away from each other has nothing in common."""
        a = self.absorbed
        return replace(a, products=a.products.clamp(min=0))

    @property
    def bounded(self) -> Likeness:
        r"""$2 f_h^T f_k / (f_h^T f_h + f_k^T f_k)$: one where units are equal, less where they are multiples."""
        a = self.bent
        sizes = a.squares[:, a.pairs[0], None] + a.squares[:, None, a.pairs[1]]
        return replace(a, products=torch.where(sizes > 0, 2 * a.products / sizes, 1.0), squares=a.squares * 0 + 1)

    @property
    def normed(self) -> Likeness:
        """Behind a division of each channel by its own spread: vectors of length one, without the constant."""
        sizes = self.squares.clamp(min=torch.finfo(self.squares.dtype).tiny).sqrt()
        products = self.products / sizes[:, self.pairs[0], None] / sizes[:, None, self.pairs[1]]
        return Likeness(self.pairs, products, self.squares / sizes.square(), torch.zeros_like(self.shift))

    def scaled(self, rows: Tensor) -> Likeness:
        """In series with kernels or scales ``(units, m, n)``."""
        a, b = _matched(self, Likeness.of(self.pairs, rows))
        shift = a.shift * (rows.sum(-1).mT if rows.shape[1] == len(b.squares) else rows.sum((1, 2))[None])
        return Likeness(a.pairs, a.products * b.products, a.squares * b.squares, shift)

    def times(self, other: Likeness) -> Likeness:
        """The product of two activations, over its mean size, which is the same for all units."""
        a, b = _matched(self.absorbed, other.absorbed)
        products, squares = a.products * b.products, a.squares * b.squares
        size = squares.mean().clamp(min=torch.finfo(squares.dtype).tiny)
        return Likeness(a.pairs, products / size, squares / size, torch.zeros_like(squares))

    def plus(self, other: Likeness) -> Likeness:
        """The sum of two tensors."""
        a, b = _matched(self, other)
        return Likeness(a.pairs, a.products + b.products, a.squares + b.squares, a.shift + b.shift)

    def shifted(self, rows: Tensor) -> Likeness:
        """With constants ``(units, m)`` added."""
        nothing = Likeness.of(self.pairs, torch.zeros_like(rows)[..., None])
        return self.plus(replace(nothing, shift=rows.mT))


def _matched(a: Likeness, b: Likeness) -> tuple[Likeness, Likeness]:
    """Both as they are where the channels of a unit are as many, or one channel goes with all; else as one channel."""
    return (a, b) if len({len(a.squares), len(b.squares)} - {1}) < 2 else (a.whole, b.whole)


class Read:
    """What layers read of the units of a group.

    Attributes:
        readers: the slices that read, and how alike the units are there; of a weight of several calls, over them all.
    """

    def __init__(self, model: nn.Module, groups: Groups, group: Group, kept: Tensor) -> None:
        self.model, self.group = model, group
        self.pairs = ((~kept).nonzero().flatten(), kept.nonzero().flatten())
        self.way = way = Way(groups, group)
        flows: dict[int, Likeness] = {}
        found: dict[tuple[int, int], tuple[Slice, Likeness]] = {}
        for _, op in way.operators:
            given = [flows[n] for n in op.reads if n in flows]
            passes = way.passes(op)
            if given and not passes:
                taken = summed([one.whole for one in given])
                for key, s in {(id(s.tensor), s.dim): s for s in way.read_by(op)}.items():
                    found[key] = (s, found[key][1].plus(taken) if key in found else taken)
            if way.writes(op):
                made = self._made(op, given if passes else [])
                on = [n for n, axes in zip(op.writes, op.axes) if way.on(axes)]
                flows.update(
                    zip(on, divided(made, len(on) if op.name in ("split", "split_with_sizes", "chunk") else 1))
                )
        self.readers = tuple(found.values())

    def _made(self, op: Operator, given: list[Likeness]) -> Likeness:
        """What comes out of an operator that the units go through, or begin at."""
        own = [s for name in op.weights for s in self.way.slices_of(name) if s.role not in ("in", "index")]
        if any(kind in op.name for kind in NORMS) and given:
            return self._normed(op, own, given)
        own = [s for s in own if s.role != "stat"]
        nothing = Likeness.of(self.pairs, torch.zeros(self.group.units, 1, 1, dtype=torch.float64))
        adds = op.name.rstrip("_") in ("add", "sub")
        flow = (product if multiplies(op) else summed)(given) if given else None
        if op.name in OF_ITSELF and flow is not None:
            value, gate = divided(flow, 2) if op.name == "glu" else (flow, flow)
            flow = value.times(gate.bounded if op.name == "glu" else gate)
        for s in (s for s in own if s.role not in SHIFTS):
            v = rows(s)
            if flow is None or adds:
                flow = Likeness.of(self.pairs, v).plus(flow or nothing)
            elif s.role == "depthwise" or multiplies(op):
                flow = flow.scaled(1 / v if op.name.startswith("div") else v)
            else:  # slopes and the like have to be equal
                flow = flow.bent.scaled(torch.cat([torch.ones_like(v[..., :1]), v], 2))
        flow = flow or nothing
        for s in (s for s in own if s.role in SHIFTS):
            flow = flow.shifted(rows(s).sum(2) * (-1 if op.name.startswith("sub") else 1))
        if own or alike(op.name) in LINEAR:
            return flow
        return flow.bounded if op.name in BOUNDED else flow.bent

    def _normed(self, op: Operator, own: Sequence[Slice], given: list[Likeness]) -> Likeness:
        """Behind a norm that every channel has for itself, by its statistics or by those of the input."""
        of = {s.role if s.role != "stat" else s.name.rpartition(".")[2]: rows(s).sum(2) for s in own}
        flow, one = summed(given), torch.ones(1, 1, dtype=torch.float64)
        scale, shift = of.get("norm_scale", one), of.get("norm_shift", 0 * one)
        if "running_var" in of:
            scale = scale * (of["running_var"] + getattr(self.model.get_submodule(op.module), "eps", 1e-5)).rsqrt()
            shift = shift - scale * of["running_mean"]
        else:
            flow = flow.normed
        scale, shift = (values.expand(self.group.units, -1) for values in (scale, shift))
        return flow.scaled(scale[..., None]).shifted(shift)


def rows(s: Slice) -> Tensor:
    """A slice in float64, channel by channel of a unit: ``(units, m, n)``."""
    return s.weight.double().cpu().reshape(len(s.index), s.index.shape[1], -1)


def summed(flows: Sequence[Likeness]) -> Likeness:
    """The sum of tensors, or one beside the other."""
    total = flows[0]
    for one in flows[1:]:
        total = total.plus(one)
    return total


def product(flows: Sequence[Likeness]) -> Likeness:
    """The product of tensors."""
    total = flows[0]
    for one in flows[1:]:
        total = total.times(one)
    return total


def divided(flow: Likeness, parts: int) -> list[Likeness]:
    """The channels of a unit in equal parts; all of them for each where they cannot be divided."""
    m = len(flow.squares)
    if parts < 2 or m % parts:
        return [flow] * max(parts, 1)
    pieces = [slice(i * (m // parts), (i + 1) * (m // parts)) for i in range(parts)]
    return [Likeness(flow.pairs, flow.products[p], flow.squares[p], flow.shift[p]) for p in pieces]
