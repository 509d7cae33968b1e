"""prunus measure"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from prunus.cli.common import Classes, Input, Json, Weights, emit, target
from prunus.core import InputError


def command(
    what: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="A model, or the folder of a run.")],
    input: Input = None,
    backend: Annotated[str, typer.Option(help="Where to time, with commas.")] = "torch,onnxruntime",
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1",
    threads: int = 1,
    seconds: Annotated[float, typer.Option(help="How long to time each.")] = 1.0,
    weights: Weights = None,
    classes: Classes = None,
    json: Json = False,
) -> None:
    """What a network costs: parameters, multiply-adds, and milliseconds in real runtimes."""
    import prunus.export  # noqa: F401 (registers its backends)
    from prunus.measure import backends, form_for, inference_form, key, latency, macs, params, state_size

    names, sizes = [backends[name.strip()].name for name in backend.split(",")], _sizes(batch)
    found = target(what, input=input, weights=weights, classes=classes)
    run = inference_form(found.module, found.example, reads=("gates",))
    counted = macs(run.model, found.example)
    forms = {name: form_for(name, found.module, found.example) for name in names}
    times = {
        key(name, size, threads): asdict(
            latency(form.model, found.example, backend=name, batch=size, threads=threads, seconds=seconds)
        )
        for name, form in forms.items()
        for size in sizes
    }
    data = {
        "model": found.name,
        "params": params(run.model),
        "macs": counted.total,
        "size_bytes": state_size(run.model),
        "macs_by_operator": dict(counted.by_operator),
        "not_counted": dict(counted.not_counted),
        "latency": times,
        "notes": list(dict.fromkeys(note for form in (run, *forms.values()) for note in form.notes)),
    }
    emit(data, lambda: _table(data), json)


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--batch {text!r}: expected sizes above 0, e.g. 1,64.")
    return [int(part) for part in parts]


def _table(data: dict[str, Any]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from prunus.report.words import milliseconds, size

    table = Table(title=escape(data["model"]), title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_row("parameters", f"{data['params']:,}")
    table.add_row("multiply-adds per sample", f"{data['macs']:,}")
    table.add_row("size of the weights", size(data["size_bytes"]))
    for name, t in data["latency"].items():
        spread = f"{milliseconds(t['median_ms'])}  ({milliseconds(t['p10'])} to {milliseconds(t['p90'])})"
        table.add_row(f"latency {name}", spread)
    left_out = ", ".join(f"{op} x{n}" for op, n in data["not_counted"].items())
    table.add_row("not counted as multiply-adds", left_out or "nothing")
    for note in data["notes"]:
        table.add_row("as it is run", escape(note))
    return table
