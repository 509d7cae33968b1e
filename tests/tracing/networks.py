"""Random small networks: convolutions of every kind, own layers, experts, norms, joins, views, and ends in objects."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

STEPS = (
    "conv",
    "depthwise",
    "grouped",
    "transposed",
    "norm",
    "act",
    "residual",
    "concat",
    "chunk",
    "shuffle",
    "se",
    "pool",
    "own",
    "computed",
    "experts",
)


def masked(x: Tensor) -> Tensor:
    return x.masked_fill(torch.tensor([False, True, False]), float("-inf"))


ENDS = {  # what forward makes of its scores
    "tensor": lambda x: x,
    "namespace": lambda x: types.SimpleNamespace(scores=[x, {"twice": 2 * x}]),
    "distribution": lambda x: torch.distributions.Categorical(logits=x),
    "masked": lambda x: (masked(x), x.argmax(1)),
    "zero": lambda x: x,  # and the head starts at zero
}


class Own(nn.Module):
    """A layer of the user's own: one matrix, or a mixture of several, for every position."""

    def __init__(self, channels: int, wide: int, experts: int = 0) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(torch.randn(*([experts] if experts else []), wide, channels) / channels**0.5)
        self.shift = nn.Parameter(torch.randn(wide))
        if experts:
            self.gate = nn.Linear(channels, experts)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.movedim(1, -1)
        if not self.experts:
            return (rows @ self.weight.mT + self.shift).movedim(-1, 1)
        shares = self.gate(x.mean((2, 3))).sigmoid()
        each = [shares[:, e, None, None, None] * (rows @ self.weight[e].mT) for e in range(self.experts)]
        return (torch.stack(each).sum(0) + self.shift).movedim(-1, 1)


class Computed(nn.Conv2d):
    """A convolution by a function of its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight.tanh() * self.weight.abs().sqrt(), self.bias, padding=1)


class Random(nn.Module):
    """A network drawn from a list of (step, number) pairs; `number` picks widths and positions."""

    def __init__(self, steps: list[tuple[str, int]], width: int, end: str = "tensor") -> None:
        super().__init__()
        self.steps, self.end = steps, end
        self.layers = nn.ModuleList()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        channels = width
        for kind, number in steps:
            layer, channels = _layer(kind, number, channels)
            self.layers.append(layer)
        self.head = nn.Linear(channels * 16, 3)
        if end == "zero":
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for (kind, _), layer in zip(self.steps, self.layers):
            x = _forward(kind, layer, x)
        x = nn.functional.adaptive_avg_pool2d(x, 4)
        return ENDS[self.end](self.head(x.flatten(1)))


def _layer(kind: str, number: int, channels: int) -> tuple[nn.Module, int]:
    wide = 4 * (1 + number % 4)
    if kind == "conv":
        return nn.Conv2d(channels, wide, 1 + 2 * (number % 2), padding=number % 2, bias=number % 3 > 0), wide
    if kind == "depthwise":
        times = 1 + number % 2
        return nn.Conv2d(channels, channels * times, 3, padding=1, groups=channels), channels * times
    if kind == "grouped":
        groups = 2 if channels % 2 == 0 else 1
        return nn.Conv2d(channels, wide, 3, padding=1, groups=groups), wide
    if kind == "transposed":
        groups = 2 if number % 2 and channels % 2 == 0 else 1
        return nn.ConvTranspose2d(channels, wide, 3, padding=1, groups=groups), wide
    if kind == "norm":
        return nn.BatchNorm2d(channels), channels
    if kind == "residual":
        return nn.Sequential(nn.Conv2d(channels, wide, 1), nn.ReLU(), nn.Conv2d(wide, channels, 3, padding=1)), channels
    if kind == "concat":
        return nn.Conv2d(channels, wide, 3, padding=1), channels + wide
    if kind in ("own", "experts"):
        return Own(channels, wide, 3 if kind == "experts" else 0), wide
    if kind == "computed":
        return Computed(channels, wide, 3), wide
    if kind == "chunk" and channels % 2 == 0:
        return nn.Conv2d(channels // 2, channels // 2, 1), channels
    if kind == "se":
        return nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()), channels
    return nn.Identity(), channels


def _forward(kind: str, layer: nn.Module, x: Tensor) -> Tensor:
    if kind == "act":
        return torch.sigmoid(x)  # act(0) is not 0: silence must not depend on it
    if kind == "residual":
        return x + layer(x)
    if kind == "concat":
        return torch.cat([x, layer(x).relu()], 1)
    if kind == "chunk" and isinstance(layer, nn.Conv2d):
        a, b = x.chunk(2, 1)
        return torch.cat([layer(a), b], 1)
    if kind == "shuffle" and x.shape[1] % 2 == 0:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    if kind == "se":
        return x * layer(x.mean((2, 3), keepdim=True))
    if kind == "pool":
        return nn.functional.max_pool2d(x, 3, 1, 1)
    return layer(x)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norm statistics and shifts that make every bookkeeping mistake visible."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(n, generator=generator))
                module.bias.copy_(0.3 * torch.randn(n, generator=generator))
                module.running_mean.copy_(0.3 * torch.randn(n, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(n, generator=generator))
    return model.eval()
