"""prunus export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.common import Classes, Input, Json, Weights, emit, target
from prunus.core import FileError, InputError


def command(
    what: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="The folder of a run, or a model.")],
    to: Annotated[str, typer.Option(help="Formats, with commas: `prunus ls formats` names them.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: DIR/model.<format>; a model needs it.")
    ] = None,
    input: Input = None,
    weights: Weights = None,
    classes: Classes = None,
    json: Json = False,
) -> None:
    """Write the network of a run, or of a file, in another format, compared with the network itself."""
    from prunus.export import exporters
    from prunus.recipes.folder import make_folder

    formats = [exporters[name.strip()] for name in to.split(",")]
    folder = Path(what) if weights is None and ":" not in what else None
    if out is not None and len(formats) > 1:
        raise InputError("--out names one file; give one format with --to.")
    if out is not None and out.exists():
        raise InputError(f"--out {out} exists already; nothing was written. Give another name.")
    if folder is not None and not folder.is_dir():
        raise FileError(f"there is no run folder '{folder}'.")
    if folder is None and out is None:
        raise InputError(f"--out is missing: the file to write. Expected --out model.{formats[0].name}, say.")
    found = target(what, input=input, weights=weights, classes=classes)
    if out is not None:
        make_folder(out.parent, "--out")
    files: dict[str, dict[str, Any]] = {}
    for entry in formats:
        path = out or Path(what) / f"model.{entry.name}"
        error = entry.call(found.module, found.example, path, verify=True)
        said = entry.declares.get("notes", lambda path: [])(path)
        files[entry.name] = {"path": str(path), "max_relative_error": error, "notes": said}
    rows = [
        "\n".join([f"{f['path']}  (differs by {f['max_relative_error']:.1e})", *f["notes"]]) for f in files.values()
    ]
    emit(files, lambda: "\n".join(rows), json)
