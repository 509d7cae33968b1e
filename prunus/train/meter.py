"""Reading the loss of every step without making the device wait."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Reading:
    """One step as all ranks saw it: loss summed over samples, samples, and whether to save or to stop."""

    step: int
    lr: float
    loss_sum: float
    samples: float
    save: bool
    stop: bool

    @property
    def loss(self) -> float:
        """The mean loss of the step."""
        return self.loss_sum / self.samples

    @property
    def finite(self) -> bool:
        """Whether the loss is a number."""
        return math.isfinite(self.loss_sum)


class Meter:
    """A queue of losses: read at once on a CPU, one step late on a GPU, whose work is then not waited for.

    In a process group the numbers are summed over the ranks first, so that all ranks decide alike.
    """

    def __init__(self, device: torch.device, world: int) -> None:
        self._device, self._world = device, world
        self._late = 1 if device.type == "cuda" else 0
        self._queue: deque[tuple[int, float, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, step: int, lr: float, loss: Tensor, samples: int, save: bool, stop: bool) -> list[Reading]:
        """Note a step; the readings that are ready."""
        loss_sum = loss.detach().float() * samples
        flags = torch.tensor([samples, float(save), float(stop)], device=self._device)
        values = torch.cat([loss_sum.reshape(1), flags])  # (4,)
        if self._world > 1:
            torch.distributed.all_reduce(values)
        event = None
        if self._late:
            values = values.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._queue.append((step, lr, values, event))
        return self.flush(self._late)

    def flush(self, keep: int = 0) -> list[Reading]:
        """Read all steps but the last `keep`."""
        out = []
        while len(self._queue) > keep:
            step, lr, values, event = self._queue.popleft()
            if event is not None:
                event.synchronize()
            loss_sum, samples, save, stop = values.tolist()
            out.append(Reading(step, lr, loss_sum, samples, save > 0, stop > 0))
        return out
