"""Pre-activation residual networks for CIFAR: batch norm and ReLU before every convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.checks import check_arguments, ints
from prunus.zoo.registry import architecture, he_normal_

EXPANSION = 4


class PreBottleneck(nn.Module):
    """BN-ReLU before 1x1, 3x3 (stride) and 1x1: (N, C_in, H, W) -> (N, 4 width, H / stride, W / stride).

    The stream is summed without a ReLU; where its size changes the shortcut is a 1x1 convolution of the input.
    """

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * EXPANSION
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        same = stride == 1 and channels_in == out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + self.shortcut(x)


class PreActResNet(nn.Module):
    """A 3x3 stem, three stages of (depth - 2) / 9 bottlenecks of width 16, 32, 64, BN, global average, linear.

    Args:
        depth: layers with weights, 9 n + 2, 11 or more.
        classes: outputs, 10 by default.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        check_arguments(locals(), depth=ints(11))
        blocks = (depth - 2) // 9
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.layer1 = _stage(blocks, 16, 16, 1)
        self.layer2 = _stage(blocks, 16 * EXPANSION, 32, 2)
        self.layer3 = _stage(blocks, 32 * EXPANSION, 64, 2)
        self.bn = nn.BatchNorm2d(64 * EXPANSION)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * EXPANSION, classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))  # (N, 256, 8, 8)
        x = F.relu(self.bn(x))
        return self.fc(self.pool(x).flatten(1))


def _stage(blocks: int, channels_in: int, width: int, stride: int) -> nn.Sequential:
    rest = (PreBottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(PreBottleneck(channels_in, width, stride), *rest)


@architecture("preresnet164", paper="He et al. 2016, Identity Mappings in Deep Residual Networks")
def preresnet164(classes: int = 10) -> PreActResNet:
    """Pre-activation ResNet-164 with bottlenecks for 32x32 images, 1.70 M parameters."""
    return PreActResNet(164, classes)
