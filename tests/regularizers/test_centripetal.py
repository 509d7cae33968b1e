"""C-SGD: the update of a cluster, in closed form, and a network that loses units without a change."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.core import InputError
from prunus.regularizers import attach
from prunus.regularizers.centripetal import centripetal
from tests.hand_built import residual


def paired(width=8):
    """A network whose units 2i and 2i + 1 are nearly the same, so that the clusters are known."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3)).double()
    with torch.no_grad():
        for weight in (net[0].weight, net[0].bias):
            weight[1::2] = weight[::2] + 0.01 * torch.randn_like(weight[::2])
    return net


def test_a_step_is_the_mean_gradient_and_the_pull_to_the_mean():
    net, x = paired(), torch.randn(16, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.01)
    attach(centripetal(0.5, strength=0.2), prunus.trace(net, x[:2]), optimizer)
    net(x).logsumexp(1).mean().backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.01)  # comes first, as everywhere
    expected = {}
    for name, eps in (("0.weight", 0.2), ("0.bias", 0.02)):
        w, g = net.get_parameter(name).detach().clone(), net.get_parameter(name).grad.clone()
        pairs = [(t[::2] + t[1::2]).repeat_interleave(2, 0) / 2 for t in (w, g)]
        expected[name] = w - 0.5 * (pairs[1] + 0.01 * w + eps * (w - pairs[0]))
    head = (net[2].weight - 0.5 * (net[2].weight.grad + 0.01 * net[2].weight)).detach()
    optimizer.step()
    for name, value in expected.items():
        torch.testing.assert_close(net.get_parameter(name).detach(), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net[2].weight.detach(), head)


def test_a_loss_scale_does_not_scale_the_pull():
    net, x = paired(), torch.randn(16, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, fused=True)
    attach(centripetal(0.5, strength=0.2), prunus.trace(net, x[:2]), optimizer)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.grad_scale = torch.tensor(4.0)  # as GradScaler does: fused optimizers divide by it
    optimizer.found_inf = torch.tensor(0.0)
    before = net[0].weight.detach().clone()
    optimizer.step()
    mean = (before[::2] + before[1::2]).repeat_interleave(2, 0) / 2
    torch.testing.assert_close(net[0].weight.detach(), before - 0.2 * (before - mean))


def test_a_residual_network_is_halved_without_a_change():
    """Coupled groups and batch norms: after training, merging removes half of the units and loses nothing."""
    torch.manual_seed(0)
    net, x, y = residual(8, 8)[0], torch.randn(32, 3, 6, 6), torch.randint(5, (32,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    handle = attach(centripetal(0.5, strength=1.0), prunus.trace(net, x[:2]), optimizer)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    handle.remove()
    net, x = net.double().eval(), x.double()
    before = net(x).detach()
    plain = copy.deepcopy(net)
    budget = prunus.Budget(params=0.35)
    report = prunus.prune_(net, x[:2], budget=budget, criterion="agglomerative", merge=True)
    assert report.after["params"] <= 0.35 * report.before["params"]
    torch.testing.assert_close(net(x).detach(), before, rtol=1e-4, atol=1e-4)
    prunus.prune_(plain, x[:2], budget=budget, criterion="agglomerative")
    assert (plain(x) - before).abs().max() > 0.1, "without the sums, the cut shows"


@pytest.mark.parametrize("bad", [{"keep": 0.0}, {"keep": 1.0}, {"strength": float("nan")}, {"strength": -1.0}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(InputError, match=rf"centripetal\({next(iter(bad))}"):
        centripetal(**bad)
