"""prunus cp"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.common import Json, emit
from prunus.core import InputError
from prunus.core.writing import write_text


def command(
    recipe: Annotated[str, typer.Argument(help="The recipe to copy (prunus ls recipes).")],
    to: Annotated[Path, typer.Argument(help="A folder, or the name of the new file.")] = Path(),
    json: Json = False,
) -> None:
    """Copy a built-in recipe, to change it."""
    from prunus.recipes import find

    source = find(recipe)
    path = to / source.name if to.is_dir() else to
    if path.exists():
        raise InputError(f"'{path}' exists already; nothing was written. Give another name: prunus cp {recipe} my.yaml")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder '{path.parent}' to copy into.")
    write_text(path, source.read_text(encoding="utf-8"))
    emit({"path": str(path)}, lambda: f"{path}\nRun it with:  prunus run {path}", json)
