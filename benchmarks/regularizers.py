"""What a regularizer adds to a training step: ratios of medians, measured in turns in one process.

    python benchmarks/regularizers.py [model] [batch size] [seconds]

Two numbers: the time of the hooks alone against the whole step (precise), and whole steps with against without (noisy).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.regularizers import attach, regularizers
from prunus.zoo import build


def step_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, size: tuple[int, ...]
) -> Callable[[], None]:
    """One forward, backward and optimizer step on fixed random images."""
    x, y = torch.randn(batch, *size), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(spec: str = "prunus:resnet56", batch: int = 128, seconds: float = 60.0) -> None:
    """Print the overhead of every regularizer, as gradient and as proximal map."""
    torch.set_num_threads(1)
    loaded = build(spec)
    model = loaded.module.train()
    groups = prunus.trace(model, torch.zeros(1, *loaded.input_shape[-3:]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    step = step_of(model, optimizer, batch, tuple(loaded.input_shape[-3:]))
    step()  # warm-up
    print(f"{spec}, batch {batch}, {torch.get_num_threads()} thread")
    for entry in regularizers:
        for proximal in (False, True):
            regularizer = entry.call(strength=1e-4, proximal=proximal)
            handle = attach(regularizer, groups, optimizer)
            hook = handle._after if proximal else handle._before
            alone = statistics.median(
                seconds_of(lambda hook=hook: hook(optimizer, (optimizer,), {})) for _ in range(200)
            )
            handle.remove()
            plain, pressed, stop = [], [], time.monotonic() + seconds / (2 * len(regularizers))
            while time.monotonic() < stop or len(plain) < 3:
                plain.append(seconds_of(step))
                handle = attach(regularizer, groups, optimizer)
                pressed.append(seconds_of(step))
                handle.remove()
            one, ratio = statistics.median(plain), statistics.median(pressed) / statistics.median(plain)
            print(f"{entry.name}{' proximal' if proximal else ''}: hooks {alone * 1e3:.2f} ms, step {one * 1e3:.0f} ms")
            print(f"  {alone / one:.2%} of a step; whole steps {ratio:.3f} x, {len(plain)} pairs")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*given[:1], *(int(v) for v in given[1:2]), *(float(v) for v in given[2:3]))
