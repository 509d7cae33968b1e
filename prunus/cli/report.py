"""prunus report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.common import Json, emit


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")], json: Json = False
) -> None:
    """Show a run again, and write its page anew."""
    from prunus.report import html, read_result, terminal

    result = read_result(folder)
    page = html(folder)
    emit({"report": str(page), **result}, lambda: terminal(result), json)
    if not json:
        typer.echo(f"\n{page}")
