"""Where encoded images come from: Parquet files, a folder of images, a name on the hub; all through `datasets`."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.core import FileError, InputError, did_you_mean

PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Location:
    """A source that was found: its files (none for a name on the hub), and how `datasets` reads it."""

    name: str
    files: tuple[Path, ...]
    builder: str
    options: Mapping[str, Any]


def locate(source: str) -> Location:
    """Find a folder, a Parquet file, or take `source` as a name on the hub.

    Raises: `FileError` for a path that does not exist or holds no data.
    """
    path = Path(os.path.expandvars(source)).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if path.suffix != ".parquet":
            raise FileError(f"{path} is no Parquet file; give a .parquet file, a folder, or the name of a data set.")
        return _parquet(path.stem, [path])
    if source.startswith((".", "/", "~", "$")) or source.count("/") > 1 or source.endswith(".parquet"):
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileError(f"there is no data at {path}.{did_you_mean(path.name, beside)}")
    return Location(source, (), source, {})


def _folder(path: Path) -> Location:
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    parquet = [p for p in files if p.suffix == ".parquet"]
    if parquet:
        return _parquet(path.resolve().name, parquet)
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if images:
        return Location(path.resolve().name, tuple(images), "imagefolder", {"data_dir": str(path)})
    raise FileError(f"{path} holds neither Parquet files nor images; give a folder that holds one or the other.")


def _parquet(name: str, files: list[Path]) -> Location:
    parts: dict[str, list[str]] = {}
    for file in files:
        parts.setdefault(part_of(file.stem) or "all", []).append(str(file))
    return Location(name, tuple(files), "parquet", {"data_files": parts})


def part_of(name: str) -> str | None:
    """The part a file or split is named after.

    >>> part_of("train-00000-of-00002"), part_of("my_val"), part_of("trainer")
    ('train', 'validation', None)
    """
    words = re.split(r"[^a-z]+", name.lower())
    for part, spellings in PARTS.items():
        if any(word in spellings for word in words):
            return part
    return None


@contextmanager
def opened(location: Location) -> Iterator[dict[str, Any]]:
    """The `datasets.Dataset` of every part by its name (train, test, validation, or another).

    Local files are read through a temporary cache, so nothing is left behind.  Raises: `InputError` when `datasets`
    cannot read them.
    """
    import datasets

    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    with (
        _hushed("huggingface_hub"),
        tempfile.TemporaryDirectory(prefix="prunus-", ignore_cleanup_errors=True) as folder,
    ):
        options = dict(location.options, cache_dir=folder) if location.files else {}
        try:
            found = datasets.load_dataset(location.builder, **options)
        except Exception as error:  # `datasets` raises many kinds, most with a cause that says more
            raise InputError(_unreadable(location, error)) from error
        finally:
            if bars:
                datasets.enable_progress_bars()
        parts: dict[str, Any] = {part_of(str(name)) or str(name): part for name, part in found.items()}
        yield parts


@contextmanager
def _hushed(logger: str) -> Iterator[None]:
    """Without the warnings of a library, whose errors are told once, at the end."""
    noisy = logging.getLogger(logger)
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        yield
    finally:
        noisy.setLevel(level)


def _unreadable(location: Location, error: Exception) -> str:
    reason = str(error.__cause__ or error).strip().split("\n")[0]
    if location.files:
        return f"the data in {location.name} cannot be read ({type(error).__name__}: {reason})."
    return (
        f"'{location.name}' is neither a folder or file here, nor could a data set of this name be had from the hub "
        f"({type(error).__name__}: {reason}). Give a folder, a Parquet file, 'digits', or the name of a data set."
        f"{did_you_mean(location.name, ['digits'])}"
    )
