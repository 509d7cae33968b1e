"""The loop over epochs and steps, and where it stands."""

from __future__ import annotations

import time
import zlib
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.core.errors import FileError, InputError, TrainingError
from prunus.core.groups import Groups
from prunus.train.board import Board
from prunus.train.checkpoint import check_settings, load_checkpoint, rng_state, seed_everything, set_rng_state
from prunus.train.display import Display
from prunus.train.engine import Engine
from prunus.train.history import Epoch, History
from prunus.train.interrupt import Interrupt
from prunus.train.keeper import Keeper
from prunus.train.meter import Meter, Reading
from prunus.train.rates import learning_rate
from prunus.train.settings import Settings


@dataclass
class Position:
    """Where a stage stands: the batch to come, and what the running epoch has summed up."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    samples: float = 0.0
    seconds: float = 0.0


class Loop:
    """A stage in training: its position, its history, and the steps that move it."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        preprocess: Any,
        settings: Settings,
        *,
        groups: Groups | None,
        teacher: nn.Module | None,
        folder: Path | None,
        resume: bool,
    ) -> None:
        self.data, self.preprocess, self.settings, self.folder = data, preprocess, settings, folder
        self.keeper = Keeper(folder, settings.stage, settings.every)
        path = self.keeper.path
        saved = load_checkpoint(path) if path and resume else None
        precision = settings.precision
        if saved is not None and precision == "auto":
            precision = saved["settings"]["precision"]
        self.engine = Engine(model, teacher, settings, precision)
        self.seed = settings.seed + zlib.crc32(settings.stage.encode())  # stages do not repeat each other's order
        self.steps = len(self._batches(0, 0))
        if not self.steps:
            raise InputError(f"the training split makes no batch of {settings.batch}; it is too small.")
        self.rate = learning_rate(settings.schedule, settings.lr, settings.epochs, self.steps)
        self.meter = Meter(self.engine.device, self.engine.world)
        self.position, self.finished = Position(), False
        self.rows: tuple[Epoch, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._rng: dict[str, Any] | None = None
        self._want_save = self._want_stop = False
        self.fingerprint = settings.fingerprint(self.engine.precision, self.steps, self.engine.world, self.rate)
        self.engine.cover(settings.epochs * self.steps)
        if saved is not None:
            self._restore(saved)
        self.engine.start(groups)
        if path and saved is None and self.engine.rank == 0:
            path.unlink(missing_ok=True)  # of an earlier run: it must not be taken for this one's

    def run(self, quiet: bool) -> History:
        """Train to the end of the stage."""
        engine, s = self.engine, self.settings
        history = History((), engine.precision, engine.device.type)
        if not self.finished:
            if engine.gates is not None and not (self.position.epoch or self.position.batch):
                engine.gates.begin(self._batches(0, 0))
            done, first = self.position.epoch * self.steps + self.position.batch, engine.rank == 0
            board = Board(self.folder if first else None, s.stage, done)
            display = Display(s.stage, s.epochs, self.steps, done, quiet or not first)
            with closing(board), Interrupt() as self.interrupt, display as self.display:
                while self.position.epoch < s.epochs:
                    board.add(self._epoch())
                if self.interrupt.wanted is not None:  # too late to stop this stage, but not what comes after it
                    self.interrupt.leave()
        engine.fabric.barrier()
        return History(self.rows, history.precision, history.device, self.notes)

    def _batches(self, epoch: int, start: int) -> Any:
        """The batches of this process."""
        rank, world, s = self.engine.rank, self.engine.world, self.settings
        key = {"seed": self.seed, "epoch": epoch, "train": True, "augment": s.augment}
        return self.data.train.batches(s.batch // world, self.preprocess, **key, rank=rank, world=world, start=start)

    def _epoch(self) -> Epoch:
        """Train one epoch from where it stands, measure it, note it and save."""
        at = self.position
        self._started = time.monotonic()
        self._seed(at.epoch)
        self.engine.model.train()
        for x, y in self._batches(at.epoch, at.batch):
            step = at.epoch * self.steps + at.batch
            lr, stop = self.rate(step), self.interrupt.wanted is not None
            loss = self.engine.loss(x, y)
            self._take(self.meter.put(step, lr, loss, len(y), self._due(), stop))
            self.engine.update(loss, lr)
            at.batch += 1
            if self._want_stop or self._want_save:
                self._pause()
        self._take(self.meter.flush())
        if at.epoch + 1 == self.settings.epochs:
            self.notes = self.engine.finish()
        accuracy = self.engine.accuracy(getattr(self.data, "decide", None), self.preprocess)
        seconds = round(at.seconds + time.monotonic() - self._started, 3)
        step, loss_mean = (at.epoch + 1) * self.steps, at.loss_sum / at.samples
        row = Epoch(self.settings.stage, at.epoch + 1, step, loss_mean, accuracy, self.rate(step - 1), seconds)
        self.rows, self.position = (*self.rows, row), Position(at.epoch + 1)
        self.finished = self.position.epoch == self.settings.epochs
        self._save(final=self.finished)
        self.display.epoch(row)
        return row

    def _seed(self, epoch: int) -> None:
        """What dropout and the like draw is a function of (seed, stage, epoch, rank), continued after a resume."""
        if self._rng is None:
            seed_everything(zlib.crc32(f"{self.seed}/{epoch}/{self.engine.rank}".encode()))
        else:
            set_rng_state(self._rng)
            self._rng = None

    def _take(self, readings: list[Reading]) -> None:
        """Sum up the losses that have arrived; raise `TrainingError` for one that is not a number."""
        at = self.position
        for reading in readings:
            if not reading.finite:
                epoch, batch = divmod(reading.step, self.steps)
                where = f"epoch {epoch + 1}, step {batch + 1} of {self.steps}, learning rate {reading.lr:.3g}"
                raise self._diverged(f"the loss became {reading.loss} ({where})")
            at.loss_sum += reading.loss_sum
            at.samples += reading.samples
            self._want_save |= reading.save
            self._want_stop |= reading.stop
            self.display.step(at.epoch, reading.loss)

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"stage '{self.settings.stage}': {what}.{self.keeper.kept} Try a smaller lr, clip=1.0, a weaker "
            "regularizer or precision=32, and look for NaN in the data."
        )

    def _due(self) -> bool:
        """Whether it is time for a checkpoint; the first rank decides for all."""
        return self.engine.rank == 0 and self.keeper.due()

    def _pause(self) -> None:
        """Save in the middle of an epoch, and stop if that is wanted."""
        now = time.monotonic()
        self.position.seconds += now - self._started
        self._started = now
        self._save()
        self._want_save = False
        if self._want_stop:
            where = f" Resume continues from {self.keeper.path}." if self.keeper.path else ""
            self.display.say(f"{self.settings.stage}: stopped in epoch {self.position.epoch + 1}.{where}")
            self.interrupt.leave()

    def _save(self, final: bool = False) -> None:
        """Write the checkpoint and the metrics, if every weight is a number."""
        self._take(self.meter.flush())
        if not self.engine.finite:
            raise self._diverged(f"a weight became infinite or NaN (epoch {self.position.epoch + 1})")
        if self.keeper.path is None:
            return
        rng = [rng_state()] * self.engine.world
        if self.engine.world > 1:
            torch.distributed.all_gather_object(rng, rng_state())
        state = self.engine.state(self.finished) | {
            "settings": self.fingerprint,
            "position": asdict(self.position),
            "rows": [asdict(row) for row in self.rows],
            "finished": self.finished,
            "rng": rng,
        }
        if self.engine.rank == 0:
            self.keeper.write(state, self.rows, final)

    def _restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        path = self.keeper.path
        assert path is not None
        check_settings(path, saved["settings"], self.fingerprint)
        try:
            self.engine.restore(saved)
        except (RuntimeError, ValueError) as error:
            raise FileError(f"the checkpoint {path} does not fit the network: {error}") from None
        self.position, self.finished = Position(**saved["position"]), saved["finished"]
        self.rows = tuple(Epoch(**row) for row in saved["rows"])
        self._rng = saved["rng"][self.engine.rank] if self.position.batch else None
