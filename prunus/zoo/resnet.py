"""Residual networks for CIFAR: ResNet-20 ... 110, their shortcut without weights (option A) or with (option B)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.checks import check_arguments, ints, one_of
from prunus.data.preprocess import Preprocess
from prunus.zoo.registry import architecture, he_normal_

PAPER = "He et al. 2016, Deep Residual Learning, section 4.2"
#: Of the published weights (akamaster/pytorch_resnet_cifar10).
PREPROCESS = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size=(32, 32), channels=3)


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, with `before` zero channels in front and `after` behind.

    (N, C, H, W) -> (N, before + C + after, H / stride, W / stride).  The two counts are plain integers that forward
    reads, so a physical cut of channels can set them.
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the sum: (N, C_in, H, W) -> (N, C, H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(channels_in, channels, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


def _shortcut(channels_in: int, channels: int, stride: int, option: str) -> nn.Module:
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    if option == "A":
        extra = channels - channels_in
        return PadShortcut(stride, extra // 2, extra - extra // 2)
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of (depth - 2) / 6 blocks with 16, 32, 64 channels, global average, linear.

    Args:
        depth: layers with weights, 6 n + 2, 8 or more.
        classes: outputs, 10 by default.
        option: the shortcut where channels double: ``"A"`` (default) fills up with zeros, ``"B"`` is a 1x1 convolution.
    """

    def __init__(self, depth: int, classes: int = 10, option: str = "A") -> None:
        super().__init__()
        check_arguments(locals(), depth=ints(8), option=one_of("A", "B"))
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, 1, option)
        self.layer2 = _stage(blocks, 16, 32, 2, option)
        self.layer3 = _stage(blocks, 32, 64, 2, option)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 16, 32, 32)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, 8, 8)
        return self.linear(self.pool(x).flatten(1))


def _stage(blocks: int, channels_in: int, channels: int, stride: int, option: str) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride, option)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, option) for _ in range(blocks - 1)))


@architecture("resnet20", paper=PAPER, preprocess=PREPROCESS)
def resnet20(classes: int = 10) -> CifarResNet:
    """ResNet-20 for 32x32 images, 0.27 M parameters, shortcuts without weights (option A)."""
    return CifarResNet(20, classes)


@architecture("resnet32", paper=PAPER, preprocess=PREPROCESS)
def resnet32(classes: int = 10) -> CifarResNet:
    """ResNet-32 for 32x32 images, 0.46 M parameters, shortcuts without weights (option A)."""
    return CifarResNet(32, classes)


@architecture("resnet44", paper=PAPER, preprocess=PREPROCESS)
def resnet44(classes: int = 10) -> CifarResNet:
    """ResNet-44 for 32x32 images, 0.66 M parameters, shortcuts without weights (option A)."""
    return CifarResNet(44, classes)


@architecture("resnet56", paper=PAPER, preprocess=PREPROCESS)
def resnet56(classes: int = 10) -> CifarResNet:
    """ResNet-56 for 32x32 images, 0.85 M parameters, shortcuts without weights (option A)."""
    return CifarResNet(56, classes)


@architecture("resnet110", paper=PAPER, preprocess=PREPROCESS)
def resnet110(classes: int = 10) -> CifarResNet:
    """ResNet-110 for 32x32 images, 1.7 M parameters, shortcuts without weights (option A)."""
    return CifarResNet(110, classes)


@architecture("resnet20_b", paper=PAPER, preprocess=PREPROCESS)
def resnet20_b(classes: int = 10) -> CifarResNet:
    """ResNet-20 with 1x1 convolutions in the two shortcuts that change size (option B)."""
    return CifarResNet(20, classes, "B")


@architecture("resnet32_b", paper=PAPER, preprocess=PREPROCESS)
def resnet32_b(classes: int = 10) -> CifarResNet:
    """ResNet-32 with 1x1 convolutions in the two shortcuts that change size (option B)."""
    return CifarResNet(32, classes, "B")


@architecture("resnet44_b", paper=PAPER, preprocess=PREPROCESS)
def resnet44_b(classes: int = 10) -> CifarResNet:
    """ResNet-44 with 1x1 convolutions in the two shortcuts that change size (option B)."""
    return CifarResNet(44, classes, "B")


@architecture("resnet56_b", paper=PAPER, preprocess=PREPROCESS)
def resnet56_b(classes: int = 10) -> CifarResNet:
    """ResNet-56 with 1x1 convolutions in the two shortcuts that change size (option B)."""
    return CifarResNet(56, classes, "B")


@architecture("resnet110_b", paper=PAPER, preprocess=PREPROCESS)
def resnet110_b(classes: int = 10) -> CifarResNet:
    """ResNet-110 with 1x1 convolutions in the two shortcuts that change size (option B)."""
    return CifarResNet(110, classes, "B")
