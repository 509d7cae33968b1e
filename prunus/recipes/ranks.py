"""Runs in several processes, as torchrun starts them: all compute, the first one writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from prunus.core import TrainingError

T = TypeVar("T")
SILENT = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def join() -> int:
    """This process's rank; joins the others when torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    import torch
    import torch.distributed as dist

    from prunus.train.launch import leave_at_exit, patience

    leave_at_exit()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=patience())
    return dist.get_rank()


@contextmanager
def answering() -> Iterator[None]:
    """Raise `TrainingError`, which says what to do, where another process does not answer any more."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in SILENT):
            raise
        from prunus.train.launch import patience

        seconds = f"{patience().total_seconds():.0f}"
        raise TrainingError(
            f"another process of this run did not answer for {seconds} seconds: it was stopped, or is slower "
            "(PRUNUS_TIMEOUT=seconds waits longer). What was finished is on disk: start all again with --resume."
        ) from error


def wait() -> None:
    """Until all ranks are here."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def same(choice: Callable[[], T]) -> T:
    """What the first rank chooses, on all of them."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return choice()
    box = [choice() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]
