"""A network small enough for a whole run in a second."""

import torch
from torch import nn


def small() -> nn.Module:
    """Gray images of any size from 4 x 4 on, 10 classes, 6,864 weights."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 16), (16, 16), (16, 24)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10)]
    return nn.Sequential(*layers, *head)


class Mixed(nn.Module):
    """The same with a weight that by its name is none of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = small()[:-1], nn.Linear(96, 10)
        self.token_mix = nn.Parameter(torch.eye(96) + 0.1 * torch.randn(96, 96))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.body(x) @ self.token_mix).relu())
