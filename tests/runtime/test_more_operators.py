"""Windows, pads, other sizes, arithmetic with constants, and functions: by kernels, as torch does it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.runtime import compile, load, save
from prunus.runtime.plain import PlainNetwork

CLOSE = 1e-5
CONSTANT = torch.linspace(-1, 2, 6)
PIXELS = {  # of (n, 6, h, w) -> (n, 6, any size)
    "mean, ceil": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "mean, ceil, padded": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "mean, inside alone": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "mean, inside alone, ceil": lambda x: F.avg_pool2d(x, (3, 2), 2, (1, 0), True, False),
    "mean, divided by 5": lambda x: F.avg_pool2d(x, 2, divisor_override=5),
    "max, ceil": lambda x: F.max_pool2d(x, (3, 2), 2, ceil_mode=True),
    "max, uneven strides": lambda x: F.max_pool2d(x, 3, (1, 2), 1),
    "mean, uneven strides": lambda x: F.avg_pool2d(x, 2, (2, 3)),
    "max, as tensorflow pads": lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 2), value=-float("inf")), 3, 2),
    "mean, as tensorflow pads": lambda x: F.avg_pool2d(F.pad(x, (0, 1, 1, 2)), 3, 2),
    "to 7 x 7": lambda x: F.adaptive_avg_pool2d(x, 7),
    "to 3 x 2": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "to 2 x 5": lambda x: F.adaptive_avg_pool2d(x, (2, 5)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "nearest, any size": lambda x: F.interpolate(x, size=(17, 7)),
    "nearest, exactly": lambda x: F.interpolate(x, size=(17, 7), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, size=(19, 23), mode="bilinear", align_corners=True),
    "bilinear, smaller": lambda x: F.interpolate(x, size=(5, 4), mode="bilinear", antialias=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "pad": lambda x: F.pad(x, (1, 0, 2, 3)),
    "pad, reflect": lambda x: F.pad(x, (1, 2, 0, 3), mode="reflect"),
    "pad, replicate": lambda x: F.pad(x, (1, 2, 0, 3), mode="replicate"),
    "pad, circular": lambda x: F.pad(x, (1, 2, 0, 3), mode="circular"),
    "roll": lambda x: torch.roll(x, (2, -1), (2, 3)),
    "flip": lambda x: x.flip(1, 3),
    "chosen channels": lambda x: x.index_select(1, torch.tensor([5, 0, 0, 2, 1, 3])),
    "chosen rows": lambda x: x[:, :, torch.tensor([5, -1, 0, 2])],
}
VALUES = {  # of (n, 6, h, w) or (n, 6) -> the same
    "tanh": torch.tanh,
    "leaky": lambda x: F.leaky_relu(x, 0.07),
    "elu": lambda x: F.elu(x, 0.7),
    "celu": lambda x: F.celu(x, 0.7),
    "selu": F.selu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "relu6": F.relu6,
    "at least": lambda x: x.clamp_min(0.1),
    "at most": lambda x: x.clamp(max=0.3),
    "plus a number": lambda x: x + 0.7,
    "minus": lambda x: 0.3 - x,
    "times, over": lambda x: -(2.5 * x) / 3,
    "by channel": lambda x: x * _by(x) + _by(x).flip(1 if x.dim() == 2 else 0),
    "less": lambda x: torch.sub(x, _by(x), alpha=2),
    "old hardswish": lambda x: x * F.relu6(x + 3) / 6 if x.dim() == 4 else F.relu6(x + 3) / 6,
}
BOTH = {  # of (n, 6, h, w) alone
    "differences": lambda x: torch.sub(torch.tanh(x), F.avg_pool2d(x, 3, 1, 1), alpha=2),
    "square": lambda x: x.square() + x**2,
    "a value a channel": lambda x: x + F.adaptive_avg_pool2d(x, 1),
    "a map for all channels": lambda x: x * torch.sigmoid(x[:, 2:3]),
    "expanded": lambda x: x + x.mean((2, 3), keepdim=True).expand_as(x) * x[:, :1].expand(-1, 6, -1, -1),
}


def _by(x: Tensor) -> Tensor:
    return CONSTANT.to(x.dtype)[None] if x.dim() == 2 else CONSTANT.to(x.dtype)[:, None, None]


class Between(nn.Module):
    """A function between two convolutions, and alone."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.a(x)
        alone = self.function(y)
        return self.b(alone), alone


