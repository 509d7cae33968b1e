"""What happened in training, one row an epoch, and the file that keeps it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from prunus.core.writing import write_text


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean training loss, top-1 in [0, 1] on the `decide` split (None without one), last learning rate.

    Attributes:
        stage: the name of the stage.
        epoch: its number, from 1.
        step: optimizer steps since the stage began.
        loss: in the unit of the loss.
        accuracy: of the split `decide`.
        lr: of the last step.
        seconds: of wall-clock time, validation among them.
    """

    stage: str
    epoch: int
    step: int
    loss: float
    accuracy: float | None
    lr: float
    seconds: float


@dataclass(frozen=True)
class History:
    """The epochs of a stage, the precision it was trained in, and the device.

    Attributes:
        rows: one an epoch, in order; () before the first.
        precision: as Lightning Fabric names it, ``"32"`` by default.
        device: the kind that it ran on, ``"cpu"`` by default.
        notes: of masks that moved; () of a stage that was finished before.

    >>> history = History((Epoch("train", 1, 10, 0.5, 0.8, 0.1, 2.0), Epoch("train", 2, 20, 0.4, 0.9, 0.0, 2.0)))
    >>> history.accuracy, history.seconds, len(history)
    (0.9, 4.0, 2)
    """

    rows: tuple[Epoch, ...] = ()
    precision: str = "32"
    device: str = "cpu"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.rows)

    @property
    def accuracy(self) -> float | None:
        """The accuracy after the last epoch."""
        return self.rows[-1].accuracy if self.rows else None

    @property
    def loss(self) -> float | None:
        """The mean training loss of the last epoch."""
        return self.rows[-1].loss if self.rows else None

    @property
    def seconds(self) -> float:
        """The time of all epochs, interruptions not counted."""
        return sum(row.seconds for row in self.rows)


COLUMNS = tuple(field.name for field in fields(Epoch))


def write_metrics(path: Path, stage: str, rows: tuple[Epoch, ...]) -> None:
    """Put the rows of `stage` into the CSV at `path`, after those of other stages; what it said of `stage` is replaced.

    The file is replaced as a whole, so a run that is killed and resumed leaves no row twice and none in halves.
    """
    kept = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if row.get("stage") != stage]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    writer.writerows({k: "" if v is None else v for k, v in asdict(row).items()} for row in rows)
    write_text(path, text.getvalue())
