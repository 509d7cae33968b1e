"""Trace, cut, verify on whole architectures: right on every one, at the cost foretold."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import prunus
from prunus.measure import macs, params
from prunus.zoo import build
from tests.tracing.networks import randomise

OWN = [
    "resnet20",
    "resnet56",
    "resnet20_b",
    "preresnet164",
    "vgg11",
    "vgg19",
    "densenet_bc40",
    "mobilenetv2",
    "digits_net",
]
TORCHVISION = [
    "vgg16_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "googlenet",
    "inception_v3",
    "squeezenet1_1",
    "mobilenet_v3_small",
    "mnasnet1_0",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
]
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


def check_cut(spec: str, x: torch.Tensor, budget: float) -> prunus.Report:
    torch.manual_seed(0)
    model = randomise(build(spec).module)
    report = prunus.prune_(model, x, budget=prunus.Budget(macs=budget), criterion="random", seed=1)
    assert report.in_place and report.verified.max_relative_error < 1e-7
    assert report.after["macs"] <= budget * report.before["macs"]
    assert params(model) == report.after["params"]
    assert macs(model, x).total == report.after["macs"]
    assert model(x).shape == (2, *model(x).shape[1:])
    return report


@pytest.mark.parametrize("name", OWN)
def test_own_zoo(name):
    entry = build(f"prunus:{name}")
    check_cut(f"prunus:{name}", torch.randn(2, *entry.input_shape), 0.5)


@needs_torchvision
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    size = 96 if name == "inception_v3" else 64
    report = check_cut(f"torchvision:{name}", torch.randn(2, 3, size, size), 0.5)
    cut = [g for g in report.plan.groups.values() if len(g.kept) < g.units]
    assert len(cut) >= 0.8 * len(report.plan.groups)
