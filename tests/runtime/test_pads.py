"""Zeros around a picture are the padding of the convolution behind them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.runtime import compile
from prunus.runtime.plain import PlainNetwork


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 2, 0, 2), (2, 0, 1, 0), (0, -1, 0, 0)])
@pytest.mark.parametrize("groups", [1, 6])
def test_uneven_pads(pads: tuple[int, ...], groups: int) -> None:
    torch.manual_seed(0)
    for size, stride, kernel in (((16, 20), 2, 3), ((13, 11), 2, 5), ((14, 14), 1, 3)):
        layers = [nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ZeroPad2d(pads), nn.Conv2d(6, 6, kernel, stride, 1, groups=groups)]
        net = nn.Sequential(*layers).eval()
        for batch in (1, 2):
            x = torch.randn(batch, 3, *size)
            compiled = compile(net, x)
            assert ("pad" in str(compiled.report())) == (min(pads) < 0)
            want = net(x).detach()
            torch.testing.assert_close(compiled(x), want, rtol=1e-4, atol=1e-5)
            plain = PlainNetwork(compiled.graph, images=compiled.images, threads=1)
            torch.testing.assert_close(plain(x), want, rtol=1e-4, atol=1e-5)
