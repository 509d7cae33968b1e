"""Bytes that belong to a text, this processor and these versions, kept on disk for the next time: object code.

What lies there is run, so it is read only from a folder of this user's that nobody else may write to, and only where
key and checksum, which covers the key, are right.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from pathlib import Path

from prunus.core.writing import write_atomically

MOST = 1 << 26  # bytes of a file
SUM = 32  # bytes of a checksum; the key's stand behind it
_SAID: set[str] = set()


def folder() -> Path:
    """Where object code is kept: a folder of this user's under ``$PRUNUS_CACHE``, else under the user's cache folder.

    People share ``$PRUNUS_CACHE``, for decoded images; what is run they do not share.
    """
    given = os.environ.get("PRUNUS_CACHE")
    if given:
        return Path(given).expanduser() / f"kernels-{os.getuid() if hasattr(os, 'getuid') else 'own'}"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunus" / "kernels"


def stored(key: str) -> bytes | None:
    """What `store` wrote under a key, on this machine; None where there is nothing, or it is damaged or another's."""
    if not _trusted():
        return None
    try:
        handle = os.open(folder() / key, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            if not _own(os.fstat(handle), 0o022):
                _warn(f"the file {folder() / key} belongs to, or can be written by, somebody else")
                return None
            data = file.read(MOST)
    except OSError:
        return None
    name = key.encode()
    found, code = data[SUM : SUM + len(name)], data[SUM + len(name) :]
    return code if found == name and data[:SUM] == _sum(name, code) else None


def store(key: str, code: bytes) -> None:
    """Keeps bytes on disk for the next time."""
    try:
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _trusted():
            return
        write_atomically(folder() / key, lambda file: file.write(_sum(key.encode(), code) + key.encode() + code))
    except OSError:
        pass  # a disk that cannot be written to costs time, nothing else


def _sum(name: bytes, code: bytes) -> bytes:
    return hashlib.sha256(name + code).digest()


def _trusted() -> bool:
    """Whether the folder is this user's and nobody else may look into it or write there."""
    try:
        found = os.lstat(folder())
    except OSError:
        return False
    if stat.S_ISDIR(found.st_mode) and _own(found, 0o077):
        return True
    _warn(f"the folder {folder()} is not this user's alone (owner {found.st_uid}, mode {stat.filemode(found.st_mode)})")
    return False


def _own(found: os.stat_result, others: int) -> bool:
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & others)


def _warn(what: str) -> None:
    if what not in _SAID:
        _SAID.add(what)
        warnings.warn(
            f"{what}, so no kernels are read from it or kept there: what lies there would be run. Give it to this user "
            "alone (chmod 700), or set PRUNUS_CACHE to another folder.",
            stacklevel=2,
        )
