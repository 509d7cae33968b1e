"""Learned thresholds: the gradients of their equations, by hand."""

import pytest
import torch
from torch import nn

import prunus
from prunus.masks import MaskPruner
from prunus.masks.during.dst import Step, trained_thresholds
from prunus.masks.rules import Covered


def started(name, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False)).double()
    dense = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = MaskPruner(model, prunus.tensors(model), name, density=0.9, steps=9, **options)
    pruner.attach(optimizer)
    x, target = torch.randn(5, 6).double(), torch.randn(5, 4).double()
    shown = model[0].weight.detach().clone()
    ((model(x) - target) ** 2).sum().backward()
    slope = model[0].weight.grad.clone()  # dL / d shown
    optimizer.step()
    return dense, shown, slope, pruner


def test_soft_threshold_and_its_gradient():
    """dL/ds = -g'(s) sum_{|w| > g} sign(w) dL/dw~, and dL/dw = dL/dw~ where |w| > g."""
    dense, shown, slope, pruner = started("str", initial=-2.0, decay=0.01)
    s = torch.tensor(-2.0).double()
    g = s.sigmoid()
    assert torch.equal(shown, dense.sign() * (dense.abs() - g).relu())
    there = dense.abs() > g
    assert there.any() and not there.all()
    expected = -(g * (1 - g)) * (dense.sign() * slope)[there].sum()
    assert torch.allclose(pruner.covered.thresholds["0.weight"], s - 0.1 * (expected + 0.01 * s), atol=1e-14)
    assert torch.allclose(pruner.covered.dense["0.weight"], dense - 0.1 * slope * there, atol=1e-14)


def test_trained_thresholds_and_their_gradient():
    """dL/dt_r = -sum_r w S'(|w| - t) dL/dw~ - alpha exp(-t), with t = 0 at first: S' = 2 - 4|w|, |w| < 0.4 ..."""
    dense, shown, slope, pruner = started("dst", strength=0.5)
    size = dense.abs()
    assert torch.equal(shown, dense)
    bump = torch.where(size <= 0.4, 2 - 4 * size, torch.full_like(size, 0.4))
    expected = -(dense * bump * slope).sum(1) - 0.5
    assert torch.allclose(pruner.covered.thresholds["0.weight"], -0.1 * expected, atol=1e-14)
    assert torch.allclose(pruner.covered.dense["0.weight"], dense - 0.1 * (slope + dense * bump * slope * dense.sign()))


def test_the_slope_of_a_step():
    x = torch.tensor([-2.0, -0.7, 0.0, 0.1, 0.4, 1.5], requires_grad=True)
    y = Step.apply(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert x.grad.tolist() == pytest.approx([0, 0.4, 2, 1.6, 0.4, 0])


@pytest.mark.parametrize(("left", "again"), [(1, True), (2, False)])
def test_a_tensor_down_to_a_hundredth_of_its_weights_starts_again(left, again):
    weights = torch.arange(1.0, 101.0, dtype=torch.float64).view(1, 100)
    covered = Covered({"w": nn.Parameter(weights.clone())}, {"w": torch.ones(1, 100, dtype=torch.bool)})
    with torch.no_grad():
        trained_thresholds(0.5, 9).rule.begin_(covered)
        covered.thresholds["w"].fill_(100.5 - left)
        trained_thresholds(0.5, 9).rule.conceal_(covered, ())
    assert covered.thresholds["w"].tolist() == [0.0 if again else 100.5 - left]
    assert int(covered.parameters["w"].count_nonzero()) == (100 if again else left)


def test_a_tensor_that_is_nearly_gone_starts_again():
    dense, _, _, pruner = started("dst", strength=0.0)
    rule, covered = pruner.method.rule, pruner.covered
    with torch.no_grad():
        covered.thresholds["0.weight"].fill_(9.0)
        rule.reveal_(covered)
        rule.conceal_(covered, ())
    assert (covered.thresholds["0.weight"] == 0).all() and covered.parameters["0.weight"].ne(0).all()
