"""prunus run"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.common import Json, emit


def command(
    recipe: Annotated[str, typer.Argument(help="A .yaml file, or a built-in name (prunus ls recipes).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="Overrides, e.g. budget.macs=0.5 epochs=3")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write. Default: runs/<recipe>-<time>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run of the same recipe.")] = False,
    json: Json = False,
) -> None:
    """A whole run: trains, cuts, repairs, verifies, exports and reports, as a recipe says."""
    from prunus.recipes import load
    from prunus.recipes import run as carry_out

    folder, result = carry_out(load(recipe, overrides or ()), out, resume=resume, quiet=json)
    if "after" in result:  # the first rank
        finish(folder, result, json)


def finish(folder: Path, result: dict, json: bool) -> None:
    """Show a result and where it lies."""
    from prunus.report import terminal

    emit({"folder": str(folder), **result}, lambda: terminal(result), json)
    if not json:
        typer.echo(f"\n{folder / 'report.html'}  shows it all; the network is {folder / 'model.safetensors'}")
