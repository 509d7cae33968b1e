"""Importance of the features before the classifier, carried back through the absolute weights of the network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.core import Groups, InputError
from prunus.core.operators import SILENT, plain_name
from prunus.core.replay import Replay
from prunus.observe.activations import maps
from prunus.observe.base import Seen, collectors
from prunus.observe.gate import per_sample
from prunus.observe.layers import Layer, onto_units, output_axis, readers, split_units
from prunus.observe.unsigned import identity, norm_factor

ALPHA = 0.5  # of the spread of features, the rest is how little they go together
DECAY = 0.9  # of the largest factor with which paths of any length still have a finite sum
NORMS = {"native_layer_norm": 2, "native_group_norm": 1}  # by their own statistics; which argument is the weight
LARGEST = 1e100  # importances are divided by the largest above it


@dataclass(frozen=True, eq=False)
class Call:
    """One ATen call of forward: its function, what went in and came out, and the layer that it is, if any."""

    function: Any
    args: Any
    kwargs: Any
    out: Any
    number: int | None  # of the traced operator
    layer: Layer | None
    place: tuple[int, int] | None  # of what a layer reads: its memory, and how often that had been written to


class Tape(Replay):
    """Keeps every call of a forward."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen.groups.operators, seen.groups.of_calls((seen.call,)))
        self.calls: list[Call] = []
        self._weights, self._traced = seen.weights(), seen.groups.operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        at = self.at
        number = self.steps[at] if at < len(self.steps) and plain_name(func) not in SILENT else None
        layer = None if number is None else self._weights.layer(self._traced[number], args)
        place = None if layer is None else (layer.x.untyped_storage().data_ptr(), layer.x._version)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append(Call(func, args, kwargs or {}, out, number, layer, place))
        return out


@collectors.register("propagated", of="group", one_call=True)
def propagated(seen: Seen) -> dict[str, Tensor]:
    r"""Importance of every unit for the features that the last layer reads, ``(samples, units)``; 1 a group in sum.

    .. math:: s_l = |W_{l+1}|^T s_{l+1}

    where layers read the unit, behind norm and activation: what comes back through all layers that read the same, then
    the mean over the places where the unit is read.  Of units that no layer reads (queries, keys) at the outputs of the
    layers that make them.  It starts with the ranking of the last features by `infinite_selection`, and goes one step
    back through every operator that was run: layers, batch norms and products by their absolute factors, activations as
    the identity, a maximum to where it was taken, an average evenly, a sum to all of its parts.
    Source: Yu et al., "NISP", CVPR 2018, eq. 17-20.
    """
    groups = seen.groups
    ranked = infinite_selection(_features(seen))
    importance = ranked if bool(ranked.any()) else torch.ones_like(ranked)  # no feature varies: none tells more
    read = readers(groups)
    found, tape = list[tuple[Tensor, Tensor]](), Tape(seen)

    def watch() -> Tape:
        nonlocal tape
        tape = Tape(seen)
        return tape

    with torch.no_grad():
        for _, _, size in seen.forwards(watch):
            places: dict[Any, Place] = {}
            for step in _back(tape.calls, importance, seen.model):
                of, axis = read.get(step.number), output_axis(groups, step.number)
                if of is not None and step.given is not None:
                    values = onto_units(per_sample(step.layer, step.given, size).cpu(), of, groups.units)
                    places[step.place] = Place(values, of, step.size).and_(places.get(step.place))
                if axis is not None and step.gave is not None:
                    of = groups.axes[axis]
                    values = onto_units(per_sample(step.layer, step.gave, size).cpu(), of, groups.units)
                    places[step.number] = Place(values, of, step.size)
            shares, known = _shares(groups, [p for at, p in places.items() if isinstance(at, tuple)], size)
            others, made = _shares(groups, [p for at, p in places.items() if isinstance(at, int)], size)
            found.append((torch.where(known, shares, others), known | made))
    return split_units(groups, found)


class Place(NamedTuple):
    """Importance ``(samples, units)`` where units `of` an axis are read or made, divided by ``exp(size)``."""

    values: Tensor
    of: Tensor
    size: float

    def and_(self, other: Place | None) -> Place:
        """What comes back to a place by two ways."""
        if other is None:
            return self
        return self._replace(values=self.values + other.values * math.exp(other.size - self.size))


