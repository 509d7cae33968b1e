"""Lottery tickets: train, prune, rewind, again and again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from prunus.allocators import Problem, allocate
from prunus.core import Budget, InputError
from prunus.core.callbacks import own
from prunus.core.checks import a_function, a_positive_int, check_arguments, one_of, optional
from prunus.core.held import check_free
from prunus.core.undo import all_or_nothing, keep_values
from prunus.criteria import of_data, score
from prunus.masks.at_init import without
from prunus.masks.controls import redraw_, shuffle
from prunus.masks.mask import Masked, mask_
from prunus.masks.tensors import Tensors

KEPT = 0.8  # of the weights that are left, in every round of the paper
Train = Callable[[nn.Module, int], None]


def rounds_for(density: float) -> int:
    """How many rounds that keep 80 % of what is left it takes to come down to a density.

    >>> rounds_for(0.8), rounds_for(0.1074)
    (1, 10)
    """
    return max(math.ceil(math.log(density) / math.log(KEPT) - 1e-3), 1)


def lottery_(
    model: nn.Module,
    groups: Tensors,
    train: Train,
    *,
    density: float,
    rounds: int | None = None,
    early: Callable[[nn.Module], None] | None = None,
    rewind: Literal["weights", "rate"] = "weights",
    criterion: str | Callable[..., Tensor] = "l1",
    allocator: str | Callable[[Problem], Tensor] = "global",
    control: Literal["none", "shuffle", "redraw"] = "none",
    seed: int = 0,
) -> Masked:
    r"""Iterative magnitude pruning: in round $r$ of $n$ train, keep the density $d^{r/n}$, rewind; train at the end.

    Args:
        model: changed in place; groups: what `prunus.tensors` returned of it.
        train: trains the network in place, in round 0, 1 ... `rounds`, from step $k$ to the end, with a new optimizer
            and the learning rates from step $k$ on.
        rounds: None: as many as it takes at 20 % of what is left each.
        early: trains the network to step $k$, which weights are rewound to; None: $k = 0$, as it is now.
        rewind: ``"weights"``: everything, batch norms too, goes back to step $k$; ``"rate"``: weights stay, only the
            learning rates start again (with `train` as given).
        control: in the last round ``"shuffle"`` the masks within tensors, or ``"redraw"`` the weights rewound to.
        criterion, allocator: what chooses weights, as in `prunus.score` and `prunus.allocate`.
        seed: for controls, and criteria that draw at random.

    Masks are held in training and only shrink.  Returns: what `prunus.mask_` returns of the last masks.

    Raises: `InputError` for a criterion that looks at data, a control without rewinding, or while a pruner moves the
    masks; `BudgetError`.

    Source: Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019; Frankle et al., Linear Mode Connectivity, ICML
    2020 (rewinding to step k); Renda et al., Comparing Rewinding and Fine-tuning, ICLR 2020 (learning rates).

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> done = lottery_(net, prunus.tensors(net), lambda model, round: None, density=0.25, rounds=2)
    >>> done.density
    0.25
    """
    check_arguments(
        locals(),
        train=a_function,
        rounds=optional(a_positive_int),
        early=optional(a_function),
        rewind=one_of("weights", "rate"),
        control=one_of("none", "shuffle", "redraw"),
    )
    rounds = rounds_for(density) if rounds is None else rounds
    if rounds < 1 or rewind not in ("weights", "rate") or control not in ("none", "shuffle", "redraw"):
        raise InputError(
            f"rounds={rounds!r}, rewind={rewind!r}, control={control!r}: expected at least 1 round, rewind 'weights' "
            "or 'rate', control 'none', 'shuffle' or 'redraw'."
        )
    if control == "redraw" and rewind == "rate":
        raise InputError("control='redraw' draws the weights that are rewound to: it needs rewind='weights'.")
    if of_data(criterion):
        raise InputError(f"criterion {criterion!r} looks at data; between rounds, choose one of weights, e.g. 'l1'.")
    check_free({g.id: g.slices[0].tensor for g in groups})  # here, not after hours
    with all_or_nothing(model):  # it may take hours, and users interrupt
        keep_values(*model.parameters())
        if early is not None:
            own(early, "early=")(model)
        snapshot = {name: value.detach().clone() for name, value in model.state_dict().items()}
        keep = torch.ones(groups.units, dtype=torch.bool)
        for r in range(1, rounds + 1):
            own(train, "train=")(model, r - 1)
            scores = without(groups, score(groups, criterion, seed=seed), keep)
            now = Budget(density=float(density) if r == rounds else density ** (r / rounds))
            plan = allocate(groups, scores, now, allocator=allocator)
            keep = groups.mask(plan)
            if r == rounds and control == "shuffle":
                plan = shuffle(groups, plan, seed)
            if rewind == "weights":
                model.load_state_dict(snapshot)
                if r == rounds and control == "redraw":
                    redraw_(groups, seed)
            done = mask_(model, groups, plan)
        own(train, "train=")(model, rounds)
        return done
