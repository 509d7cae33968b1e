"""Every method of dynamic pruning keeps the contract of gates."""

from __future__ import annotations

import pytest
import torch

from prunus.dynamic import methods
from prunus.dynamic.gate import Seen
from prunus.dynamic.method import method_of

NAMES = [entry.name for entry in methods]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_it_is(name: str) -> None:
    assert methods[name].line.endswith(".")
    assert methods[name].paper


@pytest.mark.parametrize("name", NAMES)
def test_gates_give_masks_sample_by_sample(name: str) -> None:
    torch.manual_seed(0)
    gate, x = method_of(name).gate(5, 12).eval(), torch.randn(4, 5, 3, 3)
    saliency = gate.look(x)
    mask, floored = gate.mask_of(saliency)
    assert mask.shape == saliency.shape == (4, 12)
    assert floored.shape == (4,)
    assert bool((mask >= 0).all())
    for i in range(4):
        torch.testing.assert_close(gate.mask_of(gate.look(x[i : i + 1]))[0][0], mask[i])
    assert torch.equal(gate.pool(torch.zeros(1, 5, 2, 2)), torch.zeros(1, 5))  # so that compact maps may be spread out
    assert gate.macs > 0
    assert not any(p.dim() > 2 for p in gate.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_finite_and_reaches_gates(name: str) -> None:
    torch.manual_seed(0)
    method = method_of(name)
    gate = method.gate(5, 12).train()
    saliency = gate.look(torch.randn(4, 5, 3, 3))
    mask, floored = gate.mask_of(saliency)
    loss = method.loss(torch.rand(4), [Seen(saliency, mask, torch.rand(4, 12), floored)], 2.0)
    loss.backward()
    assert bool(loss.isfinite())
    assert any(p.grad is not None and bool(p.grad.any()) for p in gate.parameters())
