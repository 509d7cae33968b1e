"""A part of `benchmarks/runtime_zoo.py`: whole architectures with zeros, pictures of odd sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.runtime import compile
from prunus.zoo import build

CLOSE = 1e-4  # of the largest output; torch in float32 itself is off by a tenth of it in the deepest
NETWORKS = {
    "prunus:densenet_bc40": (35, 37),
    "prunus:mobilenetv2": (33, 30),
    "prunus:vgg16": (32, 34),
    "torchvision:mobilenet_v3_small": (67, 69),
    "torchvision:shufflenet_v2_x0_5": (65, 70),
}


def settled(model: nn.Module, x: Tensor, sparsity: float) -> nn.Module:
    """Weights with zeros, scales that differ, and the statistics of what goes through."""
    for p in model.parameters():
        if p.dim() > 1:
            p.data[torch.rand_like(p) < sparsity] = 0
            p.data /= (1 - sparsity) ** 0.5
        else:
            p.data += 0.2 * torch.randn_like(p)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    model.eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.train()
    with torch.no_grad():
        model(x)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_architecture_gives_what_torch_gives(name: str) -> None:
    if name.startswith("torchvision"):
        declare_torchvision_operators()
        pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    x = torch.randn(1, 3, *NETWORKS[name])
    model = settled(build(name).factory(), torch.randn(4, *x.shape[1:]), 0.8)
    compiled = compile(model, x)
    assert "torch" not in compiled.report()
    with torch.no_grad():
        want, still = model.double()(x.double()), model(torch.zeros_like(x).double())
    assert float((want - still).abs().max() / want.abs().max()) > 0.1, "the output does not depend on the picture"
    assert float((compiled(x) - want).abs().max() / want.abs().max()) < CLOSE
