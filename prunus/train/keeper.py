"""When a checkpoint is written, and what happens when it cannot be."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from prunus.core.errors import TrainingError
from prunus.train.checkpoint import checkpoint_path, save_checkpoint
from prunus.train.history import Epoch, write_metrics

SHARE = 0.01  # of the time, at most, goes into saving


class Keeper:
    """Writes the metrics and the checkpoint of a stage into its run folder; nothing without a folder."""

    def __init__(self, folder: Path | None, stage: str, every: float) -> None:
        self.folder, self.stage, self.every = folder, stage, every
        self.path = checkpoint_path(folder, stage) if folder else None
        self._cost, self._last = 0.0, time.monotonic()

    def due(self) -> bool:
        """Whether it is time: after `every` seconds, or later where writing is slow (`SHARE`)."""
        return self.path is not None and time.monotonic() - self._last > max(self.every, self._cost / SHARE)

    def write(self, state: dict[str, Any], rows: tuple[Epoch, ...], final: bool) -> None:
        """Write both; a full disk costs the new checkpoint, never the old one.

        Raises: `TrainingError` when the final one cannot be written; for others there is a `RuntimeWarning`.
        """
        if self.path is None or self.folder is None:
            return
        started = time.monotonic()
        try:
            write_metrics(self.folder / "metrics.csv", self.stage, rows)
            save_checkpoint(self.path, state)
        except (OSError, RuntimeError) as error:  # torch reports a failed write of a zip file as RuntimeError
            text = f"stage '{self.stage}': no checkpoint could be written to {self.path}: {error}."
            if final:
                raise TrainingError(f"{text} The last one is kept; make room and resume.") from None
            warnings.warn(f"{text} The last one is kept; training goes on.", RuntimeWarning, stacklevel=2)
        self._last = time.monotonic()
        self._cost = self._last - started

    @property
    def kept(self) -> str:
        """A sentence about the last checkpoint, for an error message."""
        return f" The last good checkpoint is {self.path}." if self.path and self.path.exists() else ""
