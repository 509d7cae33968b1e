"""What masked training costs beside dense training: a step's ratio of medians, in turns, in one process.

python benchmarks/masks.py --model resnet20 --batch 64 --steps 15
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


def stepper(model: str, batch: int, method: str | None, steps: int) -> Callable[[], None]:
    """One training step of a network of its own."""
    net = build(f"prunus:{model}", seed=0).module.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    if method is not None:
        MaskPruner(net, prunus.tensors(net), method, density=0.1, steps=100 * steps).attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    """A line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--methods", nargs="*", default=[entry.name for entry in methods])
    args = parser.parse_args()
    for method in args.methods:
        sides = [stepper(args.model, args.batch, name, args.steps) for name in (None, method)]
        taken: list[list[float]] = [[], []]
        for i in range(args.steps + 2):
            for side, step in enumerate(sides):
                start = time.process_time()
                step()
                if i > 1:
                    taken[side].append(time.process_time() - start)
        dense, masked = (statistics.median(t) for t in taken)
        print(f"{method:6s} {masked / dense:6.3f} x the dense step of {dense * 1e3:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
