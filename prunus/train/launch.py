"""Where training runs: one device, or one process a device under torchrun."""

from __future__ import annotations

import atexit
import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from prunus.core.errors import InputError
from prunus.train.precision import choose_precision

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def launch(precision: str) -> tuple[Fabric, str]:
    """A launched Fabric and the precision that was chosen.

    Alone, it takes the GPU, else the CPU.  Under torchrun (``WORLD_SIZE`` > 1) every process takes one device and
    gradients are averaged by DDP, over gloo on CPUs.  Buffers are not broadcast: every rank keeps the batch-norm
    statistics of its own shard, and `average_buffers` joins them.
    """
    from prunus.core.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning.fabric.strategies import DDPStrategy

    for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_precision(precision, torch.device("cuda" if cuda else "cpu"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if world > 1 and not TorchElasticEnvironment.detect():
        raise InputError(f"WORLD_SIZE={world} is set, but not by torchrun; start with: torchrun --nproc-per-node N ...")
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy=DDPStrategy(broadcast_buffers=False, timeout=patience()) if world > 1 else "auto",
        precision=chosen,  # type: ignore[arg-type]
        plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
    )
    fabric.launch()
    if world > 1:
        leave_at_exit()
    return fabric, chosen


def patience() -> timedelta:
    """How long a process waits for the others: PRUNUS_TIMEOUT seconds, 300 by default (torch waits half an hour).

    Raises: `InputError` when it is no number of seconds.
    """
    given = os.environ.get("PRUNUS_TIMEOUT", "300")
    if not given.isdigit() or not 1 <= int(given) <= 10**6:
        raise InputError(f"PRUNUS_TIMEOUT={given!r}: expected a number of seconds, e.g. 300.")
    return timedelta(seconds=int(given))


def leave_at_exit() -> None:
    """Have this process leave its process group before it ends, where its threads could else abort it."""
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def average_buffers(model: torch.nn.Module, world: int) -> None:
    """Set every floating-point buffer to its mean over the ranks.

    A running average is linear in what it averages, so the mean of the ranks' running means is the running average of
    the whole batch's mean, whenever it is taken; running variances are averages of the variances within the shards.
    """
    if world == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= world


def averaged(state: dict[str, Any], buffers: list[str], world: int) -> dict[str, Any]:
    """A copy of a network's `state` with the mean of the ranks' floating-point `buffers`; the live ones stay."""
    out = dict(state)
    for name in buffers:  # in the order of the network: the same on every rank
        if name in out and out[name].is_floating_point():
            mean = out[name].clone()
            distributed.all_reduce(mean)
            out[name] = mean / world
    return out
