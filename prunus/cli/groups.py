"""prunus groups"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.common import Classes, Input, Json, Model, emit, target
from prunus.core import InputError
from prunus.core.writing import write_text


def command(
    model: Model,
    input: Input = None,
    classes: Classes = None,
    freeze: Annotated[list[str] | None, typer.Option(help="Nothing under this name or glob changes shape.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only groups made under this name or glob.")] = None,
    tree: Annotated[bool, typer.Option("--tree", help="The module tree, with the group of every dimension.")] = False,
    unfold: Annotated[bool, typer.Option("--unfold", help="Repeated blocks one by one.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page that shows every group in the model.")] = None,
    json: Json = False,
) -> None:
    """What is coupled: the channels that must be cut together, and what cannot be cut and why."""
    from prunus.report import groups_page, groups_table, groups_tree
    from prunus.report.groups import as_data
    from prunus.report.view import View
    from prunus.tracing import trace

    if html is not None and html.exists():
        raise InputError(f"--html {html} exists already; nothing was written. Give another name.")
    found = target(model, input=input, classes=classes)
    groups = trace(found.module, found.example, freeze=freeze or (), only=only or ())
    view = View(groups, {name: type(module).__name__ for name, module in found.module.named_modules()})
    if html is not None:
        _write(html, groups_page(view, name=model))
    fixed = [{"what": f.what, "why": f.why} for f in groups.fixed]
    data = {"groups": as_data(view), "fixed": fixed, "cost": view.cost}
    emit(data, lambda: (groups_tree if tree else groups_table)(view, name=model, unfold=unfold), json)


def _write(path: Path, page: str) -> None:
    from prunus.recipes.folder import make_folder

    make_folder(path.parent, "--html")
    write_text(path, page)
