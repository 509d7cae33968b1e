"""Small networks with every kind of place, and random problems for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Basic(nn.Module):
    """A stem, two basic blocks, the second with a shortcut of weights: 3x8x8 -> 4."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.a1, self.n1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.a2, self.n2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.b1, self.m1 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.b2, self.m2 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.short = nn.Conv2d(width, 2 * width, 1, 2)
        self.linear = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.n2(self.a2(F.relu(self.n1(self.a1(x))))))
        x = F.relu(self.short(x) + self.m2(self.b2(F.relu(self.m1(self.b1(x))))))
        return self.linear(x.mean((2, 3)))


class Separable(nn.Module):
    """A stem, then an inverted residual with ReLU6 and a depthwise convolution, then pools and a plain convolution."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        wide = 3 * width
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))
        self.more = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.MaxPool2d(2))
        self.last = nn.Conv2d(width, 2 * width, 3)
        self.linear = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        return self.linear(F.relu(self.last(self.more(x))).mean((2, 3)))


def settled(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with weights of the seed, norms that have seen data, no trivial scales; evaluation mode."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean = torch.randn(module.num_features) * 0.2
            module.running_var = torch.rand(module.num_features) + 0.5
    return net.eval()


def example(samples: int = 6, seed: int = 1) -> Tensor:
    """``(N, 3, 8, 8)``."""
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Batches:
    """A split as `prunus.train.fit` reads it: random images whose class is their brightest quarter."""

    def __init__(self, samples: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(0, 4, (samples,), generator=g)
        self.x = torch.randn(samples, 3, 8, 8, generator=g) * 0.5
        for i, y in enumerate(self.y.tolist()):
            self.x[i, :, 4 * (y // 2) : 4 * (y // 2) + 4, 4 * (y % 2) : 4 * (y % 2) + 4] += 1.0

    def __len__(self) -> int:
        return len(self.y)

    def batches(
        self, size: int, preprocess: Any, *, seed: int = 0, epoch: int = 0, train: bool = False, augment: Any = None,
        rank: int = 0, world: int = 1, start: int = 0,
    ) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
        """Batches of this rank, in an order of the epoch."""
        if not train:
            return [(self.x, self.y)]
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        rows = order[: len(order) // (size * world) * size * world].reshape(-1, world, size)[start:, rank]
        return [(self.x[r], self.y[r]) for r in rows]


def problem() -> Any:
    """Training data, and data to decide on."""
    return SimpleNamespace(train=Batches(96, 0), decide=Batches(32, 1))
