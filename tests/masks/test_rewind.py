"""Lottery tickets: what is rewound, to the bit, and how masks shrink."""

import pytest
import torch
from torch import nn

import prunus
from prunus.core import InputError
from prunus.masks import lottery_
from prunus.masks.rewind import rounds_for


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def trainer(seen: list, steps: int = 5):
    """Trains a little, and notes what it began with."""

    def train(model, round):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        g = torch.Generator().manual_seed(round)
        for _ in range(steps):
            x, y = torch.randn(8, 6, generator=g), torch.randint(0, 4, (8,), generator=g)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return train


def tensors_of(state):
    return {k: v for k, v in state.items() if k in ("0.weight", "3.weight")}


@pytest.mark.parametrize("late", [False, True])
def test_survivors_go_back_to_the_bit_and_masks_only_shrink(late):
    model, seen, kept = network(), [], []
    early = (lambda m: trainer([], 2)(m, 99)) if late else None
    done = lottery_(model, prunus.tensors(model), trainer(seen), density=0.8**3, early=early)
    start = seen[0]
    assert len(seen) == 4 and done.density == pytest.approx(0.8**3, abs=0.01)
    for r, state in enumerate(seen):
        masks = {k: v != 0 for k, v in tensors_of(state).items()}
        total = sum(int(m.sum()) for m in masks.values())
        assert total == pytest.approx(0.8**r * (96 + 64), abs=1)
        kept.append(masks)
        for k, v in state.items():
            assert torch.equal(v[masks[k]], start[k][masks[k]]) if k in masks else torch.equal(v, start[k]), k
        if r:
            assert all((kept[r - 1][k] | ~m).all() for k, m in masks.items())
    final = model.state_dict()
    assert all((final[k][~m] == 0).all() for k, m in kept[-1].items()), "held in the last training"
    assert not torch.equal(final["0.weight"], seen[-1]["0.weight"])


def test_rewinding_the_rate_keeps_the_weights():
    model, seen, ends = network(), [], []
    inner = trainer(seen)

    def train(m, round):
        inner(m, round)
        ends.append({k: v.clone() for k, v in m.state_dict().items()})

    lottery_(model, prunus.tensors(model), train, density=0.5, rounds=2, rewind="rate")
    for before, after in zip(ends, seen[1:]):
        for k, v in tensors_of(after).items():
            assert torch.equal(v, before[k] * (v != 0))
        assert torch.equal(after["1.running_mean"], before["1.running_mean"])


def test_controls_change_the_last_round():
    found = {}
    for control in ("none", "shuffle", "redraw"):
        model, seen = network(), []
        lottery_(model, prunus.tensors(model), trainer(seen), density=0.3, rounds=2, control=control)
        found[control] = tensors_of(seen[-1])
    for k, plain in found["none"].items():
        moved, drawn = found["shuffle"][k], found["redraw"][k]
        assert (moved != 0).sum() == (plain != 0).sum() and not torch.equal(moved != 0, plain != 0)
        assert torch.equal(drawn != 0, plain != 0) and not torch.equal(drawn, plain)


def test_rounds_and_bad_input():
    assert rounds_for(0.8**10) == 10
    model = network()
    with pytest.raises(InputError, match="looks at data"):
        lottery_(model, prunus.tensors(model), trainer([]), density=0.5, criterion="snip")
    with pytest.raises(InputError, match="rewind"):
        lottery_(model, prunus.tensors(model), trainer([]), density=0.5, rewind="wieghts")
