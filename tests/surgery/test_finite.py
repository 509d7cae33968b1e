"""Removed units are silent also where their numbers would be none, and no more is looked at than may hold such."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.surgery import kept
from prunus.surgery.finite import keeps_finite
from prunus.surgery.reference import silenced
from tests.keeping import random_keep

NONE, INF = float("nan"), float("inf")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, and between them something that may give numbers that are none."""

    def __init__(self, between, norm=lambda c: nn.BatchNorm2d(c)):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b, self.between = nn.Conv2d(3, 8, 3), norm(8), nn.Conv2d(8, 4, 3), between

    def forward(self, x):
        return self.b(self.between(self.norm(self.a(x))))


def through_a_view(x):
    """An infinity that is written through a view, behind the back of the tensor that is read."""
    mask = torch.zeros(x.shape[-1])
    mask[:1].fill_(-INF)
    return F.relu(x * mask)


def through_a_view_and_back(x):
    """The same, where what stays is finite again, and zeros times infinities are not."""
    mask = torch.zeros(x.shape[-1])
    mask[:1].fill_(INF)
    return (x * mask).clamp(-1, 1)


def divided(x):
    return (x / x.abs().amax((2, 3), keepdim=True) + x).sigmoid()


NETS = {
    "a norm without eps": lambda: Net(F.relu, lambda c: nn.BatchNorm2d(c, eps=0)),
    "zeros divided by zeros": lambda: Net(divided),
    "an infinite number": lambda: Net(lambda x: F.relu((x * 0 + 1) * -INF) + x),
    "through a view": lambda: Net(through_a_view),
    "through a view and back": lambda: Net(through_a_view_and_back),
    "a constant": lambda: Net(lambda x: (x * torch.tensor([INF])).clamp(-1, 1)),
    "an infinity that is masked": lambda: Net(lambda x: (x + torch.tensor([-INF] + [0.0] * (x.shape[-1] - 1))).exp()),
}


@pytest.mark.parametrize("kind", NETS)
def test_the_right_cut_passes(kind):
    model = NETS[kind]().eval()
    groups = prunus.trace(model, X)
    report = prunus.shrink_(model, groups, groups.plan(random_keep(groups, 1)))
    assert report.verified.max_relative_error < 1e-9 and model.a.out_channels < 8


def test_what_is_finite_by_its_operator_is_not_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr(kept, "all_finite", lambda t: seen.append(tuple(t.shape)) or True)
    model = Net(lambda x: F.silu(x) * x.mean((2, 3), keepdim=True).sigmoid()).eval()
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, groups.plan(random_keep(groups, 1)))
    assert seen == [(2, 3, 8, 8)] * 2  # the example, and noise
    seen.clear()
    model = Net(lambda x: x.exp()).eval()
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, groups.plan(random_keep(groups, 1)))
    assert (2, 8, 6, 6) in seen


def test_operators_that_divide_or_are_told_infinities_keep_nothing_finite():
    x, v = torch.ones(2, 3), torch.ones(3)
    norm = (x, v, v, v, v, False, 0.1, 1e-5)
    assert keeps_finite("add", (x, x), {"alpha": 2.0}) and keeps_finite("native_batch_norm", norm, {})
    assert keeps_finite("native_layer_norm", (x, [3], v, v, 1e-5), {}) and keeps_finite("cat", ([x, x],), {})
    assert not keeps_finite("add", (x, x), {"alpha": INF}) and not keeps_finite("mul", (x, NONE), {})
    assert not keeps_finite("native_layer_norm", (x, [3], v, v, 0.0), {})
    assert not keeps_finite("native_batch_norm", (*norm[:4], -v, *norm[5:]), {})
    assert not keeps_finite("native_batch_norm", (*norm[:5], True, *norm[6:]), {})
    assert not keeps_finite("cat", ([x, x[:0]],), {}) and not keeps_finite("mean", (x[:0],), {})
    assert not any(keeps_finite(name, (x, x), {}) for name in ("div", "log", "pow", "rsqrt", "exp", "empty"))


def test_weights_that_are_no_numbers_are_silenced_too():
    """A product with zero would leave NaN where it is."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    groups = prunus.trace(model, X)
    keep = torch.arange(6) < 3
    with torch.no_grad():
        model[0].weight[4], model[2].weight[:, 5], model[2].weight[1, 0, 0, 0] = NONE, INF, NONE
    finite: set = set()
    found = silenced(dict(model.named_parameters()), groups, keep, torch.float64, finite)
    for name, dim in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        whole = model.get_parameter(name).detach().double()
        assert found[name].dtype is torch.float64
        assert torch.equal(found[name].narrow(dim, 3, 3), torch.zeros_like(whole.narrow(dim, 3, 3)))
        assert torch.equal(found[name].narrow(dim, 0, 3).nan_to_num(7), whole.narrow(dim, 0, 3).nan_to_num(7))
    assert {n for n, t in found.items() if t.data_ptr() in finite} == {"0.weight", "0.bias", "2.bias"}
