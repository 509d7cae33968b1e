"""What is held at zero is what the proof silences."""

from __future__ import annotations

import torch

import prunus
from prunus.surgery import gaps, kept_units, silence_, silence_gradients_
from prunus.surgery.reference import silenced
from tests.hand_built import residual


def setting():
    model, groups = residual(6, 8)
    keep = torch.rand(groups.units, generator=torch.Generator().manual_seed(1)) > 0.4
    return model, groups, keep


def test_weights_gradients_and_state_are_silenced_alike():
    model, groups, keep = setting()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer.step()
    tensors = dict(model.named_parameters())
    before = {
        n: (p.detach().clone(), p.grad.clone(), optimizer.state[p]["exp_avg"].clone()) for n, p in tensors.items()
    }
    holes = gaps(groups, keep)
    silence_(holes, [optimizer])
    silence_gradients_(holes)
    changed = 0
    for at, now in enumerate((lambda p: p, lambda p: p.grad, lambda p: optimizer.state[p]["exp_avg"])):
        names = {n: values[at].clone() for n, values in before.items()} | dict(model.named_buffers())
        expected = silenced(names, groups, keep)
        for name, p in tensors.items():
            assert torch.equal(now(p), expected[name]), name
            changed += not torch.equal(now(p), before[name][at])
    assert changed >= 15
    assert all(float(optimizer.state[p]["step"]) == 1 for p in model.parameters())


def test_infinities_are_silenced_and_no_state_is_invented():
    model, groups, keep = setting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model.stem.weight.fill_(float("nan"))
    silence_(gaps(groups, keep), [optimizer])
    assert torch.equal(model.stem.weight.isnan().all((1, 2, 3)), keep[:6])
    assert len(optimizer.state) == 0 and len(gaps(groups, torch.ones_like(keep))) == 0


def test_the_units_of_a_mask_come_back():
    _, groups, keep = setting()
    plan = prunus.Plan.from_json(kept_units(groups, keep).to_json())
    assert torch.equal(groups.mask(plan), keep) and not plan.tensors