class Features(nn.Module):
    """A function of features: behind a layer, alone, behind a norm, and before single pixels."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.a, self.norm, self.b, self.c = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 70), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.a(x.mean((2, 3)))
        once = self.function(self.norm(y))
        twice = self.function(once)
        return self.b(once), twice, self.norm(twice), self.c(twice.view(-1, 6, 1, 1))


def agree(model: nn.Module, shape: tuple[int, ...], tmp_path=None) -> None:
    """Kernels, and torch on the same graph, give what torch gives in float64; nothing is left to torch."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    for p in model.parameters():
        nn.init.normal_(p, 0, 0.5)
    for name, b in model.named_buffers():
        if name.endswith("running_var"):
            b.uniform_(0.5, 2)
    model.eval()
    compiled = compile(model, x)
    assert "torch" not in compiled.report(), compiled.report()["torch"]
    runs = [compiled, PlainNetwork(compiled.graph, images=compiled.images, threads=1)]
    if tmp_path is not None:
        save(compiled, tmp_path / "net")
        runs.append(load(tmp_path / "net", threads=2))
    with torch.no_grad():
        want = model.double()(x.double())
    for which, run in enumerate(runs):
        for got, wanted in zip(run(x), want, strict=True):
            assert got.shape == wanted.shape
            off = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-2))
            assert off < CLOSE, f"run {which} is off by {off}"


@pytest.mark.parametrize("name", [*PIXELS, *VALUES, *BOTH])
def test_functions_of_pictures(name: str) -> None:
    batch = 1 + 2 * (len(name) % 2)
    agree(Between({**PIXELS, **VALUES, **BOTH}[name]), (batch, 3, 13 - batch, 16))


@pytest.mark.parametrize("batch", [1, 3])
def test_functions_of_features(batch: int) -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = nn.ModuleList(Features(function) for function in VALUES.values())

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(made for module in self.of for made in module(x))

    agree(All(), (batch, 3, 4, 5))


CONVOLUTIONS = {
    "same, even": nn.Conv2d(6, 5, 4, padding="same"),
    "same, apart": nn.Conv2d(6, 5, (2, 3), padding="same", dilation=(3, 1)),
    "uneven strides": nn.Conv2d(6, 5, 3, (1, 2), 1),
    "uneven strides, 2 by 3": nn.Conv2d(6, 6, 3, (2, 3), (0, 1), groups=6),
    "strides of a pixel": nn.Conv2d(6, 5, 1, 2),
    "transposed": nn.ConvTranspose2d(6, 5, 3),
    "transposed, strides": nn.ConvTranspose2d(6, 5, 4, 2, 1),
    "transposed, groups": nn.ConvTranspose2d(6, 4, (3, 2), (2, 3), (2, 0), (1, 2), groups=2, dilation=(1, 2)),
    "transposed, cropped": nn.ConvTranspose2d(6, 5, 2, 2, (2, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, tmp_path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), CONVOLUTIONS[name]

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = F.relu(self.a(x))
            return self.b(y), torch.relu(self.b(y.tanh()))

    net = Net()
    try:
        agree(net, (1 + 2 * (len(name) % 2), 3, 11, 14), tmp_path)
    finally:
        net.float()


@pytest.mark.parametrize("name", ["tanh", "elu", "selu", "mish", "leaky"])
def test_functions_far_from_zero_and_near_it(name: str) -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return VALUES[name](x)

    far = torch.cat([torch.linspace(-120, 120, 957), torch.tensor([1e4, -1e4, float("nan")])])
    x = torch.cat([far, torch.logspace(-30, 0, 480), -torch.logspace(-30, 0, 480)]).view(1, 1, 8, 240)
    got, want = compile(Alone(), x)(x).double(), VALUES[name](x.double())
    assert torch.equal(got.isnan(), want.isnan()) and bool(got.isnan().any())
    off = ((got - want).abs() / want.abs().clamp(min=1e-30)).nan_to_num(0.0)
    assert float(off[..., :4, :].max()) < 1e-5 or name == "mish"  # which ends far below the least float
    assert float(off[..., 4:, :].max()) < 1e-6
