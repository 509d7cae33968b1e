"""VGG networks with batch norm: for CIFAR, and the small one of the quickstart for 8x8 digits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from prunus.core.checks import a_positive_int, check_arguments, is_int, sequence
from prunus.data.preprocess import Preprocess
from prunus.zoo.registry import architecture, he_normal_

PAPER = "Simonyan and Zisserman 2015; CIFAR form of Liu et al. 2017, Network Slimming"
POOL = 0  #: in a list of widths: halve the image
WIDTHS = {
    11: (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512),
    16: (64, 64, POOL, 128, 128, POOL, *3 * (256,), POOL, *3 * (512,), POOL, *3 * (512,)),
    19: (64, 64, POOL, 128, 128, POOL, *4 * (256,), POOL, *4 * (512,), POOL, *4 * (512,)),
}
DIGITS = (64, 64, 64, POOL, 128, 128, 128)


class VGG(nn.Module):
    """3x3 convolutions (no bias), BN, ReLU, with 2x2 max pooling where `widths` says POOL, global average, linear.

    Args:
        widths: output channels of every convolution, in order; 0 (POOL) is a pooling.
        classes: outputs, 10 by default.
        channels: of the input, 3 by default.
    """

    def __init__(self, widths: Sequence[int], classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        check_arguments(
            locals(), widths=sequence("widths", lambda v: is_int(v) and v >= 0, empty=False), channels=a_positive_int
        )
        layers: list[nn.Module] = []
        for width in widths:
            if width == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


@architecture("vgg11", paper=PAPER)
def vgg11(classes: int = 10) -> VGG:
    """VGG-11 with batch norm and one linear layer for 32x32 images, 9.2 M parameters."""
    return VGG(WIDTHS[11], classes)


@architecture("vgg16", paper=PAPER)
def vgg16(classes: int = 10) -> VGG:
    """VGG-16 with batch norm and one linear layer for 32x32 images, 14.7 M parameters."""
    return VGG(WIDTHS[16], classes)


@architecture("vgg19", paper=PAPER)
def vgg19(classes: int = 10) -> VGG:
    """VGG-19 with batch norm and one linear layer for 32x32 images, 20.0 M parameters."""
    return VGG(WIDTHS[19], classes)


@architecture(
    "digits_net",
    paper="prunus, the quickstart",
    preprocess=Preprocess((0.305,), (0.376,), size=(8, 8), channels=1),
    shape=(1, 8, 8),
)
def digits_net(classes: int = 10) -> VGG:
    """Six convolutions of 64 and 128 channels for scikit-learn's 8x8 digits, 0.44 M parameters, 10.7 M MACs."""
    return VGG(DIGITS, classes, channels=1)