def _shares(groups: Groups, places: list[Place], size: int) -> tuple[Tensor, Tensor]:
    """The mean over `places` of the shares ``(size, units)`` that units have in their group, and which have any."""
    family = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([g.units for g in groups]))
    total, count = torch.zeros(size, groups.units, dtype=torch.float64), torch.zeros(groups.units)
    for values, of, _ in places:
        sums = values.new_zeros(size, len(groups)).index_add_(1, family, values)
        total += values / sums[:, family].clamp(min=1e-300)
        count[of[of >= 0].unique()] += 1
    return total / count.clamp(min=1), count > 0


def infinite_selection(features: Tensor, alpha: float = ALPHA) -> Tensor:
    r"""Rank features by all paths through the graph of their pairs (Inf-FS): ``(samples, d)`` -> ``(d,)``.

    .. math:: A_{ij} = \alpha \max(\sigma_i, \sigma_j) + (1 - \alpha)(1 - |\rho_{ij}|), \qquad
        s = ((I - rA)^{-1} - I)\,\mathbf 1, \quad r = 0.9 / \rho(A)

    with the standard deviations scaled to [0, 1] and Spearman's rank correlation; a feature that never changes has
    nothing that others lack, and the second term 0.  Source: Roffo et al., "Infinite Feature Selection", ICCV 2015.

    Raises: `InputError` for fewer than two samples, and features that are not finite.
    """
    from scipy.stats import rankdata

    features = features.double().cpu()
    if len(features) < 2:
        raise InputError(f"features are ranked by how they vary: give at least 2 samples, not {len(features)}.")
    if not bool(features.isfinite().all()):
        raise InputError("what the last layer reads holds NaN or infinity: check the weights, and the data's scale.")
    spread = features.std(0)
    spread = (spread - spread.min()) / (spread.max() - spread.min()).clamp(min=1e-300)
    ranks = torch.from_numpy(rankdata(features.numpy(), axis=0))
    ranks = ranks - ranks.mean(0)
    norms = ranks.norm(dim=0)
    varies = norms > 0
    unit = ranks / torch.where(varies, norms, 1.0)
    apart = (1 - (unit.mT @ unit).abs()).clamp(min=0) * (varies[:, None] & varies)
    return all_paths(alpha * torch.maximum(spread[:, None], spread) + (1 - alpha) * apart)


def all_paths(adjacency: Tensor) -> Tensor:
    r"""Sum over paths of every length from each node, :math:`((I - rA)^{-1} - I)\,\mathbf 1`: ``(d, d)`` -> ``(d,)``.

    >>> all_paths(torch.tensor([[0., 1.], [1., 0.]], dtype=torch.float64)).round(decimals=9)
    tensor([9., 9.], dtype=torch.float64)
    """
    radius = torch.linalg.eigvalsh(adjacency).abs().max().clamp(min=1e-300)  # of a symmetric matrix
    ones = adjacency.new_ones(len(adjacency))
    return torch.linalg.solve(torch.eye(len(adjacency), dtype=adjacency.dtype) - DECAY / radius * adjacency, ones) - 1


def _features(seen: Seen) -> Tensor:
    """``(samples, d)``: what the last layer reads, the mean over positions."""
    found, groups = [], seen.groups
    tape = Tape(seen)

    def watch() -> Tape:
        nonlocal tape
        tape = Tape(seen)
        return tape

    with torch.no_grad():
        for _ in seen.forwards(watch):
            last = _last(tape.calls)
            rows = groups.operators[last.number or 0].shapes[0][0]
            if last.layer is not None:
                found.append(maps(last.layer, seen.example.batch, rows).double().mean(2))
    return torch.cat(found)


def _last(calls: list[Call]) -> Call:
    """The last call of a layer."""
    last = next((call for call in reversed(calls) if call.layer is not None), None)
    if last is None:
        raise InputError("the network calls no convolution and no linear layer: there are no features to start from.")
    return last


class Step(NamedTuple):
    """A layer that importance comes back through, and what it was given and gave, divided by ``exp(size)``."""

    layer: Layer
    number: int
    place: tuple[int, int] | None
    given: Tensor | None  # of what goes in, by this layer alone; None where that is no function of the inputs
    gave: Tensor | None  # of what comes out; None of the last layer
    size: float


