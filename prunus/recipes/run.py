"""Whole runs: every stage from the file that the stage before it left, so that a run can stop and go on anywhere."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from torch import nn

from prunus.core import InputError, Report
from prunus.core.checks import a_path, check_arguments, instance, optional
from prunus.criteria import of_data
from prunus.recipes import ranks
from prunus.recipes.context import Context
from prunus.recipes.folder import START, Folder, choose, read_json, refuse_used
from prunus.recipes.lock import locked
from prunus.recipes.masking import check_density, density
from prunus.recipes.result import accuracy, compose
from prunus.recipes.schema import DropBlocks, Export, Prune, Recipe, Stage
from prunus.recipes.sparsity import Weights
from prunus.recipes.stages import carry_out, cut


def run(
    recipe: Recipe, out: str | Path | None = None, *, resume: bool = False, quiet: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Carry out a recipe: the folder it wrote, and the content of its ``result.json``.

    A stage that is finished is on disk, and the next one reads it from there, in an unbroken run as in a resumed one;
    inside a stage, training goes on from its own checkpoint.  Under torchrun all ranks compute, the first one writes.

    Args:
        recipe: a checked recipe (`load`).
        out: the folder to write; None: ``runs/<recipe>-<time>``.
        resume: go on with the unfinished run in `out` (None: the newest of the same recipe in ``runs/``).
        quiet: no lines and bars.

    Raises: `InputError` for what the recipe or the folder has wrong, before anything is written over;
        `TrainingError` when training diverges, `VerificationError` when a cut cannot be proved.
    """
    check_arguments(
        locals(), recipe=instance("a Recipe, as prunus.recipes.load gives it", Recipe), out=optional(a_path)
    )
    rank = ranks.join()
    path = ranks.same(lambda: choose(recipe, out, resume=resume))
    folder = Folder(path, writes=rank == 0)
    if folder.finished:
        return path, read_json(path / "result.json")
    with locked(path, folder.writes), ranks.answering():
        if not resume and folder.writes:
            refuse_used(path, "Another process began there just now. Give another --out.")
        return path, _carried_out(Context.of(recipe, folder, quiet=quiet or rank > 0))


def _carried_out(context: Context) -> dict[str, Any]:
    """Begin or go on, stage by stage; what the input has wrong takes back what was begun."""
    folder = context.folder
    if folder.done(0, START) is None:
        rehearse(context)
    new = folder.begin(context.recipe)
    try:
        _begin(context)
        stages = [_stage(context, i, stage) for i, stage in enumerate(context.recipe.stages, start=1)]
    except InputError:
        if new:
            folder.undo()
        raise
    return _end(context, stages)


def rehearse(context: Context) -> list[Report]:
    """Make every cut, one after the other, on a copy of the network as it is now: a budget out of reach shows at once.

    Cuts whose criterion looks at data are left out, and all after blocks that go, since which go depends on data.
    """
    model, reports = copy.deepcopy(context.origin.module), []
    for stage in context.recipe.stages:
        if isinstance(stage, DropBlocks):
            break
        if isinstance(stage, Prune) and not of_data(stage.criterion):
            reports.append(cut(context, stage, model, verify=False))
            model = reports[-1].model
        elif isinstance(stage, Weights):
            check_density(context, stage, model)
    return reports


def _begin(context: Context) -> None:
    """Put the network that the run starts with on disk."""
    if context.folder.done(0, START) is None:
        _keep(context, 0, START, context.origin.module, {})
    ranks.wait()


def _stage(context: Context, index: int, stage: Stage) -> dict[str, Any]:
    """Carry out one stage, or read what it said when it is already done."""
    done = context.folder.done(index, stage.name)
    if done is not None:
        return done
    _say(context, stage.name)
    started = time.perf_counter()
    outcome = carry_out(context, stage, context.load(index - 1))
    facts = {
        "name": stage.name,
        "seconds": round(time.perf_counter() - started, 3),
        **context.cost(outcome.model),
        "density": density(context, outcome.model),
        "accuracy": _accuracy(context, index, outcome.model),
        **outcome.facts,
    }
    _keep(context, index, stage.name, outcome.model, facts)
    ranks.wait()
    return facts


def _accuracy(context: Context, index: int, model: nn.Module) -> float | None:
    """Top-1 on the test part; a stage that only exports has that of the stage before."""
    before = context.folder.done(index - 1, context.recipe.stages[index - 2].name) if index > 1 else None
    if before is not None and isinstance(context.recipe.stages[index - 1], Export):
        return before["accuracy"]
    return accuracy(context, model)


def _keep(context: Context, index: int, name: str, model: nn.Module, facts: dict[str, Any]) -> None:
    """The network, then the note that it is complete: in this order."""
    from prunus.surgery import save

    if context.folder.writes:
        path = context.folder.network(index, name)
        save(model, path, _metadata(context), compress=_masked(context))
        context.folder.finish(index, name, facts)


def _end(context: Context, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure, and write the network, the result and the report, the result only when all before it is there."""
    folder = context.folder
    if not folder.writes:
        return {"stages": stages}
    from prunus.bases import fold_, interspaced
    from prunus.report import html
    from prunus.surgery import save

    model = context.load(len(stages))
    if any(interspaced(model)):
        fold_(model)  # a plain network, which every verb takes; the coefficients are in the last checkpoint
    save(model, folder.model, _metadata(context), compress=_masked(context))
    gammas = [s["gammas"] for s in stages if "gammas" in s]
    if gammas:
        folder.write_json("gammas.json", gammas[0])
    if not (folder.path / "result.json").is_file():
        _say(context, "measuring")
        folder.write_json("result.json", compose(context, stages))
    html(folder.path)
    return read_json(folder.path / "result.json")


def _metadata(context: Context) -> dict[str, str]:
    return {"model": context.recipe.model, "recipe": context.recipe.recipe}


def _masked(context: Context) -> bool:
    """Whether the run masks single weights, which files then need not hold."""
    return any(isinstance(stage, Weights) for stage in context.recipe.stages)


def _say(context: Context, what: str) -> None:
    if context.quiet:
        return
    from rich.console import Console

    Console(stderr=True).print(f"== {what}", style="bold", highlight=False, markup=False)
