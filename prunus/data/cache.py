"""Decoded images on disk, so that the second run starts at once."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from prunus.core.errors import WriteError
from prunus.core.writing import replacing

VERSION = 1  #: of what is stored; an older file is not found under the new key


def cache_folder() -> Path:
    """``$PRUNUS_CACHE``, else ``prunus`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("PRUNUS_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunus"


def cache_key(files: Sequence[Path], *settings: Any) -> str:
    """A name for what these files decode to: their paths, sizes and times of change, and the settings."""
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    text = json.dumps([VERSION, stats, settings], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_cache(key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors and the metadata stored under `key`; None when there are none, or the file is damaged."""
    from safetensors import SafetensorError, safe_open

    path = cache_folder() / f"{key}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return None


def write_cache(key: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Store tensors under `key`, whole or not at all; a disk that does not take them is a warning, no error."""
    from safetensors.torch import save_file

    try:
        with replacing(cache_folder() / f"{key}.safetensors") as new:
            save_file(tensors, new, metadata)
    except WriteError as error:
        warnings.warn(f"decoded images are not kept ({error}); set PRUNUS_CACHE to a writable folder.", stacklevel=2)
