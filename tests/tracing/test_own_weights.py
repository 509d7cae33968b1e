"""A forward that changes the network's own weights is refused: no cut of it could be proven."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus


class Clamped(nn.Module):
    """Writes into its weight, or puts another memory in its place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two, self.how = nn.Linear(4, 8), nn.Linear(8, 2), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "in place":
            with torch.no_grad():
                self.one.weight.clamp_(-0.1, 0.1)
        elif self.how == "by data":
            self.one.weight.data = self.one.weight.data.clamp(-0.1, 0.1)
        return self.two(self.one(x).relu())


@pytest.mark.parametrize("how", ["in place", "by data"])
def test_a_forward_that_changes_its_weights_is_refused(how: str) -> None:
    with pytest.raises(prunus.TraceError, match="changes the network's own parameter 'one.weight'"):
        prunus.trace(Clamped(how), torch.randn(2, 4))


def test_an_embedding_with_a_largest_norm_is_refused() -> None:
    net = nn.Sequential(nn.Embedding(9, 4, max_norm=0.1), nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 2))
    with pytest.raises(prunus.TraceError, match="max_norm"):
        prunus.trace(net, torch.tensor([[1, 2, 3]]))


def test_a_forward_that_does_not_is_not() -> None:
    assert len(prunus.trace(Clamped("not at all"), torch.randn(2, 4))) == 1
