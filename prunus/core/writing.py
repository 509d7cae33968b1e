"""Files that are either the old or the new one, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from prunus.core.errors import WriteError

PART = ".part"  # of a file that is not whole yet


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The path of a file to fill: beside `path`, brought to the disk, and only then put in its place.

    A kill or a full disk at any moment leaves the old file as it was; the new one is removed when that is possible.  A
    link stays a link; what it points to is replaced.

    Raises: `WriteError`, which is an `OSError`, when the disk is full, the folder cannot be written, or there is
    something at `path` that is no file.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/deep/a.txt") as new:
    ...         _ = new.write_text("whole")
    ...     [p.name for p in Path(folder, "deep").iterdir()]
    ['a.txt']
    """
    target, new = Path(os.path.realpath(path)), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "there is a folder, a device or a pipe, no file")
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:64]}.", suffix=PART)
        os.close(handle)
        new = Path(name)
        yield new
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(new, 0o644)
        os.replace(new, target)
    except BaseException as error:
        if new is not None:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
        why = _of_the_disk(error)
        if why is None or isinstance(error, WriteError):
            raise
        raise WriteError(
            f"'{path}' could not be written: {why}. What was there before is still whole. Make room, or give another "
            "place."
        ) from error
    _sync_folder(target.parent)


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill the file at `path`, whole or not at all; raises as `replacing` does."""
    with replacing(path) as new, open(new, "wb") as file:
        write(file)


def write_text(path: str | Path, content: str) -> None:
    """A text file in UTF-8, whole or not at all; raises as `replacing` does."""
    write_atomically(path, lambda file: file.write(content.encode()))


def _of_the_disk(error: BaseException) -> str | None:
    """Why the disk did not take a file, where that is what an error says."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        return str(error)
    if isinstance(error, RuntimeError) and any(
        who in str(error) for who in ("PytorchStreamWriter", "inline_container")
    ):
        return "torch could not write all of it; the disk may be full"
    return None


def _sync_folder(folder: Path) -> None:
    """Bring the renaming itself to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that does not open folders
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
