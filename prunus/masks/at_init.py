"""Pruning before training: a criterion asked again and again while the density falls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunus.allocators import Problem, kept
from prunus.core import Budget, InputError, Plan
from prunus.core.callbacks import each
from prunus.core.checks import a_positive_int, anything, check_arguments, one_of, optional
from prunus.core.undo import all_or_nothing, keep_values
from prunus.criteria import needed, of_data, score
from prunus.masks.tensors import Tensors
from prunus.observe import collect
from prunus.observe.base import default_loss, pieces
from prunus.recovery import recalibrate_
from prunus.recovery.batchnorm import batch_statistics
from prunus.schedules import exponential, linear

SHAPES: dict[str, Callable[[float, float, int], Callable[[float], float]]] = {
    "exponential": exponential,
    "linear": linear,
}
NORMS = ("batch", "data", "running")
# what the papers do: rounds, whether weights may come back, what they look at
FAMOUS: dict[str, dict[str, Any]] = {
    "snip": {"criterion": "snip", "rounds": 1, "norms": "batch", "per_class": 10},
    "iterative-snip": {"criterion": "snip", "rounds": 60, "norms": "batch"},
    "force": {"criterion": "snip", "rounds": 60, "back": True, "norms": "batch"},
    "grasp": {"criterion": "grasp", "rounds": 1, "temperature": 200.0, "norms": "batch", "per_class": 10},
    "synflow": {"criterion": "synflow", "rounds": 100},
    "random": {"criterion": "random", "rounds": 1, "allocator": "uniform"},
    "erk": {"criterion": "random", "rounds": 1, "allocator": "erk"},
    "magnitude": {"criterion": "l1", "rounds": 1},
}


@dataclass(frozen=True, eq=False)
class Choice:
    """A mask plan, and the scores by which the last round chose it, ``(units,)`` by group."""

    plan: Plan
    scores: dict[str, Tensor]


def at_init(model: nn.Module, groups: Tensors, criterion: str | Callable[..., Tensor], **asked: Any) -> Plan:
    """The plan of `choose`, which takes the same arguments.

    Args: criterion: as there; asked: its keyword arguments, of which `density` has to be given.

    Raises: `InputError` for arguments that `choose` does not take, and what it raises.

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> groups = prunus.tensors(net)
    >>> plan = at_init(net, groups, "synflow", density=0.1, rounds=100, data=[torch.ones(1, 8)])
    >>> prunus.mask_(net, groups, plan).density
    0.1
    """
    check_arguments(locals(), asked=anything)
    try:
        signature(choose).bind(model, groups, criterion, **asked)
    except TypeError as error:
        raise InputError(f"at_init: {error}. It takes what prunus.masks.choose takes, e.g. density=0.1.") from None
    return choose(model, groups, criterion, **asked).plan


def choose(
    model: nn.Module,
    groups: Tensors,
    criterion: str | Callable[..., Tensor],
    *,
    density: float,
    rounds: int = 1,
    back: bool = False,
    shape: str = "exponential",
    allocator: str | Callable[[Problem], Tensor] = "global",
    invert: bool = False,
    temperature: float = 1.0,
    norms: str = "data",
    per_class: int | None = None,
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    seed: int = 0,
) -> Choice:
    r"""The mask plan of a criterion asked `rounds` times, at densities $d^{k/n}$ (linear: $1 - (1 - d)\,k/n$).

    Round $k$ sees the network under the mask of round $k - 1$: statistics are taken at $w \odot m$, and scored with the
    dense $w$.  The network is left as it was: carry the plan out by `prunus.mask_`, or start a `MaskPruner` from it.

    Args:
        model, groups: an untrained network, and what `prunus.tensors` returned of it.
        criterion: of weights; `FAMOUS` says what the papers ask: SNIP once, SynFlow 100 times, FORCE 60 times.
        back: whether weights that were removed may come back (FORCE); else they stay out (iterative SNIP, SynFlow).
        allocator: ``global`` in the papers; ``uniform`` and ``erk`` for random masks.
        invert: the least important stay: a control.
        temperature: what logits are divided by in the default loss (GraSP: 200).
        norms: what batch norms divide by where a criterion looks at data: ``"batch"``: each batch's own statistics,
            through which gradients go, as in training (SNIP, GraSP, FORCE); ``"data"``: the average of the data's under
            the mask, as constants; ``"running"``: what a trained network has.
        per_class: see one batch with so many samples of every class (SNIP, GraSP: 10), see `balanced`.
        data: batches, for criteria that look at them (the same ones in every round); SynFlow takes the shape of one.
        seed: for criteria that draw at random.

    Raises: `InputError` for a criterion without its data or not of weights, for labels that are no classes where
    `per_class` is given; `BudgetError` for a density out of reach.

    Source: Lee et al., SNIP, ICLR 2019; Tanaka et al., SynFlow, NeurIPS 2020 (algorithm 1); de Jorge et al.,
    Progressive Skeletonization (iterative SNIP, FORCE), ICLR 2021 (algorithm 1).
    """
    check_arguments(locals(), shape=one_of(*SHAPES), norms=one_of(*NORMS), per_class=optional(a_positive_int))
    if loss is None and temperature != 1:
        loss = partial(_cooled, temperature)
    batches = None if data is None else list(each(data))
    needs, sees = needed(criterion, batches), bool(of_data(criterion))
    if sees and per_class is not None:
        batches = [balanced(batches or (), per_class)]
    densities = SHAPES[shape](1.0, float(density), rounds)
    keep = torch.ones(groups.units, dtype=torch.bool)
    for k in range(1, rounds + 1):
        stats = None
        if needs:
            normed = _normed(model, norms if sees else "running", batches or ())
            with all_or_nothing(model), masked(groups, keep), normed:
                stats = collect(model, groups, batches or (), needs, loss)
        scores = score(groups, criterion, stats, seed=seed)
        scores = {id: -s for id, s in scores.items()} if invert else scores
        if not back:
            scores = without(groups, scores, keep)
        budget = Budget(density=float(density) if k == rounds else densities(k))
        keep = kept(groups, scores, budget, allocator=allocator)
    return Choice(groups.plan(keep), scores)


def _cooled(temperature: float, output: Any, batch: Any) -> Tensor:
    """The default loss of logits divided by a temperature."""
    return default_loss(output / temperature if isinstance(output, Tensor) else output, batch)


def without(groups: Tensors, scores: dict[str, Tensor], keep: Tensor) -> dict[str, Tensor]:
    """The scores, those of removed units below all others."""
    lowest = min(float(s.min()) for s in scores.values())
    lowest -= max(abs(lowest), 1.0)
    gone = {g.id: ~keep[g.offset : g.offset + g.units] for g in groups}
    return {id: s.masked_fill(gone[id], lowest) for id, s in scores.items()}


@contextmanager
def put_back(groups: Tensors) -> Iterator[dict[str, Tensor]]:
    """The weights by name without a gradient, to be changed; afterwards they are what they were."""
    parameters = {g.id: g.slices[0].tensor for g in groups}
    before = {id: p.detach().clone() for id, p in parameters.items()}
    try:
        keep_values(*parameters.values())
        yield {id: p.detach() for id, p in parameters.items()}
    finally:
        with torch.no_grad():
            for id, p in parameters.items():
                p.copy_(before[id])


@contextmanager
def masked(groups: Tensors, keep: Tensor) -> Iterator[None]:
    """The network under a keep mask ``(units,)``."""
    with put_back(groups) as parameters:
        for g in groups:
            kept = g.slices[0].scatter(keep[g.offset : g.offset + g.units, None]).to(parameters[g.id].device)
            parameters[g.id].masked_fill_(~kept, 0)
        yield


@contextmanager
def _normed(model: nn.Module, norms: str, batches: Iterable[Any]) -> Iterator[None]:
    """Batch norms with the statistics that `choose` names; the running ones are put back."""
    if norms == "batch":
        with batch_statistics(model):
            yield
        return
    buffers = [(b, b.clone()) for b in model.buffers()] if norms == "data" else []
    try:
        keep_values(*(b for b, _ in buffers))
        if norms == "data":
            recalibrate_(model, batches, limit=None)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def balanced(batches: Iterable[Any], per_class: int) -> Any:
    """One batch of the first `per_class` samples of every class, fewer of each where one class has fewer; in turns.

    Args: batches: ``(x, y)`` with one class a sample in `y`; all are looked through; per_class: samples, 1 or more.

    Raises: `InputError` for labels that are no classes.

    >>> x, y = torch.arange(6.0), torch.tensor([1, 0, 0, 1, 0, 1])
    >>> balanced([(x[:3], y[:3]), (x[3:], y[3:])], 2)
    (tensor([1., 0., 2., 3.]), tensor([0, 1, 0, 1]))
    """
    check_arguments(locals(), per_class=a_positive_int)
    taken: dict[int, list[Any]] = {}
    for batch in each(batches):
        y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
            raise InputError("per_class= takes batches (x, y) with one class a sample in y; give these, or None.")
        for label, one in zip(y.tolist(), pieces(batch, 1)):
            if len(taken.setdefault(label, [])) < per_class:
                taken[label].append(one)
    least = min(map(len, taken.values()), default=0)
    rows = [taken[label][k] for k in range(least) for label in sorted(taken)]
    if not rows:
        raise InputError("there is no batch, so nothing can be seen. Give data= at least one batch.")
    return tree_map(
        lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].dim() else parts[0], *rows
    )
