"""A forward that changes the network's own weights in every run is refused: no cut of it could be proven."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus


class Changing(nn.Module):
    """Writes into its weight, or puts another memory in its place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two, self.how = nn.Linear(4, 8), nn.Linear(8, 2), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "in place":
            with torch.no_grad():
                self.one.weight.mul_(0.9)
        elif self.how == "by data":
            self.one.weight.data = self.one.weight.data * 0.9
        elif self.how == "within bounds":
            with torch.no_grad():
                self.one.weight.clamp_(-0.1, 0.1)
        return self.two(self.one(x).relu())


@pytest.mark.parametrize("how", ["in place", "by data"])
def test_a_forward_that_changes_its_weights_is_refused(how: str) -> None:
    with pytest.raises(prunus.TraceError, match="changes the network's own parameter 'one.weight'"):
        prunus.trace(Changing(how), torch.randn(2, 4))


def test_an_embedding_with_a_largest_norm_is_cut_behind_it() -> None:
    net = nn.Sequential(nn.Embedding(9, 4, max_norm=0.1), nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 2))
    report = prunus.prune_(net, torch.tensor([[1, 2, 3]]), budget=prunus.Budget(params=0.8))
    assert report.in_place and report.verified is not None and report.verified.max_relative_error < 1e-7
    assert net[2].weight.shape[0] < 8 and net[0].weight.shape == (9, 4)


@pytest.mark.parametrize("how", ["not at all", "within bounds"])
def test_a_forward_that_comes_to_rest_is_traced(how: str) -> None:
    assert len(prunus.trace(Changing(how), torch.randn(2, 4))) == 1
