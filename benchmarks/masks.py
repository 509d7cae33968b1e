"""What masked training costs beside dense training: processor time, in turns, in one process.

    python benchmarks/masks.py --model resnet20 --batch 128 --steps 100

Forward and backward are the same with masks and without, so that what masks cost is the difference between two
optimizers' steps.  It is told as a ratio to the whole dense step: as a mean over the first --steps steps of a training
of --of steps, choices of masks among them, and beside it the median, which is that of steps between the choices.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import prunus
from prunus.masks import MaskPruner, methods
from prunus.zoo import build

Part = Callable[[], None]


def stepper(model: str, batch: int, method: str | None, steps: int) -> tuple[Part, Part, Part]:
    """The gradients, the same once more, and the optimizer's step, of a network of its own."""
    net = build(f"prunus:{model}", seed=0).module.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    if method is not None:
        MaskPruner(net, prunus.tensors(net), method, density=0.1, steps=steps).attach(optimizer)
    slopes: list[torch.Tensor] = []

    def gradients() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        slopes[:] = [p.grad.clone() for p in net.parameters() if p.grad is not None]

    def given() -> None:
        for p, slope in zip(net.parameters(), slopes):
            p.grad = slope.clone()

    return gradients, given, optimizer.step


def seconds(work: Part) -> float:
    """The processor's time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """A line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=210)
    parser.add_argument("--of", type=int, default=2000)
    parser.add_argument("--methods", nargs="*", default=[entry.name for entry in methods])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    gradients, given, plain = stepper(args.model, args.batch, None, args.of)
    gradients(), plain()
    whole = [seconds(gradients) for _ in range(5)]
    for method in args.methods:
        backward, again, masked = stepper(args.model, args.batch, method, args.of)
        backward()
        sides: list[list[float]] = [[], []]
        for _ in range(args.steps):
            given(), again()
            sides[0].append(seconds(plain))
            sides[1].append(seconds(masked))
        dense = statistics.median(whole) + statistics.median(sides[0])
        mean = statistics.mean(sides[1][1:]) - statistics.mean(sides[0][1:])
        between = statistics.median(sides[1]) - statistics.median(sides[0])
        print(
            f"{method:6s} {1 + mean / dense:6.3f} x the dense step of {dense * 1e3:.0f} ms "
            f"({mean * 1e3:.2f} ms more; between choices {between * 1e3:.2f} ms)",
            flush=True,
        )


if __name__ == "__main__":
    main()
