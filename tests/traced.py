"""The networks of `tests.hand_built`, traced: with the operators that statistics of units are keyed by."""

import torch
from torch import nn

import prunus
from prunus.core import Groups
from tests import hand_built
from tests.hand_built import batches

__all__ = ["batches", "chain", "residual"]


def chain(first: int = 4, second: int = 6, seed: int = 0) -> tuple[nn.Module, Groups]:
    """Two convolutions and a classifier."""
    return _traced(hand_built.chain(first, second, seed)[0])


def residual(stream: int = 4, inner: int = 5, seed: int = 0) -> tuple[nn.Module, Groups]:
    """A stem and one block whose output is added to the stem's."""
    return _traced(hand_built.residual(stream, inner, seed)[0])


def _traced(model: nn.Module) -> tuple[nn.Module, Groups]:
    return model, prunus.trace(model, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)))