def _back(calls: list[Call], importance: Tensor, model: nn.Module) -> Iterable[Step]:
    """Per layer, from the last to the first, the importance of its input and of its output."""
    last, size = _last(calls), 0.0
    assert last.layer is not None and last.number is not None
    fixed = _of_weights(calls, model)
    x = last.layer.x
    start = importance.to(x.device).reshape(-1, *[1] * (x.dim() - 2)).expand(x.shape).double().contiguous()
    yield Step(last.layer, last.number, last.place, start, None, size)
    pending = {id(x): start}
    for call in reversed(calls[: calls.index(last)]):
        outs = [t for t in tree_leaves(call.out) if isinstance(t, Tensor) and id(t) in pending]
        if not outs:
            continue
        slopes = {id(t): pending.pop(id(t)) for t in outs}
        most = max(float(s.max()) for s in slopes.values())
        if most > LARGEST:
            slopes, pending = ({k: s / most for k, s in some.items()} for some in (slopes, pending))
            size += math.log(most)
        before = _step(call, slopes, fixed)
        if call.layer is not None and call.number is not None:
            given = next((slope for t, slope in before if t is call.layer.x), None)
            yield Step(call.layer, call.number, call.place, given, slopes[id(outs[0])], size)
        for tensor, slope in before:
            pending[id(tensor)] = pending[id(tensor)] + slope if id(tensor) in pending else slope


def _of_weights(calls: list[Call], model: nn.Module) -> set[int]:
    """The tensors that are parameters, buffers, or made of those alone."""
    fixed = {id(t) for t in (*model.parameters(), *model.buffers())}
    stores = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    for call in calls:
        ins = [t for t in tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor)]
        if ins and all(id(t) in fixed or t.untyped_storage().data_ptr() in stores for t in ins):
            fixed.update(id(t) for t in tree_leaves(call.out) if isinstance(t, Tensor))
        fixed.update(id(t) for t in ins if t.untyped_storage().data_ptr() in stores)
    return fixed


def _step(call: Call, slopes: dict[int, Tensor], fixed: set[int]) -> list[tuple[Tensor, Tensor]]:
    """The importance of what went into a call, from that of what came out."""
    name = str(call.function._schema.name).removeprefix("aten::").rstrip("_")
    operands = [t for t in tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor)]
    moving = list({id(t): t for t in operands if id(t) not in fixed and t.is_floating_point()}.values())
    if not moving:
        return []
    outs = [t for t in tree_leaves(call.out) if isinstance(t, Tensor)]
    if identity(call.function, name) and len(operands) == 1 and outs[0].shape == moving[0].shape:
        return [(moving[0], slopes[id(outs[0])])]
    if name in NORMS:  # its statistics taken as given, as those of a batch norm
        weight = call.args[NORMS[name]]
        factor = norm_factor(name, moving[0], outs[2], None if weight is None else weight.detach())
        return [(moving[0], slopes[id(outs[0])] * factor)]
    return _pullback(call, name, moving, slopes)


def _pullback(call: Call, name: str, moving: list[Tensor], slopes: dict[int, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Through the derivative of the call with everything that multiplies absolute: nothing in it is negative."""
    pooling = "max" in name or "min" in name  # these look at values
    leaves: dict[int, Tensor] = {}
    for t in moving:
        leaves[id(t)] = (t if pooling else t.abs()).detach().double().requires_grad_()

    def operand(t: Tensor) -> Tensor:
        if id(t) in leaves:
            return leaves[id(t)] * 1  # it may be written to
        return t.detach().abs().double() if t.is_floating_point() else t

    with torch.enable_grad():
        args, kwargs = tree_map_only(Tensor, operand, (call.args, call.kwargs))
        again = tree_leaves(call.function(*args, **kwargs))
    pairs = [
        (new, slopes[id(old)])
        for new, old in zip(again, tree_leaves(call.out))
        if isinstance(old, Tensor) and id(old) in slopes and new.requires_grad
    ]
    if not pairs:
        return []
    found = torch.autograd.grad(
        [new for new, _ in pairs], list(leaves.values()), [slope for _, slope in pairs], allow_unused=True
    )
    return [(t, slope.abs()) for t, slope in zip(moving, found) if slope is not None]
