"""What the input pipeline costs beside a CIFAR training step: a ratio of medians, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from prunus.data import Augment, Split
from prunus.zoo import build


def seconds(work: Callable[[], object], times: int) -> float:
    """The median time of one call, after one call to warm up."""
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main(batch: int = 128, samples: int = 50_000) -> None:
    """Print the time of one ResNet-20 step, of one augmented batch and of the order of an epoch, with their ratio."""
    model = build("prunus:resnet20", seed=0)
    net = model.module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images = torch.randint(0, 256, (samples, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.randint(0, 10, (samples,)), Augment(4, flip=True))
    batches = iter(split.batches(batch, model.preprocess, train=True))
    x, y = next(batches)

    def step() -> None:
        loss = F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    per_batch = seconds(lambda: next(batches), 40)
    per_epoch = seconds(lambda: split.batches(batch, model.preprocess, train=True), 5)
    per_step = seconds(step, 10)
    pipeline = per_batch + per_epoch * batch / samples
    print(f"training step    {per_step * 1e3:8.2f} ms   (ResNet-20, batch {batch}, {torch.get_num_threads()} threads)")
    print(f"batch            {per_batch * 1e3:8.2f} ms   (shuffled, cropped, mirrored, normalised)")
    print(f"order of epoch   {per_epoch * 1e3:8.2f} ms   ({samples:,} samples)")
    print(f"input pipeline   {pipeline / per_step:8.2%} of a step")


if __name__ == "__main__":
    main()
