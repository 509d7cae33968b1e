"""What to prune: small reference architectures, and any model by its name."""

from prunus.zoo.build import Model, build
from prunus.zoo.densenet import DenseNetBC, densenet_bc40
from prunus.zoo.mobilenet import MobileNetV2, mobilenetv2
from prunus.zoo.preresnet import PreActResNet, preresnet164
from prunus.zoo.registry import models
from prunus.zoo.resnet import (
    CifarResNet,
    PadShortcut,
    resnet20,
    resnet20_b,
    resnet32,
    resnet32_b,
    resnet44,
    resnet44_b,
    resnet56,
    resnet56_b,
    resnet110,
    resnet110_b,
)
from prunus.zoo.vgg import VGG, digits_net, vgg11, vgg16, vgg19
from prunus.zoo.weights import load_weights_

__all__ = [
    "VGG",
    "CifarResNet",
    "DenseNetBC",
    "MobileNetV2",
    "Model",
    "PadShortcut",
    "PreActResNet",
    "build",
    "densenet_bc40",
    "digits_net",
    "load_weights_",
    "mobilenetv2",
    "models",
    "preresnet164",
    "resnet20",
    "resnet20_b",
    "resnet32",
    "resnet32_b",
    "resnet44",
    "resnet44_b",
    "resnet56",
    "resnet56_b",
    "resnet110",
    "resnet110_b",
    "vgg11",
    "vgg16",
    "vgg19",
]
