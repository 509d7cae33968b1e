"""prunus compare"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.common import Json, emit


def command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR DIR ...", help="Folders of runs.")], json: Json = False
) -> None:
    """Several runs side by side."""
    from prunus.report import compare, read_result

    data = [{"folder": str(folder), **read_result(folder)} for folder in folders]
    emit(data, lambda: compare(folders), json)
