"""Units of the same kind in one ranking, against ranks worked out by hand."""

import torch
from torch import nn

import prunus
from prunus.criteria import score
from prunus.criteria.isomorphic import isomorphic, signatures
from prunus.criteria.normalize import rank
from tests.criteria.test_closed_forms import attention
from tests.traced import chain, residual


class Block(nn.Module):
    """Attention with heads and a feed-forward part, both added to the stream."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(self.up(x).relu())


def kinds(groups: prunus.Groups) -> dict[str, object]:
    return {group.id: kind for group, kind in zip(groups, signatures(groups))}


def test_groups_of_one_kind_share_a_ranking_and_other_kinds_have_their_own():
    model, groups = chain()
    found = kinds(groups)
    assert found["conv1"] != found["conv2"]  # read by a convolution, and by a linear layer
    scores = {"conv1": torch.tensor([4.0, 1, 3, 2]), "conv2": torch.tensor([60.0, 10, 50, 20, 40, 30])}
    ranked = isomorphic(groups, scores)
    assert ranked["conv1"].tolist() == [1, 0.25, 0.75, 0.5]
    assert torch.equal(ranked["conv2"], rank(scores["conv2"]))
    plan = prunus.allocate(groups, ranked, prunus.Budget(macs=0.5))
    left = [len(plan.groups[id].kept) / plan.groups[id].units for id in ("conv1", "conv2")]
    assert abs(left[0] - left[1]) <= 1 / 4


def test_units_of_one_kind_are_compared_as_they_score():
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 8, 1),
    ]
    net = nn.Sequential(*layers)
    groups = prunus.trace(net, torch.randn(1, 3, 6, 6))
    assert kinds(groups)["0"] == kinds(groups)["3"]  # whatever the sizes are
    scores = {"0": torch.tensor([1.0, 3, 5, 7]), "3": torch.tensor([2.0, 4, 6, 8, 9, 3])}
    ranked = isomorphic(groups, scores)
    assert ranked["0"].tolist() == [0.1, 0.4, 0.6, 0.8] and ranked["3"].tolist() == [0.2, 0.5, 0.7, 0.9, 1.0, 0.4]


def test_depthwise_streams_and_parts_are_kinds_of_their_own():
    depthwise = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    found = kinds(prunus.trace(depthwise, torch.randn(1, 3, 6, 6)))
    assert found["0"] != found["2"]
    _, groups = residual()
    assert len(set(signatures(groups))) == len(groups)
    net = nn.Sequential(nn.Linear(3, 8), Block(8, 6), Block(8, 10), nn.Linear(8, 2))
    groups = prunus.trace(net, torch.randn(2, 5, 3), in_place=False)
    found = kinds(groups)
    for group in groups:
        twin = group.id.replace("1.", "2.", 1)
        if group.id.startswith("1.") and twin in found:
            assert found[group.id] == found[twin]
    ids = [g.id for g in groups if g.id.startswith("1.")]
    assert len(ids) >= 3 and len({found[id] for id in ids}) == len(ids)  # heads, their dimensions, inner channels
    net = attention()
    found = kinds(prunus.trace(net, torch.randn(3, 4, 8)))
    assert found["q"] != found["v"]


def test_what_a_unit_costs_counts_before_the_ranking():
    _, groups = chain()
    plain, worth = (score(groups, "l2", normalize="none", per=per) for per in (None, "macs"))
    ranked = score(groups, "l2", normalize="isomorphic", per="macs")
    for id in plain:
        assert torch.equal(ranked[id], rank(worth[id]))


def test_single_weights_are_of_the_kind_of_their_tensors():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2, bias=False), nn.Linear(2, 2, bias=False))
    groups = prunus.tensors(net)
    found = score(groups, "l1", normalize="isomorphic")
    both = torch.cat([groups[id].slices[0].tensor.detach().double().abs().flatten() for id in ("2.weight", "3.weight")])
    assert torch.equal(torch.cat([found["2.weight"], found["3.weight"]]), rank(both))
