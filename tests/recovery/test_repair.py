"""Least-squares repair: exact where it can be, and better than the cut everywhere."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import prunus
from prunus.core import Budget, InputError
from prunus.recovery import repair_, targets
from prunus.recovery.behind import residual
from prunus.recovery.calibration import bytes_of_a_sample, gather
from prunus.recovery.moments import least_squares


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 12, 3, padding=1, stride=2, bias=False)
        self.bn_a = nn.BatchNorm2d(12)
        self.dw = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.b = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.bn_b = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (nn.functional.avg_pool2d(x, 2) + self.bn_b(self.b(self.dw(self.bn_a(self.a(x)).relu()).relu()))).relu()
        return self.fc(x.mean((2, 3)))


def block() -> nn.Module:
    torch.manual_seed(0)
    net = Block().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)
    return net


def cut(net, x, keep, **options):
    groups = prunus.trace(net, x[:1])
    plan = groups.plan(keep(groups))
    wanted = targets(net, groups, [x], **options)
    report = prunus.shrink_(net, groups, plan)
    done = repair_(report.model, prunus.trace(report.model, x[:1], in_place=False), plan, wanted)
    return report.model, done


def without(id, units):
    def keep(groups):
        mask = torch.ones(groups.units, dtype=torch.bool)
        mask[groups[id].offset + torch.tensor(units)] = False
        return mask

    return keep


def test_least_squares_against_lstsq_and_a_unit_that_another_explains():
    torch.manual_seed(0)
    x = torch.randn(1, 40, 3, dtype=torch.float64)
    w1, w2 = torch.randn(4, 2).double()[:, :1], torch.randn(4, 1).double()
    x = torch.cat([x[..., :1], x[..., 1:2]], -1)
    y = x[0, :, :1] @ w1.T + (2 * x[0, :, :1]) @ w2.T  # the second input is twice the first, and gone
    found, bias = least_squares(x[..., :1], y, w1[None], ridge=0)
    torch.testing.assert_close(found[0], w1 + 2 * w2)
    torch.testing.assert_close(bias, torch.zeros(4).double(), atol=1e-12, rtol=0)
    t = torch.randn(40, 6, dtype=torch.float64)
    x = torch.randn(2, 40, 5, dtype=torch.float64)
    found, bias = least_squares(x, t, torch.zeros(2, 3, 5).double(), ridge=0)
    for g in range(2):
        ones = torch.cat([x[g], torch.ones(40, 1).double()], 1)
        expected = torch.linalg.lstsq(ones, t[:, 3 * g : 3 * g + 3]).solution
        torch.testing.assert_close(found[g], expected[:5].T)
        torch.testing.assert_close(bias[3 * g : 3 * g + 3], expected[5])


def test_channels_that_others_span_are_removed_without_a_loss():
    net = block()
    with torch.no_grad():  # channels 3 and 7 of the inner convolution are 0 and 1 again, after a norm alike
        for gone, twin in ((3, 0), (7, 1)):
            for t in (net.a.weight, net.bn_a.weight, net.bn_a.bias, net.bn_a.running_mean, net.bn_a.running_var):
                t[gone] = t[twin]
            net.dw.weight[gone], net.dw.bias[gone] = net.dw.weight[twin], net.dw.bias[twin]
    x = torch.randn(40, 3, 12, 12)
    before = net(x)
    plain = copy.deepcopy(net)
    groups = prunus.trace(plain, x[:1])
    bare = prunus.shrink_(plain, groups, groups.plan(without("a", [3, 7])(groups))).model
    net, done = cut(net, x, without("a", [3, 7]))
    assert done.layers == 5 and done.samples == 40
    assert (net(x) - before).norm() < 0.02 * (bare(x) - before).norm()  # what is left is the ridge


def test_a_whole_network_changes_nothing():
    net = block()
    x = torch.randn(60, 3, 12, 12)
    before = net(x)
    net, _ = cut(net, x, lambda groups: torch.ones(groups.units, dtype=torch.bool))
    torch.testing.assert_close(net(x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("id", "units"), [("a", [0, 2, 4, 5, 9]), ("stem", [1, 6])])
def test_it_is_nearer_than_the_cut_on_data_not_seen(id, units):
    net, plain = block(), block()
    x, fresh = torch.randn(80, 3, 12, 12), torch.randn(50, 3, 12, 12)
    before = net(fresh)
    groups = prunus.trace(plain, x[:1])
    bare = prunus.shrink_(plain, groups, groups.plan(without(id, units)(groups))).model
    net, _ = cut(net, x, without(id, units))
    assert (net(fresh) - before).norm() < 0.6 * (bare(fresh) - before).norm()


def test_the_last_part_of_a_residual_sum_rebuilds_the_sum():
    net, x = block(), torch.randn(2, 3, 12, 12)
    groups = prunus.trace(net, x)
    found = {op.parameters[0]: residual(groups.operators, i) for i, op in enumerate(groups.operators) if op.macs}
    assert found["b.weight"] is not None and found["b.weight"].norm is not None
    assert [name for name, joined in found.items() if joined] == ["b.weight"]


def test_transformers_and_linear_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 6), nn.Linear(6, 4))
    x, fresh = torch.randn(60, 7, 6), torch.randn(60, 7, 6)
    before, plain = net(fresh), copy.deepcopy(net)
    report = prunus.prune_(net, x[:1], budget=Budget(macs=0.6), data=[x], repair=True)
    bare = prunus.prune_(plain, x[:1], budget=Budget(macs=0.6)).model
    assert any("least squares on 60 samples" in note for note in report.notes)
    assert (report.model(fresh) - before).norm() < 0.6 * (bare(fresh) - before).norm()
    assert report.after == {"params": sum(p.numel() for p in report.model.parameters()), "macs": report.after["macs"]}


def test_few_samples_little_memory_and_bad_data_are_said():
    net, x = block(), torch.randn(20, 3, 12, 12)
    _, done = cut(block(), x[:1], without("a", [0]))
    assert any("fewer than 5 rows for every unknown" in note for note in done.notes)
    size = bytes_of_a_sample(prunus.trace(net, x[:1]))
    assert size >= 4 * (8 + 12) * 36
    _, done = cut(block(), x, without("a", [0]), memory=7 * size)
    assert done.samples == 7 and "7 of 20 samples" in done.notes[0]
    with pytest.raises(InputError, match="batch 1 of the data holds NaN"):
        gather([x, x * float("nan")])
    with pytest.raises(InputError, match="no calibration batch"):
        gather([])
    with pytest.raises(InputError, match="repair=True rebuilds layers from data"):
        prunus.prune_(net, x[:1], budget=Budget(macs=0.5), repair=True)
    assert gather([x, x], 25).batch == 25


def test_layers_that_are_too_wide_for_a_system_stay_and_are_said(monkeypatch):
    monkeypatch.setattr("prunus.recovery.repair.LARGEST", 20)
    net, x = block(), torch.randn(40, 3, 12, 12)
    _, done = cut(net, x, without("a", [0, 1]))
    assert any("'stem.weight') have over 20 inputs, and stay" in note for note in done.notes) and done.layers == 2


def weight_normed(net):
    parametrizations.weight_norm(net.b)


def masked(net):
    prune.random_unstructured(net.b, "weight", 0.2)


def masked_bias(net):
    prune.random_unstructured(net.dw, "bias", 0.2)


@pytest.mark.parametrize(("change", "left"), [(weight_normed, "b"), (masked, "b"), (masked_bias, "dw")])
def test_layers_with_computed_weights_stay_and_are_named(change, left):
    def changed():
        net = block()
        change(net)
        return net

    whole, plain, x = changed(), changed(), torch.randn(64, 3, 8, 8)
    model, done = cut(changed(), x, without("a", [1, 5, 7]))
    stays = dict(model.get_submodule(left).named_parameters())
    groups = prunus.trace(plain, x[:1])
    prunus.shrink_(plain, groups, groups.plan(without("a", [1, 5, 7])(groups)))
    assert stays and all(torch.equal(p, plain.get_submodule(left).get_parameter(n)) for n, p in stays.items())
    assert any(f"1 layers (first: '{left}') read weights or biases that forward computes" in n for n in done.notes)
    assert done.layers == 4
    aim = whole(x)
    assert (model(x) - aim).square().mean() < (plain(x) - aim).square().mean()
