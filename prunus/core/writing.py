"""Files that are either the old or the new one, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from prunus.core.errors import WriteError

PART = ".part"  # of what is not whole yet


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The path of a file to fill: beside `path`, brought to the disk, and only then put in its place.

    A kill or a full disk at any moment leaves the old file as it was; the new one is removed when that is possible, and
    else by who writes to the same place next.  A link stays a link; what it points to is replaced.

    Raises: `WriteError`, which is an `OSError`, when the disk is full, the folder cannot be written, or there is
    something at `path` that is no file.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/deep/a.txt") as new:
    ...         _ = new.write_text("whole")
    ...     [p.name for p in Path(folder, "deep").iterdir()]
    ['a.txt']
    """
    target, room = Path(os.path.realpath(path)), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "there is a folder, a device or a pipe, no file")
        begins = f".{target.name[:64]}."
        _clear(target.parent, begins)
        # a folder: what fills the file may put files of its own beside it, as safetensors does
        room = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{begins}{_me()}.", suffix=PART))
        new = room / target.name
        new.touch()
        yield new
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(new, 0o644)
        os.replace(new, target)
    except BaseException as error:
        why = _of_the_disk(error)
        if why is None or isinstance(error, WriteError):
            raise
        raise WriteError(
            f"'{path}' could not be written: {why}. What was there before is still whole. Make room, or give another "
            "place."
        ) from error
    finally:
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)
    _sync_folder(target.parent)


def _me() -> str:
    """This process, by its machine and number."""
    return f"{re.sub(r'[^A-Za-z0-9]', '_', socket.gethostname())[:40]}-{os.getpid()}"


def _clear(folder: Path, begins: str) -> None:
    """Remove what processes of this machine that are no more left of the same file."""
    for left in folder.iterdir():
        found = re.fullmatch(r"(.+)-(\d+)\.[a-z0-9_]{8}", left.name.removeprefix(begins).removesuffix(PART))
        if not (found and left.name.startswith(begins) and left.name.endswith(PART)):
            continue
        with contextlib.suppress(OSError):
            here = found.group(1) == _me().rpartition("-")[0]
            if here and not _alive(int(found.group(2))):
                shutil.rmtree(left)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or a system that does not tell
        return True
    return True


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
