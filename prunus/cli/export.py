"""prunus export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.common import Input, Json, emit, target
from prunus.core import FileError, InputError


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")],
    to: Annotated[str, typer.Option(help="Formats, with commas.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: DIR/model.<format>")] = None,
    input: Input = None,
    json: Json = False,
) -> None:
    """Write the network of a run in another format, compared with the network itself."""
    from prunus.export import exporters
    from prunus.recipes.folder import make_folder

    formats = [exporters[name.strip()] for name in to.split(",")]
    if out is not None and len(formats) > 1:
        raise InputError("--out names one file; give one format with --to.")
    if out is not None and out.exists():
        raise InputError(f"--out {out} exists already; nothing was written. Give another name.")
    if not folder.is_dir():
        raise FileError(f"there is no run folder '{folder}'.")
    found = target(str(folder), input=input)
    if out is not None:
        make_folder(out.parent, "--out")
    files = {}
    for entry in formats:
        path = out or folder / f"model.{entry.name}"
        error = entry.call(found.module, found.example, path, verify=True)
        files[entry.name] = {"path": str(path), "max_relative_error": error}
    rows = [f"{f['path']}  (differs by {f['max_relative_error']:.1e})" for f in files.values()]
    emit(files, lambda: "\n".join(rows), json)
