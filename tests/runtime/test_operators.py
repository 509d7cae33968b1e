"""Operators between the convolutions: every one that the engine has a kernel for gives what torch gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.runtime import compile
from tests.runtime.test_network import CLOSE, error, sparse

FUNCTIONS = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.5, 0.25),
}


class Applied(nn.Module):
    """A function after a convolution (fused), and after a pool (alone)."""

    def __init__(self, function, scale: float = 1.0) -> None:
        super().__init__()
        self.function, self.scale = function, scale
        self.conv, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.conv(x))
        return self.last(self.function(F.avg_pool2d(y, 3, 1, 1)))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch", [1, 2])
def test_functions_of_single_values(name: str, batch: int) -> None:
    model, x = sparse(Applied(FUNCTIONS[name]), 0.4), torch.randn(batch, 3, 11, 13)
    assert error(model, x) < CLOSE
    assert "torch" not in compile(model, x).report()


@pytest.mark.parametrize("name", ["silu", "sigmoid", "gelu", "gelu_tanh", "hardswish"])
def test_functions_far_from_zero(name: str) -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return FUNCTIONS[name](x)

    x = torch.cat([torch.linspace(-120, 120, 961), torch.tensor([1e4, -1e4, float("nan")])]).view(1, 1, 4, 241)
    got, want = compile(Alone(), x)(x).double(), FUNCTIONS[name](x.double())
    assert torch.equal(got.isnan(), want.isnan()) and bool(got.isnan().any())
    off = ((got - want).abs() / (want.abs() + 1e-2)).nan_to_num(0.0)
    assert float(off.max()) < 3e-5  # erf is a formula with an error of 1.5e-7


class Squeeze(nn.Module):
    """Squeeze and excite, a shuffle of channels, pieces of channels, windows that end outside of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.reduce, self.expand, self.last = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), nn.Conv2d(15, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.a(x))
        z = self.b(y)
        z = z * torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(z, 1)))))
        n, c, h, w = z.shape
        z = z.view(n, 3, 4, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        p, q = z.chunk(2, 1)
        r, s, _ = torch.split(y, [2, 7, 3], 1)
        z = torch.cat([q, r, p, s[:, 1:2]], 1)
        z = F.max_pool2d(z, 3, 2, ceil_mode=True)
        z = F.max_pool2d(F.relu(z) * z, 2, 2, ceil_mode=True)
        return self.last(z)


@pytest.mark.parametrize("size", [(18, 21), (16, 16), (7, 10)])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_squeeze_shuffle_split_and_windows_that_end_outside(size: tuple[int, int], batch: int) -> None:
    model, x = sparse(Squeeze(), 0.3), torch.randn(batch, 3, *size)
    assert error(model, x) < CLOSE
    assert "torch" not in compile(model, x).report()


def test_a_halo_holds_zeros_where_a_function_of_zero_is_none() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Sigmoid(), nn.Conv2d(3, 2, 5, padding=2)).eval()
    assert error(model, torch.randn(1, 2, 9, 9)) < CLOSE


def test_a_view_that_is_no_shuffle_is_left_to_torch() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            return x.view(n, 2, c // 2, h, w).transpose(1, 3).contiguous().view(n, c, h, w)

    x = torch.randn(1, 4, 6, 6)
    compiled = compile(Turned(), x)
    assert torch.equal(compiled(x), Turned()(x)) and "torch" in compiled.report()
