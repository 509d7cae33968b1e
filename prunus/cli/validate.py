"""prunus validate"""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.common import Json, emit


def command(
    recipe: Annotated[str, typer.Argument(help="A .yaml file, or a built-in name.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="Overrides.")] = None,
    json: Json = False,
) -> None:
    """Check a recipe without running it, and print it with every default written out."""
    from prunus.recipes import dump, load
    from prunus.recipes.text import write

    resolved = dump(load(recipe, overrides or ()))
    emit(resolved, lambda: f"{write(resolved)}\n# {recipe} is valid", json)
