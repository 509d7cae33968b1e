"""The built-in architectures by name, and what each one declares of itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from prunus.core import Registry
from prunus.data.preprocess import Preprocess

models: Registry[Callable[..., nn.Module]] = Registry("model")

CIFAR_SHAPE = (3, 32, 32)
#: Of the CIFAR-10 training images; what networks of this zoo are trained with unless their weights say otherwise.
CIFAR = Preprocess((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), size=(32, 32), channels=3)


def architecture(
    name: str, *, paper: str, preprocess: Preprocess = CIFAR, shape: tuple[int, ...] = CIFAR_SHAPE
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator: register ``f(classes) -> module`` with its preprocessing and the shape (C, H, W) of one input."""
    return models.register(name, paper=paper, preprocess=preprocess, input_shape=shape)


def he_normal_(module: nn.Module) -> None:
    """Initialise convolutions and linear layers with normal weights of variance 2 / fan_in (He et al. 2015, eq. 10)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
