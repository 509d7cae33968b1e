"""prunus ls"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from prunus.cli.common import Json, emit
from prunus.core import UnknownNameError, did_you_mean

Row = dict[str, str]


def command(
    kind: Annotated[
        str,
        typer.Argument(help="criteria, allocators, regularizers, methods, inits, recipes, models, backends or formats"),
    ],
    json: Json = False,
) -> None:
    """What there is, with one line and the paper of each."""
    if kind not in KINDS:
        raise UnknownNameError(f"there is no list of '{kind}'.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}.")
    rows = KINDS[kind]()
    emit(rows, lambda: _table(kind, rows), json)


def _entries(registry: Iterable[Any]) -> list[Row]:
    return [{"name": e.name, "what": plain(e.line), "paper": e.paper} for e in registry]


def plain(line: str) -> str:
    """A sentence of a docstring for a terminal: without its equation.

    >>> plain(r"Sum of the absolute weights, $s_u = \\sum_w |w|$ (section 3).")
    'Sum of the absolute weights (section 3).'
    """
    return re.sub(r"[,:]?\s*\$[^$]*\$", "", line)


def _criteria() -> list[Row]:
    from prunus.criteria import criteria

    return [{**row, "looks at": _looks_at(entry)} for row, entry in zip(_entries(criteria), criteria)]


def _looks_at(criterion: Any) -> str:
    """What a criterion must be given beside the network."""
    from prunus.criteria import of_data
    from prunus.observe import collectors

    needs = of_data(criterion.name)
    if any(collectors[need].declares.get("labels") for need in needs):
        return "labelled data"
    return "unlabelled data" if needs else "weights" if not criterion.declares["seeded"] else "nothing"


def _allocators() -> list[Row]:
    from prunus.allocators import allocators

    return _entries(allocators)


def _regularizers() -> list[Row]:
    from prunus.regularizers import regularizers

    return _entries(regularizers)


def _methods() -> list[Row]:
    from prunus.masks import methods

    return _entries(methods)


def _inits() -> list[Row]:
    from prunus.bases import inits

    return _entries(inits)


def _models() -> list[Row]:
    from prunus.zoo import models

    return [{**row, "name": f"prunus:{row['name']}"} for row in _entries(models)]


def _recipes() -> list[Row]:
    from prunus.recipes import builtin
    from prunus.recipes.text import read

    found = {name: read(path)[0] for name, path in builtin().items()}
    return [{"name": name, "what": str(raw.get("about", "")), "paper": ""} for name, raw in found.items()]


def _backends() -> list[Row]:
    import prunus.export  # noqa: F401 (registers its backends)
    from prunus.measure import backends

    return _entries(backends)


def _formats() -> list[Row]:
    from prunus.export import exporters

    return _entries(exporters)


KINDS: dict[str, Callable[[], list[Row]]] = {
    "criteria": _criteria,
    "allocators": _allocators,
    "regularizers": _regularizers,
    "methods": _methods,
    "inits": _inits,
    "recipes": _recipes,
    "models": _models,
    "backends": _backends,
    "formats": _formats,
}


def _table(kind: str, rows: list[Row]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(kind, no_wrap=True)
    table.add_column("what", overflow="fold")
    more = [c for c in ("looks at", "paper") if any(row.get(c) for row in rows)]
    for column in more:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(row[c]) for c in ("name", "what", *more)))
    return table
