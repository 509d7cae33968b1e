"""What is seen while training: a bar on a terminal, a line an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from prunus.train.history import Epoch

T = TypeVar("T")


class Display:
    """A progress bar over the steps of a stage (on a terminal) and one line an epoch; silent when `quiet`."""

    def __init__(self, stage: str, epochs: int, steps: int, done: int, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.stage, self.epochs, self.quiet = stage, epochs, quiet
        self.console = Console(stderr=True, quiet=quiet)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        shown = self.console.is_terminal and not quiet
        self._bar = Progress(*columns, console=self.console, refresh_per_second=4, transient=True, disable=not shown)
        self._task = self._bar.add_task(stage, total=epochs * steps, completed=done, now="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    def step(self, epoch: int, loss: float | None) -> None:
        """One step further."""
        if not self._bar.disable:
            now = f"epoch {epoch + 1}/{self.epochs}" + (f"  loss {loss:.3f}" if loss is not None else "")
            self._bar.update(self._task, advance=1, now=now)

    def epoch(self, row: Epoch) -> None:
        """Print the line of an epoch that is over."""
        accuracy = "" if row.accuracy is None else f"  accuracy {row.accuracy:.4f}"
        where = f"epoch {row.epoch}/{self.epochs}"
        self.say(f"{row.stage}: {where}  loss {row.loss:.4f}{accuracy}  lr {row.lr:.2e}  {row.seconds:.1f} s")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def track(items: Iterable[T], what: str, show: bool = True) -> Iterator[T]:
    """Iterate with a transient bar, on a terminal only."""
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    return iter(bar(items, what, console=console, transient=True, disable=not (show and console.is_terminal)))
