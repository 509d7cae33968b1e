"""What prunus adds to a training step: `fit` against plain torch, ResNet-20 on CIFAR shapes, in one process.

The two loops are interleaved step by step: the split that `fit` reads makes one step of the plain loop before it hands
out each batch, so both see the same machine at the same time.  The time between handing out a batch and being asked for
the next is the whole step of `fit`: forward, loss check, backward, optimizer, progress, checkpoint when it is due.
Times are CPU time of the process; printed are the medians and the median of the ratios of neighbouring steps.

    python benchmarks/train.py [--steps 60] [--batch 128] [--threads 1] [--precision 32]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import zoo
from prunus.train import fit

WARM = 5  # steps not counted


def plain_step(model: nn.Module, precision: str) -> Callable[[Tensor, Tensor], float]:
    """A step as one would write it by hand: SGD with momentum, the loss noted."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step(x: Tensor, y: Tensor) -> float:
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
            z = model(x)
        loss = F.cross_entropy(z.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


@dataclass
class Interleaved:
    """A split that makes a step of the plain loop before each batch, and times both."""

    step: Callable[[Tensor, Tensor], float]
    x: Tensor
    y: Tensor
    steps: int
    plain: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def batches(self, *args: Any, **key: Any) -> Interleaved:
        """Itself."""
        return self

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps):
            start = time.process_time()
            self.step(self.x, self.y)
            middle = time.process_time()
            yield self.x, self.y
            self.plain.append(middle - start)
            self.ours.append(time.process_time() - middle)


@dataclass
class Data:
    """Without a `decide` part: nothing is measured at the end of the epoch."""

    train: Interleaved
    decide: None = None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, value in (("steps", 60), ("batch", 128), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", default="32", choices=("32", "bf16-mixed"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    x, y = torch.randn(given.batch, 3, 32, 32), torch.randint(0, 10, (given.batch,))
    ours, theirs = (zoo.resnet20().to(memory_format=torch.channels_last) for _ in range(2))
    split = Interleaved(plain_step(theirs, given.precision), x, y, given.steps)
    settings = {"preprocess": None, "epochs": 1, "lr": 0.01, "batch": given.batch, "precision": given.precision}
    with tempfile.TemporaryDirectory() as folder:
        fit(ours, Data(split), **settings, folder=folder, every=10.0)
    pairs = list(zip(split.ours, split.plain, strict=True))[WARM:]
    for name, seconds in (("prunus.train.fit", [a for a, _ in pairs]), ("plain torch", [b for _, b in pairs])):
        median, mean = 1000 * statistics.median(seconds), 1000 * statistics.fmean(seconds)
        print(f"{name:<18}{median:8.1f} ms CPU a step, mean {mean:.1f}")
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    print(f"ratio             {middle:8.3f}    (quartiles {low:.3f}, {high:.3f}; {len(pairs)} steps)")


if __name__ == "__main__":
    main()
