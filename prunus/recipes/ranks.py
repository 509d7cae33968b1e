"""Runs in several processes, as torchrun starts them: all compute, the first one writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def join() -> int:
    """This process's rank; joins the others when torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    import torch
    import torch.distributed as dist

    from prunus.train.launch import leave_at_exit

    leave_at_exit()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank()


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
