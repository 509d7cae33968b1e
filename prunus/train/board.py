"""Curves for TensorBoard."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus.core.process import without_warnings
from prunus.train.history import Epoch


class Board:
    """TensorBoard curves of a stage; nothing without a folder."""

    def __init__(self, folder: Path | None, stage: str, step: int) -> None:
        self._writer: Any = None
        if folder is not None:
            with without_warnings():
                from torch.utils.tensorboard import SummaryWriter

            with self._disk():
                self._writer = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=step or None)

    def add(self, row: Epoch) -> None:
        """The values of an epoch; a disk that is full ends the curves, not the training."""
        if self._writer is None:
            return
        with self._disk():
            for name in ("loss", "accuracy", "lr"):
                value = getattr(row, name)
                if value is not None:
                    self._writer.add_scalar(name, value, row.step)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            warnings.warn(f"TensorBoard's curves end here: {error}.", RuntimeWarning, stacklevel=4)
            self._writer = None

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
