r"""Absorb the constants of removed channels.

A channel whose batch-norm scale is zero does not emit zero but the constant :math:`a_c = \mathrm{act}(\beta_c)`.
Before it is cut, the constant moves into its consumers:

.. math:: b \mathrel{+}= \sum_{c,k} W_{:,c,k}\, a_c \qquad\text{or, before a batch norm,}\qquad \mu \mathrel{-}=
\sum_{c,k} W_{:,c,k}\, a_c .

Exact where the kernel sees no zero padding (1x1, linear, unpadded), or where the constant is zero; elsewhere the
border would differ, so nothing is absorbed there (Ye et al. 2018; Liu et al. 2017 drop the constant).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.core import Added, Groups, Inputs, Plan
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.checks import check_arguments
from prunus.core.undo import all_or_nothing, keep_values
from prunus.surgery.memory import remember_
from prunus.surgery.reference import other_inputs, silenced
from prunus.surgery.shrink import check_same_network
from prunus.tracing.apply import named_tensors, run


@dataclass(eq=False)
class Reading:
    """What a consumer saw of its removed input channels: one value each, or NaN where it was not constant."""

    name: str  # of the consuming weight
    constant: Tensor  # (removed,)
    output: Tensor


def absorb_(model: nn.Module, groups: Groups, plan: Plan, *, new_biases: bool = True) -> tuple[str, ...]:
    """Silence the units that `plan` removes, moving their constants into their consumers where that is exact.

    With the scales of all removed channels at zero, the constants are read off two forwards in float64: no layer
    type, activation or wiring is assumed.  Afterwards the removed units are zero, so that `shrink_` cuts them without
    a change.

    A consumer without a bias, and without a batch norm behind it, gets a bias, unless `new_biases` is False (they count
    as parameters).  Returns the names of the consuming weights that took up a constant; trace the model again then.

    Raises: `InputError` when the plan is of another network.

    >>> import prunus, torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    >>> groups = prunus.trace(net, torch.randn(1, 3, 8, 8))
    >>> absorb_(net, groups, prunus.Plan({"0": prunus.GroupPlan(4, (0, 1))}))
    ('3.weight',)
    """
    check_arguments(locals())
    check_same_network(model, groups)
    groups = groups.bind(model)
    keep = groups.mask(plan)
    tensors = {n: t.detach().double() if t.is_floating_point() else t for n, t in named_tensors(model).items()}
    scaled = _scales_zeroed(tensors, groups, keep)
    removed = _removed_columns(groups, keep)
    runs = _two_runs(model, scaled, removed, groups.inputs)
    amounts = []
    for key, first in runs[0].items():
        second = runs[1].get(key)
        if second is None or not torch.equal(first.constant, second.constant) or not first.constant.any():
            continue
        name = first.name
        dim, index = removed[name]
        amounts.append((name, _column_sums(tensors[name], dim, index) @ first.constant))  # (out,)
    with all_or_nothing(model), torch.no_grad():
        absorbed = [name for name, amount in amounts if _take_up(model, groups, name, amount, new_biases)]
        now = named_tensors(model)
        for name, tensor in silenced(now, groups, keep).items():
            if tensor is not now[name]:
                keep_values(now[name])
                now[name].copy_(tensor)
        return tuple(absorbed)


def give_biases_(model: nn.Module, groups: Groups, plan: Plan) -> tuple[str, ...]:
    """Give a bias of zeros to every layer that loses inputs by `plan` and has no bias, nor a batch norm behind it.

    The network computes what it did; what repairs it by biases (`prunus.recovery.repair_`) finds one.  Returns the
    names of those layers' weights; trace the model again then.

    >>> import prunus, torch
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    >>> groups = prunus.trace(net, torch.randn(1, 3))
    >>> give_biases_(net, groups, prunus.Plan({"0": prunus.GroupPlan(4, (0, 1))})), net[2].bias.tolist()
    (('2.weight',), [0.0, 0.0])
    """
    check_arguments(locals())
    groups = groups.bind(model)
    gone = ~groups.mask(plan)
    given = []
    with all_or_nothing(model):
        for s in (s for g in groups if gone[g.offset : g.offset + g.units].any() for s in g.with_role("in")):
            fits = s.name not in given and s.dim == 1 and _following_mean(model, groups, s.name) is None
            if fits and _new_bias_(model, s.name, s.tensor.detach().new_zeros(len(s.tensor))):
                given.append(s.name)
        return tuple(given)


def _new_bias_(model: nn.Module, name: str, amount: Tensor) -> bool:
    """Give the layer of weight `name` the bias that it has a place for, and remember it; False if it has none."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf != "weight" or module._parameters.get("bias", amount) is not None:
        return False
    module.bias = nn.Parameter(amount.clone())
    dtype = str(amount.dtype).removeprefix("torch.")
    remember_(model, Plan(added=(Added(f"{path}.bias", "bias", tuple(amount.shape), dtype),)))
    return True


