"""The hook against closed forms: what one step adds, where the proximal map rests, what is left alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.core import InputError, Slice, UnknownNameError
from prunus.regularizers import Regularizer, attach, regularizers
from tests.hand_built import batches, chain, groups_of, residual

bn_gamma = regularizers["bn-gamma"].call
GAMMAS = ("bn1.weight", "bn2.weight")


def backward_(model, batch):
    x, y = batch
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def test_one_step_adds_exactly_lambda_times_sign():
    model, groups = chain()
    model.bn1.weight.data[:2] = torch.tensor([0.0, -0.5])
    (batch,) = batches(1)
    backward_(model, batch)
    before = gradients(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(bn_gamma(strength=0.25), groups, optimizer)
    optimizer.step()
    for name, p in model.named_parameters():
        expected = 0.25 * p.detach().sign() if name in GAMMAS else torch.zeros(())
        assert torch.equal(p.grad, before[name] + expected), name
    assert model.bn1.weight.grad[0] == before["bn1.weight"][0], "the sign of zero is zero"
    assert handle.left_alone == ()


def test_the_step_is_that_of_the_penalised_loss():
    (a, groups), (b, _) = chain(), chain()
    (x, y) = batches(1)[0]
    sgd_a, sgd_b = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2) for m in (a, b))
    attach(bn_gamma(strength=0.05), groups, sgd_a)
    for _ in range(4):
        backward_(a, (x, y))
        sgd_a.step()
        b.zero_grad()
        (F.cross_entropy(b(x), y) + 0.05 * (b.bn1.weight.abs().sum() + b.bn2.weight.abs().sum())).backward()
        sgd_b.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


class Quadratic(nn.Module):
    """One scale with loss a/2 (gamma - c)^2."""

    def __init__(self, start):
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor([start]))

    def descend(self, optimizer, a, c, steps):
        seen = []
        for _ in range(steps):
            optimizer.zero_grad()
            (0.5 * a * (self.gamma - c) ** 2).sum().backward()
            optimizer.step()
            seen.append(self.gamma.item())
        return seen


def quadratic(start, lr, regularizer):
    model = Quadratic(start)
    groups = groups_of(model, {"g": (1, [("gamma", 0, "norm_scale")])})
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    attach(regularizer, groups, optimizer)
    return model, optimizer


@pytest.mark.parametrize(
    ("a", "c", "strength", "rest"), [(1.0, 0.1, 0.3, 0.0), (2.0, 0.5, 0.3, 0.35), (1.0, -2.0, 0.5, -1.5)]
)
def test_the_proximal_map_rests_at_the_soft_threshold(a, c, strength, rest):
    model, optimizer = quadratic(1.0, 0.1, bn_gamma(strength, proximal=True))
    seen = model.descend(optimizer, a, c, 400)
    assert seen[-1] == pytest.approx(rest, abs=1e-6)
    if rest == 0:
        assert set(seen[-50:]) == {0.0}, "exact zeros"


def test_the_subgradient_keeps_jumping_around_zero():
    model, optimizer = quadratic(1.0, 0.1, bn_gamma(0.3))
    seen = model.descend(optimizer, 1.0, 0.1, 400)[-50:]
    assert 0.0 not in seen and min(seen) < 0 < max(seen)
    assert max(abs(v) for v in seen) <= 0.1 * (0.3 + 0.1 + 0.1)


def test_the_proximal_map_uses_the_learning_rate_of_the_moment_and_of_the_parameter_group():
    model, groups = chain()
    optimizer = torch.optim.SGD([{"params": [model.bn1.weight], "lr": 0.5}, {"params": [model.bn2.weight], "lr": 0.0}])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    attach(bn_gamma(0.1, proximal=True), groups, optimizer)
    gamma, other = model.bn1.weight, model.bn2.weight.clone()
    for rate in (0.5, 0.25):
        for p in (gamma, model.bn2.weight):
            p.grad = torch.zeros_like(p)
        expected = F.softshrink(gamma.detach(), 0.1 * rate)
        optimizer.step()
        schedule.step()
        torch.testing.assert_close(gamma.detach(), expected)
    assert torch.equal(model.bn2.weight, other)


def test_frozen_unused_and_foreign_parameters_are_left_alone():
    model, groups = residual()
    model.bn_b.weight.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([model.bn.weight, model.bn_b.weight, model.fc.weight], lr=0.1)
    handle = attach(bn_gamma(0.1, proximal=True), groups, optimizer)
    assert [(f.what, f.why) for f in handle.left_alone] == [("bn_a.weight", "not in the optimizer")]
    optimizer.step()  # nothing has a gradient yet
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["bn.weight"]


def test_a_removed_handle_acts_no_more():
    model, groups = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(bn_gamma(1.0), groups, optimizer)
    handle.remove()
    backward_(model, batches(1)[0])
    before = gradients(model)
    optimizer.step()
    assert all(torch.equal(p.grad, before[n]) for n, p in model.named_parameters())


def share(name, dim, units, role, tensor):
    return Slice(name, dim, torch.tensor(units).unsqueeze(1), role, tensor)


def test_only_the_share_that_the_groups_cover_is_penalised_and_once():
    bn = nn.BatchNorm1d(6)
    nn.init.constant_(bn.weight, 2.0)
    groups = groups_of(bn, {"a": (2, []), "b": (2, [])})
    for group, units in zip(groups.members, ([0, 1], [1, 4]), strict=True):
        object.__setattr__(group, "slices", (share("weight", 0, units, "norm_scale", bn.weight),))
    for p in bn.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.SGD(bn.parameters(), lr=0.0)
    handle = attach(bn_gamma(0.5), groups, optimizer)
    optimizer.step()
    assert bn.weight.grad.tolist() == [0.5, 0.5, 0, 0, 0.5, 0]
    handle.remove()
    optimizer.param_groups[0]["lr"] = 1.0
    bn.weight.grad.zero_()
    attach(bn_gamma(0.5, proximal=True), groups, optimizer)
    optimizer.step()
    assert bn.weight.tolist() == [1.5, 1.5, 2, 2, 1.5, 2]


def test_a_regularizer_of_whole_groups_sees_units_by_fan():
    """Group lasso, lambda ||w_u||: its gradient from autograd, its proximal map in closed form."""

    def norms(rows):
        return torch.cat(list(rows), 1).norm(dim=1, keepdim=True)  # (units, 1)

    lasso = Regularizer(
        frozenset({"out"}),
        lambda rows: [0.3 * r / norms(rows) for r in rows],
        lambda rows, lr: [r * (1 - lr * 0.3 / norms(rows)).clamp(min=0) for r in rows],
        kind="group",
    )
    model, groups = residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(lasso, groups, optimizer)
    stem, b, a = model.stem.weight, model.b.weight, model.a.weight
    rows = torch.cat([stem.flatten(1), b.flatten(1)], 1)
    (0.3 * (rows.norm(dim=1).sum() + a.flatten(1).norm(dim=1).sum())).backward()
    expected = [p.grad.clone() for p in (stem, b, a)]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, grad in zip((stem, b, a), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-7)
    assert model.fc.weight.grad.abs().sum() == 0
    optimizer.param_groups[0]["lr"] = 1.0
    for p in model.parameters():
        p.grad.zero_()
    left = rows.detach().norm(dim=1)
    optimizer.zero_grad(set_to_none=False)
    before = stem.detach().clone()
    # the gradient of the lasso steps first, then its map: stem rows shrink by 0.3 in norm twice
    optimizer.step()
    scale = ((left - 0.6) / left).clamp(min=0)
    torch.testing.assert_close(stem.detach(), before * scale.reshape(-1, 1, 1, 1), rtol=1e-4, atol=1e-6)


def test_bad_input_gets_one_clear_message():
    model, groups = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="strength=.*a number of at least 0"):
            bn_gamma(strength)
    with pytest.raises(InputError, match="is in the optimizer. Trace the very model"):
        attach(bn_gamma(), chain()[1], optimizer)
    plain = nn.Linear(2, 2)
    with pytest.raises(InputError, match="no group of the network has a slice of role norm_scale"):
        attach(bn_gamma(), groups_of(plain, {"fc": (2, [("weight", 0, "out")])}), optimizer)
    with pytest.raises(InputError, match="neither a gradient nor a proximal map"):
        attach(Regularizer(frozenset({"out"})), groups, optimizer)
    with pytest.raises(UnknownNameError, match="Did you mean 'bn-gamma'"):
        regularizers["bn-gama"]
