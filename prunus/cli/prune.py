"""prunus prune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from prunus.cli.common import Classes, Input, Json, Model, Weights, emit
from prunus.cli.run import finish
from prunus.core import Budget, InputError, Report

REPAIRS = ("least-squares", "blocks", "bias", "none")
FUNCTION = "path/file.py:function"


class Command(TyperCommand):
    """Takes ``--repair`` without a value, and ``--no-repair``, as well."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        out: list[str] = []
        for word, after in zip(args, [*args[1:], ""]):
            bare = word == "--repair" and after not in REPAIRS
            out += ["--repair", "least-squares"] if bare else ["--repair", "none"] if word == "--no-repair" else [word]
        return super().parse_args(ctx, out)


def command(
    model: Model,
    budget: Annotated[str, typer.Option(help="What may remain: macs=0.5, params=100000, or both with a comma.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write.")] = None,
    input: Input = None,
    weights: Weights = None,
    classes: Classes = None,
    data: Annotated[
        str | None, typer.Option(help="Folder, Parquet files, name, or digits: for criteria, repair, BN.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="What is unimportant (prunus ls criteria).")] = "l2",
    allocator: Annotated[str, typer.Option(help="How much from where (prunus ls allocators).")] = "global",
    freeze: Annotated[list[str] | None, typer.Option(help="Nothing under this name or glob changes shape.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only groups made under this name or glob.")] = None,
    round_to: Annotated[int, typer.Option(help="Widths become multiples of it; 16 is free speed on CPUs.")] = 1,
    floor: Annotated[float | None, typer.Option(help="Least share (below 1) or number of a group's units.")] = None,
    absorb: Annotated[bool, typer.Option(help="Move the constant of removed channels into the next layer.")] = False,
    select: Annotated[bool, typer.Option(help="Channel selections for pre-activation networks.")] = False,
    repair: Annotated[
        str | None,
        typer.Option(
            metavar="[least-squares|blocks|bias|none]",
            help="Rebuild every layer, then whole blocks, or biases alone; --no-repair: not even batch norms.",
        ),
    ] = None,
    merge: Annotated[bool, typer.Option(help="Merge each removed unit into the kept one most like it.")] = False,
    per: Annotated[str | None, typer.Option(help="Divide scores by a unit's cost: macs or params.")] = None,
    loss: Annotated[str | None, typer.Option(help=f"{FUNCTION} (output, batch) -> loss, for criteria.")] = None,
    evaluate: Annotated[str | None, typer.Option(help=f"{FUNCTION} (model) -> float, higher is better.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes to time at. Default: 1")] = None,
    seed: int = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be cut; write nothing.")] = False,
    json: Json = False,
) -> None:
    """One cut without training: prune a network to a budget, verify, and save it with its report."""
    from prunus.recipes import check
    from prunus.recipes import run as carry_out
    from prunus.recipes.folder import refuse_used

    if repair not in (None, *REPAIRS):
        raise InputError(f"--repair {repair}: expected one of {', '.join(REPAIRS)}.")
    if repair not in (None, "none") and data is None:
        raise InputError("--repair rebuilds layers from data (no labels are needed): give --data.")
    if out is None and not dry_run:
        raise InputError("--out is missing: name the folder to write, or say --dry-run.")
    if out is not None and not dry_run:
        refuse_used(out, "Give another --out.")
    cut: dict[str, Any] = {"do": "prune", "criterion": criterion, "allocator": allocator, "round_to": round_to}
    cut |= {"budget": _budget(budget), "freeze": freeze or [], "only": only or [], "absorb": absorb, "select": select}
    cut |= {"repair": repair if repair not in (None, "none") else False, "merge": merge, "per": per}
    cut["floor"] = int(floor) if floor is not None and floor >= 1 and floor.is_integer() else floor
    stages = [cut] + ([{"do": "recalibrate"}] if data is not None and repair is None else [])
    raw: dict[str, Any] = {"recipe": "prune", "model": model, "weights": weights, "classes": classes, "data": data}
    raw |= {"input": input, "loss": loss, "evaluate": evaluate, "seed": seed, "stages": stages}
    raw |= {"measure": {"batches": batch or [1]}}
    recipe = check(raw, {}, "prunus prune")
    if dry_run:
        _show_plan(_rehearse(recipe), json)
        return
    finish(*carry_out(recipe, out, quiet=json), json)


def _budget(text: str) -> dict[str, Any]:
    budget = Budget.parse(text)
    return {kind: getattr(budget, kind) for kind in ("params", "macs") if getattr(budget, kind) is not None}


def _rehearse(recipe: Any) -> Report:
    """The cut on a network in memory."""
    from prunus.recipes.context import Context
    from prunus.recipes.folder import Folder
    from prunus.recipes.stages import cut

    context = Context.of(recipe, Folder(Path(), writes=False))
    return cut(context, recipe.stages[0], context.origin.module, verify=True)


def _show_plan(report: Report, json: bool) -> None:
    from rich.console import Group

    from prunus.report.console import widths

    plan = {k: {"units": g.units, "kept": len(g.kept)} for k, g in report.plan.groups.items()}
    left = [{"what": f.what, "why": f.why} for f in report.left_alone]
    data = {"before": dict(report.before), "after": dict(report.after), "plan": plan, "left_alone": left}
    emit(data, lambda: Group(str(report), "", widths(plan), "", "Nothing was written (--dry-run)."), json)
