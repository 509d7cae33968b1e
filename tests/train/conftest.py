"""A small problem that is learnt in a second."""

from typing import Any

import pytest
import torch
from torch import nn

from prunus.data.preprocess import Preprocess
from prunus.data.split import Data, Split

PREPROCESS = Preprocess(mean=(0.5,), std=(0.25,))


def problem(samples: int = 96) -> Data:
    """Grey images; the class is the bright half."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 128, (samples, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (samples,), generator=generator)
    for i, label in enumerate(labels.tolist()):
        images[i, :, 4 * label : 4 * label + 4] += 60
    split = Split(images, labels)
    return Data(split, split.take(torch.arange(40)), split, ("top", "bottom"), "halves")


def network(dropout: float = 0.0, norm: bool = True) -> nn.Sequential:
    """A small convolutional network, always with the same weights."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 4, 3, stride=2),
        nn.Flatten(),
        nn.Linear(36, 2),
    )


@pytest.fixture
def data() -> Data:
    return problem()


@pytest.fixture
def small() -> dict[str, Any]:
    """Settings of a short training in full precision."""
    return {"preprocess": PREPROCESS, "epochs": 2, "lr": 0.05, "batch": 16, "precision": "32", "quiet": True}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make() -> Any:
    return network
