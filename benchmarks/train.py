"""What prunus adds to a training step: `fit` against a loop in plain torch, ResNet-20 on CIFAR shapes, in one process.

Both make the same steps on the same batches, prepared beforehand, in alternating rounds; every round is timed as a
whole, checkpoints, logs and progress included.  Printed are the medians and the ratio.

    python benchmarks/train.py [--rounds 5] [--steps 12] [--batch 128] [--threads 1] [--precision 32]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import zoo
from prunus.train import fit


@dataclass
class Fixed:
    """A split whose batches lie ready."""

    ready: list[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return 0

    def batches(self, size: int, preprocess: Any, **key: Any) -> list[tuple[Tensor, Tensor]]:
        """The batches from `start` on."""
        return self.ready[key.get("start", 0) :]


@dataclass
class Ready:
    """Data without a `decide` part, so that nothing is measured at the end of an epoch."""

    train: Fixed
    decide: None = None


def plain(model: nn.Module, batches: list[tuple[Tensor, Tensor]], precision: str) -> None:
    """The loop one would write by hand: SGD, cosine, loss noted."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.train()
    total = 0.0
    for step, (x, y) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / len(batches)))
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
            z = model(x)
        loss = F.cross_entropy(z.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item()


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("rounds", 5), ("steps", 12), ("batch", 128), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", default="32", choices=("32", "bf16-mixed"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    batches = [
        (torch.randn(given.batch, 3, 32, 32), torch.randint(0, 10, (given.batch,))) for _ in range(given.steps)
    ]
    models = [zoo.resnet20().to(memory_format=torch.channels_last) for _ in range(2)]
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        settings = {"preprocess": None, "epochs": 1, "lr": 0.1, "batch": given.batch, "precision": given.precision}
        work = {
            "prunus": lambda: fit(models[0], Ready(Fixed(batches)), **settings, folder=folder),
            "plain": lambda: plain(models[1], batches, given.precision),
        }
        for turn in range(given.rounds + 1):
            a, b = (timed(work[name]) for name in ("prunus", "plain"))
            if turn:  # the first round warms up
                ours.append(a)
                theirs.append(b)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    for name, seconds in (("prunus", ours), ("plain torch", theirs)):
        print(f"{name:<12}{1000 * statistics.median(seconds) / given.steps:8.1f} ms a step")
    print(f"ratio, median of {given.rounds}: {statistics.median(ratios):.3f}  (rounds: {sorted(ratios)})")


if __name__ == "__main__":
    main()
