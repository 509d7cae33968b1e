"""The built-in architectures: sizes that are published, shortcuts that are identities, every entry of the registry."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunus import zoo
from prunus.core import Entry
from prunus.zoo import PadShortcut, build, models
from prunus.zoo.mobilenet import InvertedResidual

# Option A and DenseNet-BC-40: the sizes of the published weights (akamaster/pytorch_resnet_cifar10 for 44 and 110).
# Option B adds 16 x 32 + 32 x 64 weights and 2 (32 + 64) batch norm parameters.
# preresnet164, vgg19: Liu et al. 2017, table 1 (1.70 M, 20.04 M).  vgg11, vgg16: the widespread CIFAR forms (9,231,114
# and 14,728,266 with biases) less their 2,752 and 4,224 convolution biases.  mobilenetv2: the published 3,504,872 with
# 10 of 1,000 outputs (torchvision's count; the paper rounds to 3.4 M).
PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet20_b": 269_722 + 2_752,
    "resnet32_b": 464_154 + 2_752,
    "resnet44_b": 658_586 + 2_752,
    "resnet56_b": 853_018 + 2_752,
    "resnet110_b": 1_727_962 + 2_752,
    "preresnet164": 1_703_258,
    "vgg11": 9_231_114 - 2_752,
    "vgg16": 14_728_266 - 4_224,
    "vgg19": 20_035_018,
    "densenet_bc40": 176_122,
    "mobilenetv2": 3_504_872 - 990 * 1281,
}
# Multiply-adds of one image: Liu et al. 2017 count 7.97e8 / 2 (VGG-19) and 4.99e8 / 2 (ResNet-164); for the others
# the literature says 41 M and 126 M.
MACS = {"vgg19": 398.4e6, "preresnet164": 249.5e6, "resnet20": 40.8e6, "resnet56": 125.8e6}


def entries() -> list[object]:
    return [pytest.param(entry, id=entry.name) for entry in models]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    assert count(build(f"prunus:{name}").module) == PARAMETERS[name]


@pytest.mark.parametrize("name", MACS)
def test_published_multiply_adds(name: str) -> None:
    model = build(f"prunus:{name}")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module.eval()(model.example())
    assert counter.get_total_flops() / 2 == pytest.approx(MACS[name], rel=0.01)


@pytest.mark.parametrize("entry", entries())
def test_every_model_runs_trains_and_is_described(entry: Entry) -> None:
    model = build(f"prunus:{entry.name}", classes=7, seed=0)
    assert entry.line
    assert entry.paper
    assert getattr(zoo, entry.name) is entry.call
    channels, height, width = entry.declares["input_shape"]
    assert model.preprocess.channels == channels
    assert model.preprocess.size == (height, width)
    images = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
    out = model.module(model.preprocess(images))
    assert out.shape == (2, 7)
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.module.parameters())


@pytest.mark.parametrize("entry", entries())
def test_any_batch_and_image_size(entry: Entry) -> None:
    module = build(f"prunus:{entry.name}").module.eval()
    channels, height, width = entry.declares["input_shape"]
    x = torch.randn(3, channels, height * 2, width * 2)
    with torch.no_grad():
        together, alone = module(x), module(x[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-3)


def test_option_a_is_every_second_pixel_between_zeros() -> None:
    x = torch.randn(2, 16, 8, 8)
    y = PadShortcut(stride=2, before=5, after=11)(x)
    assert y.shape == (2, 32, 4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(y[:, 5:21, row, column], x[:, :, 2 * row, 2 * column])
    assert not y[:, :5].any()
    assert not y[:, 21:].any()


def test_option_a_amounts_are_plain_integers_that_forward_reads() -> None:
    shortcuts = [m for m in zoo.resnet20().modules() if isinstance(m, PadShortcut)]
    assert [(s.before, s.after) for s in shortcuts] == [(8, 8), (16, 16)]
    assert not list(shortcuts[0].parameters())
    shortcuts[0].before, shortcuts[0].after = 1, 2
    assert shortcuts[0](torch.randn(1, 5, 4, 4)).shape == (1, 8, 2, 2)


def test_a_silent_block_is_the_identity() -> None:
    """With its last batch norm silenced, a block of ReLUed input is that input (He et al. 2016, equation 1)."""
    block = zoo.resnet20().eval().layer1[1]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(x), x)
    block = zoo.preresnet164().eval().layer1[1]
    nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(block(x), x)


def test_dense_layers_keep_their_input_in_front() -> None:
    block = zoo.densenet_bc40().eval().block1
    x = torch.randn(2, 24, 8, 8)
    y = block(x)
    assert y.shape == (2, 24 + 6 * 12, 8, 8)
    assert torch.equal(y[:, :24], x)
    assert torch.equal(y[:, 24:36], block.layer[0](x)[:, 24:])


def test_mobilenet_sums_where_sizes_agree() -> None:
    assert not InvertedResidual(8, 8, expansion=6, stride=2).residual
    blocks = zoo.mobilenetv2().blocks
    assert sum(block.residual for block in blocks) == 10  # 17 blocks, the first of each of 7 stages without a sum
    for block in blocks:
        depthwise = next(m for m in block.conv if isinstance(m, nn.Conv2d) and m.groups > 1)
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels


def test_the_quickstart_network_is_worth_cutting() -> None:
    model = build("prunus:digits_net")
    widths = [m.out_channels for m in model.module.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 16 == 0 for width in widths)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module.eval()(model.example())
    assert 8e6 <= counter.get_total_flops() / 2 <= 20e6
