"""Statistics by sample do not depend on whether sequences or samples come first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core import InputError, Inputs
from prunus.criteria import needs
from prunus.observe.order import order_of

BY_SAMPLE = ["taylor-gate", "group-fisher", "entropy", "taylor-activation", "dcp", "chip", "nisp", "fisher"]


class Attention(nn.Module):
    """One block with a class token, whose rows are the same for every sample in the first layers."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.embed, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.wide, self.narrow, self.out = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        h = h if self.batch_first else h.transpose(0, 1)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = h + self.narrow(self.wide(h).relu())
        return self.out((h if self.batch_first else h.transpose(0, 1)).mean(1))


def network(batch_first: bool) -> nn.Module:
    torch.manual_seed(0)
    return Attention(batch_first).double().eval()


def data(samples: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 5, 6, dtype=torch.float64, generator=generator), torch.arange(8) % 3
    return list(zip(x.split(samples), y.split(samples)))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("criterion", BY_SAMPLE)
def test_samples_together_say_what_each_says_alone(criterion: str, batch_first: bool) -> None:
    net, found = network(batch_first), []
    for samples in (4, 1):
        groups = prunus.trace(net, data(samples)[0][0])
        stats = prunus.collect(net, groups, data(samples), needs=needs(criterion))
        found.append(prunus.score(groups, criterion, stats))
    assert set(found[0]) == set(found[1]) and found[0]
    for id, scores in found[0].items():
        torch.testing.assert_close(found[1][id], scores, rtol=1e-6, atol=1e-9)


def test_what_is_sequence_first_is_found() -> None:
    pair = data(2)[0][0]
    inside = {"attention.in_proj_weight": 1, "attention.out_proj.weight": 1}  # whatever `batch_first`
    for net, expected in ((network(True), inside), (network(False), inside | {"wide.weight": 1, "narrow.weight": 1})):
        alone = Inputs.of(pair[:1]), Inputs.of(pair[1:])
        order = order_of(net, prunus.trace(net, pair), Inputs.of(pair), alone)
        assert {name: together for (name, _), together in order.items()} == expected


def test_rows_that_are_no_samples_are_said() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.b(self.a(x.flatten(0, 1)[1:]).relu())  # one row is lost
            return self.out(rows.sum(0) + self.a(x).mean(1))

    net, batches = Flat().eval(), [(x.float(), y) for x, y in data(4)]
    groups = prunus.trace(net, batches[0][0])
    with pytest.raises(InputError, match=r"gets 19 rows of 4 samples.*Use a criterion of weights"):
        prunus.collect(net, groups, batches, needs=needs("taylor-gate"))
