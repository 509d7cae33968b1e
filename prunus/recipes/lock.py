"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunus.core import InputError
from prunus.core.writing import PART
from prunus.recipes.folder import make_folder

try:
    import fcntl
except ImportError:  # a system without it: folders are not locked there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path, writes: bool = True) -> Iterator[None]:
    """The run folder at `path` is this process's alone, and holds no file that a killed run left half written.

    The lock is on the folder itself, leaves no file, and is gone with the process, however that ends.

    Raises: `InputError` when another process runs in the folder, or it cannot be written.
    """
    if not writes:
        yield
        return
    make_folder(path, "--out")
    handle = _lock(path)
    try:
        for part in list(path.rglob(f".*{PART}")):
            if re.search(r"-\d+\.[a-z0-9_]{8}$", part.name.removesuffix(PART)):  # as `prunus.core.writing` names them
                shutil.rmtree(part, ignore_errors=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()  # where nothing was written into it
        if handle is not None:
            os.close(handle)


def _lock(path: Path) -> int | None:
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"another process is running in the folder '{path}'; nothing was written. Wait for it, or give "
            "another --out."
        ) from None
    except OSError:  # a file system that knows no locks
        os.close(handle)
        return None
    return handle
