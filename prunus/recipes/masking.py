"""What the verbs of weight sparsity do: network in, network and facts out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunus.core.held import hold_weight_
from prunus.masks import (
    FAMOUS,
    Collapse,
    Tensors,
    choose,
    collapse,
    lottery_,
    mask_,
    redraw_,
    safe_sparsity,
    shuffle,
)
from prunus.recipes.context import Context, in_basis_, weights_of
from prunus.recipes.fitting import fit
from prunus.recipes.schema import Mask, SparseTrain, Stage, Tickets, Training
from prunus.recipes.sparsity import Weights

MASKING = (Mask, SparseTrain, Tickets)
Facts = dict[str, Any]


def weights_for(context: Context, stage: Weights, model: nn.Module) -> Tensors:
    """The weights that a stage is about."""
    model = in_basis_(model, stage.basis, context.recipe.seed)
    return weights_of(model, context.example, stage.grain, only=stage.only, skip=stage.skip)


def hold_zeros_(context: Context, stage: Stage, model: nn.Module) -> None:
    """Where an earlier stage has masked weights, they stay zero in this one."""
    earlier = context.recipe.stages[: context.recipe.stages.index(stage)]  # type: ignore[arg-type]
    if any(isinstance(s, MASKING) for s in earlier):
        for group in weights_of(model, context.example):
            parameter = group.slices[0].tensor
            if isinstance(parameter, nn.Parameter) and bool((parameter == 0).any()):
                hold_weight_(model, group.id, parameter.detach() != 0)


def check_density(context: Context, stage: Weights, model: nn.Module) -> None:
    """Raise `BudgetError` when the density is out of reach for the network: one weight of every tensor stays."""
    from prunus.allocators import allocate
    from prunus.core import Budget

    groups = weights_for(context, stage, model)
    allocate(groups, {g.id: torch.zeros(g.units) for g in groups}, Budget(density=stage.density))


def mask(context: Context, stage: Mask, model: nn.Module) -> tuple[nn.Module, Facts]:
    """Choose the weights that stay, and set the others to zero."""
    groups, seed = weights_for(context, stage, model), context.recipe.seed
    earlier = context.recipe.stages[: context.recipe.stages.index(stage)]
    trained = context.recipe.weights is not None or any(isinstance(s, Training) for s in earlier)
    asked = stage.asked | ({"norms": "running"} if trained else {})
    data = None
    if stage.looks_at_data or asked["criterion"] == "synflow":
        size = min(64, stage.samples)
        data = [context.example] if context.data is None else list(context.batches(size, -(-stage.samples // size)))
    chosen = choose(
        model,
        groups,
        **asked,
        density=stage.density,
        invert=stage.control == "invert",
        data=data,
        loss=context.loss,
        seed=seed,
    )
    plan = chosen.plan
    if stage.control == "shuffle":
        plan = shuffle(groups, plan, seed)
    found = collapse(model, groups, plan, [context.example.args[0]] if context.example.args else data)
    if stage.control == "redraw":
        redraw_(groups, seed)
    done = mask_(model, groups, plan, repair=stage.repair, data=data if stage.repair else None, seed=seed)
    notes = [note for note in done.notes if not note.startswith("layer collapse")]
    if found:  # all that there is to say of it
        safe, name = safe_sparsity(groups, chosen.scores)
        last = f"up to a sparsity of {safe:.2%} the last ranking leaves every tensor more, '{name}' the least"
        notes.append(f"layer collapse: {found}" + (f"; {last}." if found.emptied else "."))
    return model, {"densities": dict(done.densities), "notes": [*groups.left_out, *notes]}


def sparse_train(context: Context, stage: SparseTrain, model: nn.Module) -> tuple[nn.Module, Facts]:
    """Train under masks that move."""
    settings = {"method": stage.method, "density": stage.density, "options": stage.options}
    groups = weights_for(context, stage, model)
    history = fit(context, stage, model, stage.name, sparse={**settings, "groups": groups})
    notes = [*groups.left_out, *history.notes, *cut_off(context, model, groups)]
    return model, {"precision": history.precision, "device": history.device, "notes": notes}


def cut_off(context: Context, model: nn.Module, groups: Tensors) -> list[str]:
    """What there is to say of tensors that no path from input to output uses after training."""
    dead = collapse(model, groups, groups.plan(groups.alive_weights()), context.batches(1, 1)).dead
    return (
        [f"layer collapse: {Collapse(dead)}; a higher density or another allocator leaves them more."] if dead else []
    )


def tickets(context: Context, stage: Tickets, model: nn.Module) -> tuple[nn.Module, Facts]:
    """Iterative magnitude pruning; every training has a checkpoint of its own, so that the stage can go on anywhere."""
    said: list[Any] = []
    steps = len(context.needed().train.batches(stage.batch, context.preprocess, seed=0, epoch=0, train=True))
    rate = _rate(stage, steps)

    def early(model: nn.Module) -> None:
        said.append(fit(context, stage, model, f"{stage.name}-early", epochs=stage.early, schedule=rate(0)))

    def train(model: nn.Module, round: int) -> None:
        epochs, schedule = stage.epochs - stage.early, rate(stage.early * steps)
        said.append(fit(context, stage, model, f"{stage.name}-{round}", epochs=epochs, schedule=schedule))

    groups = weights_for(context, stage, model)
    done = lottery_(
        model,
        groups,
        train,
        density=stage.density,
        rounds=stage.rounds,
        early=early if stage.early else None,
        rewind=stage.rewind,
        criterion=FAMOUS.get(stage.criterion, {"criterion": stage.criterion})["criterion"],
        allocator=stage.allocator,
        control=stage.control,
        seed=context.recipe.seed,
    )
    facts = {"precision": said[-1].precision, "device": said[-1].device, "densities": dict(done.densities)}
    return model, {**facts, "notes": [*done.notes, *cut_off(context, model, groups)]}


def _rate(stage: Tickets, steps: int) -> Callable[[int], Callable[[float], float]]:
    """The learning rates of a whole training, from a step on."""
    from prunus.schedules import rewind
    from prunus.train.rates import learning_rate

    whole = learning_rate(stage.schedule, stage.lr, stage.epochs, steps)
    return lambda first: rewind(whole, first)


def density(context: Context, model: nn.Module, whole: int | None = None) -> float | None:
    """Nonzero weights of layers over the `whole`, by default of the dense network; None where there are none."""
    whole = context.original["weights"] if whole is None else whole
    if not whole:
        return None
    groups = weights_of(model, context.example)
    return sum(int(g.slices[0].tensor.detach().count_nonzero()) for g in groups) / whole
