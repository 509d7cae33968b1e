r"""Merging: what layers read of a removed unit, they read from the kept one that is most like it.

With :math:`f_u` what makes a unit (its filter, with bias and batch norm folded in; those of all layers that make it),

.. math:: W_{:,k} \mathrel{+}= \sum_{h \to k} t_h W_{:,h}, \qquad
    t_h = \max(0, f_h^T f_k / f_k^T f_k), \quad k = \arg\min_k \lVert f_h - t_h f_k \rVert .

Units that are equal, or positive multiples of each other before a ReLU, are merged without a change of the function.
It changes the weights before the cut, and so comes before its proof.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.core import Group, Groups, Plan, Slice
from prunus.core.checks import check_arguments
from prunus.core.undo import all_or_nothing, keep_values
from prunus.recovery.behind import readers


@dataclass(frozen=True, eq=False)
class Merged:
    """What `merge_` did: how many removed units were merged, in how many groups, and what is to be known of it.

    Attributes:
        units: how many removed units were added to others.
        groups: how many groups they are of.
        notes: groups that were left alone, and why.
    """

    units: int
    groups: int
    notes: tuple[str, ...]


@torch.no_grad()
def merge_(model: nn.Module, groups: Groups, plan: Plan) -> Merged:
    """Before `shrink_`: add what layers read of every unit that `plan` removes to what they read of a kept one.

    The kept unit is that of the same part whose makers are nearest in direction; where none points the same way,
    nothing is added, and the unit is only removed.  Groups over which a norm, a softmax or a product of activations
    runs are left out (a note says so): there a merged pair is not two units.

    Args:
        model: changed in place: the weights that read units of which some are merged.
        groups: what `prunus.trace` returned of `model`.
        plan: what is kept.

    Raises: `InputError` when the plan is of another network.

    Source: Srinivas & Babu, "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015; Ding et al.,
    "Centripetal SGD", CVPR 2019 (equal filters).

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.], [3.]])), net[2].weight.data.copy_(torch.tensor([[5., 7.]]))
    >>> groups = prunus.trace(net, torch.ones(1, 1))
    >>> plan = groups.plan(torch.tensor([True, False]))
    >>> merge_(net, groups, plan).units, net[2].weight.data                                     # 5 + 3 * 7
    (1, tensor([[26.,  7.]]))
    """
    check_arguments(locals())
    groups = groups.bind(model)
    keep = groups.mask(plan)
    found, notes = [], []
    for group in groups:
        kept = keep[group.offset : group.offset + group.units]
        if bool(kept.all()) or not group.with_role("in"):
            continue
        if group.computes("in", "out", "depthwise"):
            notes.append(f"group '{group.id}' was not merged: forward computes its weights from parameters")
            continue
        if _runs_over(groups, group):
            notes.append(f"group '{group.id}' was not merged: a norm, softmax or product runs over its units")
            continue
        found.append((group, *nearest(makers(model, groups, group), kept, group.parts)))
    with all_or_nothing(model):
        for group, source, target, factor in found:
            for s in {(id(s.tensor), s.dim): s for s in group.with_role("in")}.values():
                columns = s.weight.double().cpu()
                added = torch.zeros_like(columns).index_add_(0, target, factor[:, None] * columns[source])
                keep_values(s.tensor)
                s.tensor.add_(s.scatter(added).to(s.tensor))
        merged = [int((factor > 0).sum()) for _, _, _, factor in found]
        return Merged(sum(merged), sum(n > 0 for n in merged), tuple(notes))


def nearest(rows: Tensor, kept: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The removed units, the kept unit of the same part that each is nearest to in direction, and its factor.

    >>> nearest(torch.tensor([[1., 0.], [0., 1.], [0., 4.]]), torch.tensor([True, True, False]))
    (tensor([2]), tensor([1]), tensor([4.]))
    """
    source, stays = (~kept).nonzero().flatten(), kept.nonzero().flatten()
    part = torch.arange(len(rows)) // (len(rows) // parts)
    products = (rows[source] @ rows[stays].mT).clamp(min=0)  # (removed, kept)
    products = torch.where(part[source][:, None] == part[stays], products, 0.0)
    norms = rows[stays].square().sum(1).clamp(min=torch.finfo(rows.dtype).tiny)
    best = (products.square() / norms).argmax(1)
    return source, stays[best], products.gather(1, best[:, None])[:, 0] / norms[best]


def makers(model: nn.Module, groups: Groups, group: Group) -> Tensor:
    """What makes every unit, in float64: ``(units, n)``, layer by layer, with the batch norm behind a layer folded in.

    A norm that stands elsewhere counts by its scale and shift.
    """
    slices = {s.name: s for s in group.with_role("out", "bias", "depthwise", "norm_scale", "norm_shift", "stat")}
    rows, used = [], set[str]()
    for number, op in enumerate(groups.operators):
        named = dict.fromkeys((*op.parameters, f"{op.module}.weight", f"{op.module}.bias")) if op.macs else ()
        own = [slices[name] for name in named if name in slices and name not in used]
        weight = next((s for s in own if s.role in ("out", "depthwise")), None)
        if weight is None:
            continue
        bias = next((s for s in own if s.role == "bias"), None)
        reads = readers(groups.operators, number, op.writes[0])
        norm = groups.operators[reads[0]] if len(reads) == 1 else None
        names = [name for name in norm.parameters if name in slices] if norm and "batch_norm" in norm.name else []
        scale, shift = _affine(model, norm.module if norm else "", [slices[name] for name in names])
        channels = weight.weight.double().cpu().reshape(group.units, weight.index.shape[1], -1)  # (units, m, fan)
        offset = bias.weight.double().cpu() if bias is not None else torch.zeros(channels.shape[:2]).double()
        rows += [(channels * _wide(scale, channels)).flatten(1), offset * scale + shift]
        used.update(name for name in (weight.name, bias.name if bias else None, *names) if name)
    for name, s in slices.items():
        if name not in used and s.role == "norm_scale":
            path = name.rpartition(".")[0]
            own = [s for other, s in slices.items() if other.rpartition(".")[0] == path]
            rows += [values.expand(group.units, -1) for values in _affine(model, path, own)]
        elif name not in used and s.role in ("out", "depthwise"):
            rows.append(s.weight.double().cpu())
    return torch.cat(rows, 1) if rows else torch.zeros(group.units, 1, dtype=torch.float64)


def _affine(model: nn.Module, module: str, slices: list[Slice]) -> tuple[Tensor, Tensor]:
    """Scale and shift ``(units, m)`` of a norm by its statistics; 1 and 0 of none."""
    of = {s.role if s.role != "stat" else s.name.rpartition(".")[2]: s.weight.double().cpu() for s in slices}
    scale, shift = (
        of.get(role, torch.full((1, 1), value).double()) for role, value in (("norm_scale", 1.0), ("norm_shift", 0.0))
    )
    if "running_var" in of:
        scale = scale * (of["running_var"] + getattr(model.get_submodule(module), "eps", 1e-5)).rsqrt()
        shift = shift - scale * of["running_mean"]
    return scale, shift


def _wide(scale: Tensor, channels: Tensor) -> Tensor:
    return scale.expand(channels.shape[0], -1)[:, :, None]


def _runs_over(groups: Groups, group: Group) -> bool:
    """Whether an operator computes over the units of a group together, or sums products of activations over them."""
    for op in groups.operators:
        for axis in (*op.over, *op.contracted):
            of = groups.axes[axis]
            if bool(((of >= group.offset) & (of < group.offset + group.units)).any()):
                return True
    return False
