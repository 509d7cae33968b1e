"""prunus groups"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.common import Classes, Input, Json, Model, emit, target
from prunus.core import InputError


def command(
    model: Model,
    input: Input = None,
    classes: Classes = None,
    freeze: Annotated[list[str] | None, typer.Option(help="Nothing under this name or glob changes shape.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only groups made under this name or glob.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the same as a page.")] = None,
    json: Json = False,
) -> None:
    """What is coupled: the channels that must be cut together, and what cannot be cut and why."""
    from prunus.report import groups_table
    from prunus.report.groups import as_data
    from prunus.tracing import trace

    found = target(model, input=input, classes=classes)
    groups = trace(found.module, found.example, freeze=freeze or (), only=only or ())
    fixed = [{"what": f.what, "why": f.why} for f in groups.fixed]
    if html is not None:
        _write(html, groups_table(groups, most=20), model)
    emit({"groups": as_data(groups), "fixed": fixed, "cost": groups.costs()}, lambda: groups_table(groups), json)


def _write(path: Path, table: Any, title: str) -> None:
    """The table as one page that fetches nothing."""
    import io

    from rich.console import Console

    from prunus.recipes.folder import make_folder

    if path.exists():
        raise InputError(f"--html {path} exists already; nothing was written. Give another name.")
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(title, style="bold")
    console.print(table)
    make_folder(path.parent, "--html")
    path.write_text(console.export_html(inline_styles=True), encoding="utf-8")
