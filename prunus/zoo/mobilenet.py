"""MobileNetV2 in its CIFAR form: inverted residuals with depthwise convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from prunus.core.checks import check_arguments
from prunus.zoo.registry import architecture, he_normal_

#: expansion, channels, blocks, stride of the first block; the stem and the stage of 24 keep the size of a 32x32 image
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv_bn(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise (stride), 1x1 without activation; summed where sizes agree.

    (N, C_in, H, W) -> (N, C, H / stride, W / stride)
    """

    def __init__(self, channels_in: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers = [*_conv_bn(channels_in, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [*_conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *_conv_bn(hidden, channels, 1)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """A 3x3 stem of 32, seventeen inverted residuals, 1x1 to 1280, global average, linear.

    Args:
        classes: outputs, 10 by default.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        check_arguments(locals())
        blocks: list[nn.Module] = []
        channels_in = 32
        for expansion, channels, count, stride in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(channels_in, channels, expansion, stride if i == 0 else 1))
                channels_in = channels
        self.stem = nn.Sequential(*_conv_bn(3, 32, 3), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv_bn(channels_in, 1280, 1), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))  # (N, 1280, 4, 4)
        return self.classifier(self.pool(x).flatten(1))


@architecture("mobilenetv2", paper="Sandler et al. 2018, MobileNetV2, table 2")
def mobilenetv2(classes: int = 10) -> MobileNetV2:
    """MobileNetV2 with the strides of 32x32 images, 2.2 M parameters."""
    return MobileNetV2(classes)
