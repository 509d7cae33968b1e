"""The folder of a run: what each stage left, on disk all at once or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.core import FileError, InputError
from prunus.core.writing import PART, write_text
from prunus.recipes import text
from prunus.recipes.load import check, dump
from prunus.recipes.schema import Recipe

START = "start"
RUNS = Path("runs")


@dataclass(frozen=True)
class Folder:
    """Paths and atomic writes in a run folder; `writes` is False on all ranks but the first."""

    path: Path
    writes: bool = True

    @property
    def model(self) -> Path:
        """The final network."""
        return self.path / "model.safetensors"

    def network(self, index: int, stage: str) -> Path:
        """The network as a stage left it; index 0 is the network that the run began with."""
        return self.path / "checkpoints" / f"{index:02d}-{stage}.safetensors"

    def done(self, index: int, stage: str) -> dict[str, Any] | None:
        """What a finished stage said of itself, or None when it has not finished."""
        path = self.network(index, stage).with_suffix(".json")
        return read_json(path) if path.is_file() else None

    def finish(self, index: int, stage: str, facts: Mapping[str, Any]) -> None:
        """Mark a stage as finished, once its network is on disk."""
        self.write_json(f"checkpoints/{index:02d}-{stage}.json", facts)

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file of the folder atomically."""
        self._write(name, json.dumps(data, indent=1) + "\n")

    def _write(self, name: str, content: str) -> None:
        """Write a text file of the folder atomically."""
        if self.writes:
            write_text(self.path / name, content)

    def begin(self, recipe: Recipe) -> bool:
        """Make the folder and write the recipe into it; False when it was there already."""
        new = not (self.path / "recipe.yaml").is_file()
        if new and self.writes:
            make_folder(self.path, "--out")
            self._write("recipe.yaml", text.write(dump(recipe)))
        return new

    def undo(self) -> None:
        """Take back what `begin` and the start of a run wrote, when no stage was finished."""
        checkpoints = self.path / "checkpoints"
        if self.writes and not any(p.suffix == ".json" and not p.stem.startswith("00-") for p in checkpoints.glob("*")):
            for path in (self.path / "recipe.yaml", *checkpoints.glob("00-start.*")):
                path.unlink(missing_ok=True)
            for folder in (checkpoints, self.path):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    @property
    def finished(self) -> bool:
        """Whether the run in this folder has come to its end."""
        return (self.path / "result.json").is_file() and (self.path / "report.html").is_file()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `FileError` when the file is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"'{path}' is damaged ({error}); delete it, and --resume repeats that stage.") from None
    if not isinstance(data, dict):
        raise FileError(f"'{path}' is damaged (not a JSON object); delete it, and --resume repeats that stage.")
    return data


def recipe_of(path: Path) -> dict[str, Any] | None:
    """The resolved recipe in a run folder, as plain data, keys that it was written without at their defaults.

    None when there is none.
    """
    file = path / "recipe.yaml"
    if not file.is_file():
        return None
    raw = text.read(file)[0]
    try:
        return dump(check(raw, {}, str(file)))
    except InputError:  # of another prunus: it is no recipe of this one
        return raw


def choose(recipe: Recipe, out: str | Path | None, *, resume: bool) -> Path:
    """The folder to run in: a new one, or with `resume` the one that holds an unfinished run of the same recipe.

    Without `out` a new run goes to ``runs/<recipe>-<time>``, and `resume` takes the newest unfinished run there.  To
    resume a folder into which nothing was written yet is to start.
    Nothing is written.

    Raises: `InputError` when the folder already holds something and `resume` is not given, when it is not a folder,
    when it holds a run of another recipe, or when there is nothing to resume.
    """
    path = Path(out) if out is not None else _newest(recipe) if resume else _fresh(recipe)
    if resume and out is not None and not _blank(path):
        _same_recipe(path, recipe)
    elif not resume:
        refuse_used(path, "Give another --out, or --resume to go on.")
    return path


def refuse_used(path: Path, hint: str) -> None:
    """Raise `InputError` when a run cannot be written to `path`: it is a file, or a folder that holds something."""
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path} is a file; give a folder that is new or empty.")
    if path.is_dir() and any(path.iterdir()):
        what = "already holds a run" if (path / "recipe.yaml").is_file() else "is not empty"
        raise InputError(f"the folder '{path}' {what}; nothing was written. {hint}")


def make_folder(path: Path, option: str) -> None:
    """Make a folder to write into; raises `InputError` naming the `option` when that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error.strerror}); give another place.") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{option} {path} cannot be written (no permission); give another place.")


def _blank(path: Path) -> bool:
    """Whether nothing was written to a folder yet, but for files that a kill left half written."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
    return not path.exists() or (path.is_dir() and all(PART in (p.suffix, p.parent.suffix) for p in files))


def _fresh(recipe: Recipe) -> Path:
    stem = f"{recipe.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = RUNS / stem, 2
    while path.exists():
        path, count = RUNS / f"{stem}-{count}", count + 1
    return path


def _newest(recipe: Recipe) -> Path:
    wanted = dump(recipe)
    found = sorted((p.parent for p in RUNS.glob("*/recipe.yaml")), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in found:
        if not Folder(path).finished and recipe_of(path) == wanted:
            return path
    raise InputError(
        f"there is no unfinished run of this recipe in '{RUNS}/' (the recipe and its overrides must be the same). "
        "Start one without --resume, or name its folder with --out."
    )


def _same_recipe(path: Path, recipe: Recipe) -> None:
    there = recipe_of(path)
    if there is None:
        raise InputError(f"--resume: the folder '{path}' holds no run (no recipe.yaml). Start it without --resume.")
    now = dump(recipe)
    different = sorted(k for k in {*there, *now} if there.get(k) != now.get(k))
    if different:
        raise InputError(
            f"--resume: the run in '{path}' has another recipe ({', '.join(different)} differ). Give the same recipe "
            f"and overrides as then, or run {path / 'recipe.yaml'} itself."
        )
