"""The guide for adding a method: what it shows works, and keeps the promises of the contracts."""

import re
from pathlib import Path

import pytest
import torch

from prunus.allocators import allocate, allocators
from prunus.core import Budget
from prunus.criteria import criteria, score
from prunus.observe import collect
from prunus.regularizers import attach, regularizers
from tests.hand_built import batches, residual

GUIDE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture
def guide():
    """Every block of the guide, executed; the registries are put back afterwards."""
    registries = (criteria, allocators, regularizers)
    before = [dict(registry._entries) for registry in registries]
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, {"__name__": "guide"})
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


def test_what_the_guide_adds_works(guide):
    model, groups = residual(8, 12)
    stats = collect(model, groups, batches(), {"grad"})
    for name in ("taylor-norm", "fpgm-like"):
        scores = score(groups, name, stats)
        assert [len(s) for s in scores.values()] == [8, 12]
        plan = allocate(groups, scores, Budget(macs=0.5), allocator="front-first")
        assert len(plan.groups["stem"].kept) < 8 and len(plan.groups["a"].kept) == 12
    gate = model.bn_a.weight * stats.kinds["grad"]["bn_a.weight"] + model.bn_a.bias * stats.kinds["grad"]["bn_a.bias"]
    torch.testing.assert_close(score(groups, "taylor-norm", stats)["a"], gate.detach().square().double())


def test_the_regularizer_of_the_guide_is_the_gradient_and_the_map_of_its_penalty(guide):
    for proximal in (False, True):
        model, groups = residual()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        attach(regularizers["squared-scale"].call(strength=0.2, proximal=proximal), groups, optimizer)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        before = model.bn.weight.detach().clone()
        optimizer.step()
        expected = before / (1 + 0.1) if proximal else before * (1 - 0.1)
        torch.testing.assert_close(model.bn.weight.detach(), expected)
