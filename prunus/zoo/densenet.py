"""DenseNet-BC for CIFAR: every layer sees the outputs of all layers of its block before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.checks import a_positive_int, check_arguments, ints
from prunus.data.preprocess import Preprocess
from prunus.zoo.registry import architecture, he_normal_

#: Of the published weights (HazyResearch/ukb-cardiac-mri): bytes, not their 255th part.
PREPROCESS = Preprocess((125.3, 123.0, 113.9), (63.0, 62.1, 66.7), scale=255.0, size=(32, 32), channels=3)


class DenseLayer(nn.Module):
    """BN-ReLU-1x1 (4 k channels), BN-ReLU-3x3 (k channels), joined behind the input: (N, C, ...) -> (N, C + k, ...)."""

    def __init__(self, channels_in: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return torch.cat([x, y], 1)


class DenseBlock(nn.Module):
    """`layers` dense layers, one after the other: (N, C, H, W) -> (N, C + layers growth, H, W)."""

    def __init__(self, channels_in: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(DenseLayer(channels_in + i * growth, growth) for i in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Transition(nn.Module):
    """BN-ReLU-1x1 to half of the channels, then 2x2 average pooling: (N, C, H, W) -> (N, C / 2, H / 2, W / 2)."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_in // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv1(F.relu(self.bn1(x))))


class DenseNetBC(nn.Module):
    """A 3x3 stem (2 k channels), three blocks of (depth - 4) / 6 layers with transitions, global average, linear.

    Args:
        depth: layers with weights, 6 n + 4, 10 or more; 40 by default.
        growth: channels that each layer adds, k; 12 by default.
        classes: outputs, 10 by default.
    """

    def __init__(self, depth: int = 40, growth: int = 12, classes: int = 10) -> None:
        super().__init__()
        check_arguments(locals(), depth=ints(10), growth=a_positive_int)
        layers = (depth - 4) // 6
        added = layers * growth
        first = 2 * growth
        second = (first + added) // 2
        third = (second + added) // 2
        self.conv1 = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.block1 = DenseBlock(first, growth, layers)
        self.trans1 = Transition(first + added)
        self.block2 = DenseBlock(second, growth, layers)
        self.trans2 = Transition(second + added)
        self.block3 = DenseBlock(third, growth, layers)
        self.bn1 = nn.BatchNorm2d(third + added)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third + added, classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.block1(self.conv1(x)))  # (N, 48, 16, 16)
        x = self.block3(self.trans2(self.block2(x)))  # (N, 132, 8, 8)
        return self.fc(self.pool(F.relu(self.bn1(x))).flatten(1))


@architecture("densenet_bc40", paper="Huang et al. 2017, Densely Connected Networks, table 2", preprocess=PREPROCESS)
def densenet_bc40(classes: int = 10) -> DenseNetBC:
    """DenseNet-BC with 40 layers and growth 12 for 32x32 images, 0.18 M parameters."""
    return DenseNetBC(40, 12, classes)
