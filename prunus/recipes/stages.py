"""What each verb of a recipe does: one function a verb, network in, network and facts out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from prunus.core import Groups, Report
from prunus.criteria import of_data
from prunus.recipes.context import Context, in_basis_
from prunus.recipes.dynamic import Dynamic, train_gates
from prunus.recipes.fitting import fit
from prunus.recipes.masking import hold_zeros_, mask, sparse_train, tickets
from prunus.recipes.schema import (
    DropBlocks,
    Export,
    Finetune,
    Mask,
    Prune,
    Recalibrate,
    SparseTrain,
    Sparsify,
    Stage,
    Tickets,
)

CALIBRATION = 16  # batches of 64 that criteria and repair are given


@dataclass(frozen=True, eq=False)
class Outcome:
    """The network a stage leaves, and facts of it for ``result.json`` (plain data)."""

    model: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)


def carry_out(context: Context, stage: Stage, model: nn.Module) -> Outcome:
    """Do what `stage` says with `model`."""
    hold_zeros_(context, stage, model)
    return VERBS[type(stage)](context, stage, model)


def _train(context: Context, stage: Sparsify | Finetune, model: nn.Module) -> Outcome:
    """Train: under a regularizer, with a teacher, or plainly."""
    in_basis_(model, stage.basis, context.recipe.seed)
    regularizer = stage.regularizer.make() if stage.regularizer is not None else None
    groups = _groups(context, model) if regularizer is not None else None
    if isinstance(stage, Sparsify) and stage.initial_scale is not None:
        _set_scales_(model, stage.initial_scale)
    before = _gammas(groups) if groups is not None else {}
    teacher = context.load(context.index(stage.distill.teacher)) if stage.distill is not None else None
    history = fit(
        context,
        stage,
        model,
        regularizer=regularizer,
        groups=groups,
        teacher=teacher,
        distill=stage.distill.model_dump(include={"temperature", "weight"}) if stage.distill is not None else None,
    )
    facts: dict[str, Any] = {"precision": history.precision, "device": history.device}
    if groups is not None:
        facts["gammas"] = {"before": before, "after": _gammas(groups.bind(model))}
    return Outcome(model, facts)


def _prune(context: Context, stage: Prune, model: nn.Module) -> Outcome:
    """Cut, prove, and say what was cut and what was left alone."""
    report = cut(context, stage, model, verify=stage.verify)
    return Outcome(report.model, _facts(report))


def cut(context: Context, stage: Prune, model: nn.Module, *, verify: bool) -> Report:
    """`prune_` with what a prune stage says."""
    from prunus.prune import prune_

    data = list(context.batches(64, CALIBRATION)) if of_data(stage.criterion) or stage.repair else None
    return prune_(
        model,
        context.example,
        budget=stage.budget.at(stage.progress, context.original),
        criterion=stage.criterion,
        allocator=stage.allocator,
        data=data,
        loss=context.loss,
        freeze=stage.freeze,
        only=stage.only,
        round_to=stage.round_to,
        floor=stage.floor,
        absorb=stage.absorb,
        select=bool(stage.select),
        verify=verify,
        repair=stage.repair,
        merge=stage.merge,
        per=stage.per,
        seed=context.recipe.seed,
    )


def _drop_blocks(context: Context, stage: DropBlocks, model: nn.Module) -> Outcome:
    """Remove whole residual blocks, those that change least what flows through them."""
    from prunus.depth import drop_blocks_

    data = list(context.batches(64, CALIBRATION))
    report = drop_blocks_(model, context.example, data=data, n=stage.n, keep=stage.keep, method=stage.method)
    return Outcome(report.model, _facts(report))


def _facts(report: Report) -> dict[str, Any]:
    """A report as plain data."""
    verified = None
    if report.verified is not None:
        kept = ("max_relative_error", "exact", "in_place", "dtype")
        verified = {k: v for k, v in asdict(report.verified).items() if k in kept}
    return {
        "verified": verified,
        "in_place": report.in_place,
        "left_alone": [{"what": f.what, "why": f.why} for f in report.left_alone],
        "notes": list(report.notes),
    }


def _recalibrate(context: Context, stage: Recalibrate, model: nn.Module) -> Outcome:
    """Batch-norm statistics from training data; a network without batch norm is left as it is."""
    from prunus.recovery import recalibrate_

    done = recalibrate_(model, context.batches(stage.batch, stage.batches), limit=stage.batches)
    return Outcome(model, {"layers": done.layers, "batches": done.batches})


def _export(context: Context, stage: Export, model: nn.Module) -> Outcome:
    """Write ``model.onnx``, ``model.sparse`` and the like into the run folder, each compared with the network."""
    from prunus.export import exporters

    errors, notes = {}, []
    for name in stage.to:
        if context.folder.writes:
            path = context.folder.path / f"model.{name}"
            errors[name] = exporters[name].call(model, context.example, path, verify=True)
            notes += [f"model.{name}: {note}" for note in exporters[name].declares.get("notes", lambda path: [])(path)]
    return Outcome(model, {"exported": errors, "notes": notes})


def _groups(context: Context, model: nn.Module) -> Groups:
    from prunus.tracing import trace

    return trace(model, context.example)


def _set_scales_(model: nn.Module, value: float) -> None:
    """Every normalisation scale to `value`."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
            nn.init.constant_(module.weight, value)


def _gammas(groups: Groups) -> dict[str, list[float]]:
    """The scales of every normalisation among the groups, by parameter name."""
    found = {s.name: s.tensor.detach() for g in groups for s in g.with_role("norm_scale")}
    return {name: [round(v, 6) for v in tensor.flatten().tolist()] for name, tensor in found.items()}


def _weights(
    verb: Callable[[Context, Any, nn.Module], tuple[nn.Module, dict[str, Any]]],
) -> Callable[[Context, Any, nn.Module], Outcome]:
    """A verb of weight sparsity as one of this table."""
    return lambda context, stage, model: Outcome(*verb(context, stage, model))


VERBS: dict[type[Stage], Callable[[Context, Any, nn.Module], Outcome]] = {
    Sparsify: _train,
    Finetune: _train,
    Prune: _prune,
    DropBlocks: _drop_blocks,
    Recalibrate: _recalibrate,
    Export: _export,
    Mask: _weights(mask),
    SparseTrain: _weights(sparse_train),
    Tickets: _weights(tickets),
    Dynamic: _weights(train_gates),
}
