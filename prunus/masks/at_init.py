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

from prunus.allocators import Problem, kept
from prunus.core import Budget, InputError, Plan
from prunus.core.callbacks import each
from prunus.core.checks import anything, check_arguments, one_of
from prunus.core.undo import all_or_nothing, keep_values
from prunus.criteria import needed, of_data, score
from prunus.masks.tensors import Tensors
from prunus.observe import collect
from prunus.observe.base import default_loss
from prunus.recovery import recalibrate_
from prunus.schedules import exponential, linear

SHAPES: dict[str, Callable[[float, float, int], Callable[[float], float]]] = {
    "exponential": exponential,
    "linear": linear,
}
# what the papers do: rounds, and whether weights may come back
FAMOUS: dict[str, dict[str, Any]] = {
    "snip": {"criterion": "snip", "rounds": 1},
    "iterative-snip": {"criterion": "snip", "rounds": 60},
    "force": {"criterion": "snip", "rounds": 60, "back": True},
    "grasp": {"criterion": "grasp", "rounds": 1, "temperature": 200.0},
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
    calibrate: bool = True,
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    seed: int = 0,
) -> Choice:
    r"""The mask plan of a criterion asked `rounds` times, at densities $d^{k/n}$ (linear: $1 - (1 - d)\,k/n$).

    Round $k$ sees the network under the mask of round $k - 1$: statistics are taken at $w \odot m$, and scored with the
    dense $w$.  Where a criterion looks at data, batch norms take the statistics of that data under the mask, as an
    untrained network has none (`calibrate`); gradients do not go through them.  The network is left as it was: carry
    the plan out by `prunus.mask_`, or start a `MaskPruner` from it.

    Args:
        model, groups: an untrained network, and what `prunus.tensors` returned of it.
        criterion: of weights; `FAMOUS` says what the papers ask: SNIP once, SynFlow 100 times, FORCE 60 times.
        back: whether weights that were removed may come back (FORCE); else they stay out (iterative SNIP, SynFlow).
        allocator: ``global`` in the papers; ``uniform`` and ``erk`` for random masks.
        invert: the least important stay: a control.
        temperature: what logits are divided by in the default loss (GraSP: 200).
        calibrate: whether batch norms take the statistics of the data; not for a trained network.
        data: batches, for criteria that look at them (the same ones in every round); SynFlow takes the shape of one.
        seed: for criteria that draw at random.

    Raises: `InputError` for a criterion without its data or not of weights, `BudgetError` for a density out of reach.

    Source: Lee et al., SNIP, ICLR 2019; Tanaka et al., SynFlow, NeurIPS 2020 (algorithm 1); de Jorge et al.,
    Progressive Skeletonization (iterative SNIP, FORCE), ICLR 2021 (algorithm 1).
    """
    check_arguments(locals(), shape=one_of("exponential", "linear"))
    if loss is None and temperature != 1:
        loss = partial(_cooled, temperature)
    batches = None if data is None else list(each(data))
    needs, sees = needed(criterion, batches), bool(of_data(criterion))
    densities = SHAPES[shape](1.0, float(density), rounds)
    keep = torch.ones(groups.units, dtype=torch.bool)
    for k in range(1, rounds + 1):
        stats = None
        if needs:
            calibrating = batches if sees and calibrate else None
            with all_or_nothing(model), masked(model, groups, keep, calibrating):
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
def masked(model: nn.Module, groups: Tensors, keep: Tensor, batches: Iterable[Any] | None = None) -> Iterator[None]:
    """The network under a keep mask ``(units,)``; with batches, its batch norms have their statistics."""
    parameters = {g.id: g.slices[0].tensor for g in groups}
    before = {id: p.detach().clone() for id, p in parameters.items()}
    buffers = [(b, b.clone()) for b in model.buffers()] if batches is not None else []
    try:
        keep_values(*parameters.values(), *(b for b, _ in buffers))
        with torch.no_grad():
            for g in groups:
                kept = g.slices[0].scatter(keep[g.offset : g.offset + g.units, None])
                parameters[g.id].masked_fill_(~kept.to(parameters[g.id].device), 0)
            if batches is not None:
                recalibrate_(model, batches, limit=None)
        yield
    finally:
        with torch.no_grad():
            for id, p in parameters.items():
                p.copy_(before[id])
            for buffer, value in buffers:
                buffer.copy_(value)
