"""Checkpoints of a training stage: tensors and primitives in one file that is replaced atomically."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from prunus.core.errors import FileError
from prunus.core.writing import write_atomically

FORMAT = 1


def checkpoint_path(folder: Path, stage: str) -> Path:
    """Where the checkpoint of `stage` lies in a run folder."""
    return folder / "checkpoints" / f"{stage}.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, made of tensors and primitives, atomically."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state at `path`, on the CPU, or None when there is no file.

    Only tensors and primitives are read.  Raises `FileError` when the file is damaged or not a checkpoint.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: zip, pickle, end of file, runtime
        raise FileError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); it is damaged or was not written by "
            f"prunus. Delete it to begin the stage again."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FileError(f"{path} is not a checkpoint of format {FORMAT}. Delete it to begin the stage again.")
    return state


def check_settings(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise `FileError` when a run is resumed with other settings than it was started with."""
    different = [name for name in given if saved.get(name) != given[name]]
    if different:
        rows = "; ".join(f"{name} was {saved.get(name)!r}, is now {given[name]!r}" for name in different)
        raise FileError(
            f"the checkpoint {path} is of another run: {rows}. Resume with the same settings, or use a new folder."
        )


def rng_state() -> dict[str, Any]:
    """The state of every random generator of this process, as tensors and primitives."""
    import numpy as np

    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype("int64")),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    import numpy as np

    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    saved = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": saved["key"].numpy().astype("uint32"), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python's own generator."""
    import numpy as np

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
