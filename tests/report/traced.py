"""Traced networks to be shown: repeated blocks, joined channels, conv groups, and heads written down by hand."""

from functools import cache

import torch
from torch import nn

from prunus.core import Cost, Fixed, Group, Groups, Inputs, Operator, Slice, TensorAxes
from prunus.report import View
from prunus.tracing import trace
from prunus.zoo import resnet20

EVIL = "<script>alert(1)</script>\"'&[bold]{{ 7*7 }}"


class Odd(nn.Module):
    """Two convolutions are joined and read by a grouped one; its last module has a name that is markup."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(12, 6, 3, groups=2)
        self.add_module(EVIL, nn.Linear(6 * 4, 5))

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        return self._modules[EVIL](self.grouped(x).relu().flatten(1))


@cache
def view_of(name):
    """The view of a network by name: resnet20, odd, chain, or written by hand (heads, two)."""
    if name == "resnet20":
        model, image = resnet20(), torch.zeros(1, 3, 32, 32)
    elif name == "odd":
        model, image = Odd(), torch.zeros(1, 3, 4, 4)
    elif name == "chain":
        blocks = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(6))
        model, image = nn.Sequential(*blocks), torch.zeros(1, 4)
    else:
        return View(heads() if name == "heads" else two_convolutions())
    return View(trace(model, image), {name: type(module).__name__ for name, module in model.named_modules()})


def two_convolutions():
    """conv1 (3 -> 4, 3x3) with a norm, then conv2 (4 -> 5, 1x1), on 8 x 8: units 0..3 are the channels between."""
    shapes = {"conv1.weight": (4, 3, 3, 3), "bn.weight": (4,), "bn.bias": (4,), "conv2.weight": (5, 4, 1, 1)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    units = torch.arange(4).unsqueeze(1)
    roles = {"conv1.weight": (0, "out"), "bn.weight": (0, "norm_scale"), "bn.bias": (0, "norm_shift")}
    roles["conv2.weight"] = (1, "in")
    slices = tuple(Slice(name, dim, units, role, tensors[name]) for name, (dim, role) in roles.items())
    axes = {name: tuple(0 if d == roles[name][0] else None for d in range(len(s))) for name, s in shapes.items()}
    return Groups(
        members=(Group("conv1", 4, slices),),
        axes=(units,),
        tensors={name: TensorAxes(shape, axes[name], True) for name, shape in shapes.items()},
        operators=(
            Operator("conv", "conv1", (0,), (1,), ("conv1.weight",), ((1, 4, 8, 8),), ((),), Cost(64 * 27, (0,))),
            Operator("conv", "conv2", (1,), (2,), ("conv2.weight",), ((1, 5, 8, 8),), ((),), Cost(64 * 5, (0,))),
        ),
        fixed=(Fixed("conv2.weight", "an output of the network"), Fixed("[image]", "an input of the network")),
        inputs=Inputs.of(torch.zeros(1, 3, 8, 8)),
    )


def heads():
    """A packed projection of 3 x (2 heads of 4) rows, read by `out`: even parts of the rows, groups in proportion."""
    qkv, out = torch.zeros(24, 6), torch.zeros(6, 8)
    row = torch.arange(24)
    head, dim = row % 8 // 4, row % 4  # (24,): q, k, v one after the other, each head by head
    by_head = torch.stack([row[head == h] for h in range(2)])  # (2, 12)
    by_dim = torch.stack([row[dim == d] for d in range(4)])  # (4, 6)
    read = torch.arange(8).reshape(2, 4)

    def slices(made, used):
        return (Slice("qkv.weight", 0, made, "out", qkv), Slice("out.weight", 1, used, "in", out))

    members = (Group("qkv/heads", 2, slices(by_head, read)), Group("qkv/head_dim", 4, slices(by_dim, read.T), 2))
    object.__setattr__(members[1], "parts", 2)
    groups = Groups(
        members=members,
        axes=(torch.stack([head, 2 + dim], 1), torch.stack([head[:8], 2 + dim[:8]], 1)),
        tensors={"qkv.weight": TensorAxes((24, 6), (0, None), True), "out.weight": TensorAxes((6, 8), (None, 1), True)},
        operators=(),
        fixed=(Fixed("out: 6 of 6 channels", "it is an output of the model"),),
        inputs=Inputs.of(torch.zeros(1, 6)),
    )
    object.__setattr__(groups, "proportions", (("qkv/heads", "qkv/head_dim"),))
    return groups