def _two_runs(
    model: nn.Module, tensors: dict[str, Tensor], removed: dict[str, tuple[int, Tensor]], inputs: Inputs
) -> list[dict[int, Reading]]:
    """What consumers see on the example and on other inputs; nothing when there are no others to tell a constant by."""
    other = other_inputs(inputs)
    if all(torch.equal(a, b) for a, b in zip(inputs.tensors, other.tensors)):
        return [{}, {}]
    try:
        return [_observe(model, tensors, removed, given) for given in (inputs, other)]
    except OUT_OF_MEMORY:
        raise
    except Exception:  # noise that the network is not made for
        return [{}, {}]


def _scales_zeroed(tensors: dict[str, Tensor], groups: Groups, keep: Tensor) -> dict[str, Tensor]:
    """The network with the normalisation scales of all removed units at zero."""
    out = dict(tensors)
    for group in groups:
        gone = ~keep[group.offset : group.offset + group.units]
        for s in group.with_role("norm_scale"):
            out[s.name] = out[s.name].index_fill(s.dim, s.index[gone].reshape(-1).to(out[s.name].device), 0.0)
    return out


def _removed_columns(groups: Groups, keep: Tensor) -> dict[str, tuple[int, Tensor]]:
    """Per consuming weight, its input dimension and the removed indices."""
    out: dict[str, tuple[int, Tensor]] = {}
    for group in groups:
        gone = ~keep[group.offset : group.offset + group.units]
        if not group.with_role("norm_scale") or group.computes("in"):
            continue
        for s in group.with_role("in"):
            index = s.index[gone].reshape(-1)
            before = out.get(s.name, (s.dim, index[:0]))[1]
            out[s.name] = (s.dim, torch.cat([before, index]))
    return {name: (dim, index.unique()) for name, (dim, index) in out.items() if index.numel()}


def _column_sums(weight: Tensor, dim: int, index: Tensor) -> Tensor:
    """``(out, removed)``: the weight summed over its kernel, columns that are removed."""
    columns = weight.index_select(dim, index.to(weight.device)).movedim(dim, 1)  # (out, removed, *kernel)
    return columns.reshape(columns.shape[0], columns.shape[1], -1).sum(2)


class _Observer(TorchDispatchMode):
    """Reads the removed input channels of every contraction with one of `weights` (storage -> name)."""

    def __init__(self, weights: dict[int, str], removed: dict[str, tuple[int, Tensor]]) -> None:
        super().__init__()
        self.weights, self.removed = weights, removed
        self.readings: dict[int, Reading] = {}
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        name = func._schema.name.removeprefix("aten::")
        if name == "convolution" and args[8] == 1 and not args[6]:
            padded = any(p != 0 for p in args[4])
            self._read(args[0].movedim(1, 0).flatten(1), args[1], padded, out)
        elif name in ("addmm", "mm"):
            x, weight = args[-2:]
            self._read(x.t(), weight, False, out)
        return out

    def _read(self, channels: Tensor, weight: Tensor, padded: bool, out: Tensor) -> None:
        name = self.weights.get(weight.data_ptr())
        if name is None:
            return
        seen = channels[self.removed[name][1].to(channels.device)]  # (removed, everything else)
        constant = torch.where((seen == seen[:, :1]).all(1), seen[:, 0], 0.0)
        self.readings[self.calls] = Reading(name, torch.zeros_like(constant) if padded else constant, out)


def _observe(
    model: nn.Module, tensors: dict[str, Tensor], removed: dict[str, tuple[int, Tensor]], inputs: Inputs
) -> dict[int, Reading]:
    observer = _Observer({tensors[name].data_ptr(): name for name in removed}, removed)
    given = inputs.to(torch.float64)
    run(model, tensors, given, observer)
    times = [reading.name for reading in observer.readings.values()]
    return {k: r for k, r in observer.readings.items() if times.count(r.name) == 1}  # a shared layer sees several


def _take_up(model: nn.Module, groups: Groups, name: str, amount: Tensor, new_biases: bool) -> bool:
    """Add the constant to the consumer's bias, or take it from the running mean of the batch norm that follows."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    amount = amount.to(dict(model.named_parameters())[name].dtype)
    mean = _following_mean(model, groups, name)
    bias = getattr(module, "bias", None) if leaf == "weight" else None
    if mean is not None:
        keep_values(mean)
        mean.sub_(amount)
    elif isinstance(bias, nn.Parameter):
        keep_values(bias)
        bias.add_(amount)
    else:
        return new_biases and _new_bias_(model, name, amount)
    return True


def _following_mean(model: nn.Module, groups: Groups, name: str) -> Tensor | None:
    """The running mean of the batch norm that alone reads this convolution's output."""
    for op in groups.operators:
        if name in op.parameters and op.macs is not None:
            readers = [other for other in groups.operators if op.writes[0] in other.reads]
            if len(readers) != 1 or "batch_norm" not in readers[0].name or op.writes[0] in groups.outputs:
                return None
            means = [p for p in readers[0].parameters if p.endswith("running_mean")]
            users = [other for other in groups.operators if means and means[0] in other.parameters]
            return dict(model.named_buffers())[means[0]] if len(users) == 1 else None
    return None
