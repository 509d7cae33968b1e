"""Networks whose groups are written down by hand, so that tests of what reads groups do not depend on tracing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunus.core import Cost, Group, Groups, Inputs, Operator, Slice, TensorAxes

Where = tuple[str, int, str]  # tensor, dimension, role


def groups_of(
    model: nn.Module,
    members: Mapping[str, tuple[int, Sequence[Where]]],
    macs: Sequence[tuple[float, Sequence[str]]] = (),
    inputs: Inputs | None = None,
) -> Groups:
    """Groups whose units are, one by one, the indices of the dimensions listed; `macs`: coefficient and group ids."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    offset, axes, made, row = 0, [], [], {}
    dims: dict[tuple[str, int], int] = {}
    for id, (units, where) in members.items():
        one_each = torch.arange(units).unsqueeze(1)
        slices = tuple(Slice(name, dim, one_each, role, tensors[name]) for name, dim, role in where)
        made.append(Group(id, units, slices, offset))
        dims.update({(name, dim): len(axes) for name, dim, _ in where})
        row[id] = len(axes)
        axes.append(one_each + offset)
        offset += units
    shown = {
        name: TensorAxes(
            tuple(t.shape), tuple(dims.get((name, d)) for d in range(t.dim())), isinstance(t, nn.Parameter)
        )
        for name, t in tensors.items()
    }
    operators = tuple(
        Operator(f"op{n}", "", (), (), (), (), (), Cost(factor, tuple(row[id] for id in ids)))
        for n, (factor, ids) in enumerate(macs)
    )
    return Groups(tuple(made), tuple(axes), shown, operators, (), inputs or Inputs((torch.zeros(1),)))


def batch_norm(name: str) -> list[Where]:
    """The slices of a batch norm."""
    stats = [(f"{name}.{kind}", 0, "stat") for kind in ("running_mean", "running_var")]
    return [(f"{name}.weight", 0, "norm_scale"), (f"{name}.bias", 0, "norm_shift"), *stats]


class Chain(nn.Module):
    """Two convolutions and a classifier on 6 x 6 images."""

    def __init__(self, first: int = 4, second: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.fc = nn.Linear(second, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """A stem and one block whose output is added to the stem's, on 6 x 6 images."""

    def __init__(self, stream: int = 4, inner: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stream, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stream)
        self.a = nn.Conv2d(stream, inner, 3, padding=1, bias=False)
        self.bn_a = nn.BatchNorm2d(inner)
        self.b = nn.Conv2d(inner, stream, 3, padding=1, bias=False)
        self.bn_b = nn.BatchNorm2d(stream)
        self.fc = nn.Linear(stream, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x + self.bn_b(self.b(self.bn_a(self.a(x)).relu()))).relu()
        return self.fc(x.mean((2, 3)))


def chain(first: int = 4, second: int = 6, seed: int = 0) -> tuple[Chain, Groups]:
    """The chain with random weights and scales, and its two groups."""
    model = _random(Chain(first, second), seed)
    members = {
        "conv1": (first, [("conv1.weight", 0, "out"), *batch_norm("bn1"), ("conv2.weight", 1, "in")]),
        "conv2": (second, [("conv2.weight", 0, "out"), *batch_norm("bn2"), ("fc.weight", 1, "in")]),
    }
    area = 9 * 36
    macs = [(3 * area, ["conv1"]), (area, ["conv1", "conv2"]), (5, ["conv2"])]
    return model, groups_of(model, members, macs, Inputs((torch.zeros(1, 3, 6, 6),)))


def residual(stream: int = 4, inner: int = 5, seed: int = 0) -> tuple[Residual, Groups]:
    """The residual network with random weights and scales; two producers share the units of group ``stem``."""
    model = _random(Residual(stream, inner), seed)
    members = {
        "stem": (
            stream,
            [
                *[("stem.weight", 0, "out"), *batch_norm("bn"), ("a.weight", 1, "in")],
                *[("b.weight", 0, "out"), *batch_norm("bn_b"), ("fc.weight", 1, "in")],
            ],
        ),
        "a": (inner, [("a.weight", 0, "out"), *batch_norm("bn_a"), ("b.weight", 1, "in")]),
    }
    area = 9 * 36
    macs = [(3 * area, ["stem"]), (area, ["stem", "a"]), (area, ["stem", "a"]), (5, ["stem"])]
    return model, groups_of(model, members, macs, Inputs((torch.zeros(1, 3, 6, 6),)))


def batches(count: int = 3, size: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random images and labels for either network."""
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 6, 6, generator=draw), torch.randint(5, (size,), generator=draw)) for _ in range(count)
    ]


def _random(model: nn.Module, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.3)
    return model
