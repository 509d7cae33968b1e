"""FLAP: fluctuation of what layers read, and the bias that makes up for what does not fluctuate."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.core import Budget, Group, InputError, Slice
from prunus.criteria import score
from prunus.criteria.flap import channels, flap, fluctuation, standard
from prunus.observe import collect
from prunus.observe.moments import Consumer
from prunus.recovery import compensate_, lost
from prunus.surgery import give_biases_
from tests.criteria.test_closed_forms import attention
from tests.traced import batches, residual


def of(*layers: Consumer, units: int) -> Group:
    index = torch.arange(units)[:, None]
    group = Group("a", units, (Slice("a.weight", 0, index, "out", torch.zeros(units, 1)),))
    return replace(group, stats={"moments": layers})


def consumer(variances, weight, columns, kernel=1) -> Consumer:
    h = torch.diag(torch.tensor(variances, dtype=torch.float64))
    return Consumer(torch.tensor(weight, dtype=torch.float64), h, torch.tensor(columns), kernel=kernel)


def test_the_variance_times_the_squared_norm_of_the_column():
    layer = consumer([1, 4, 0, 2], [[2, 1, 9, 0], [0, 1, 9, 1]], [[0], [1], [2], [3]])
    assert fluctuation(layer).tolist() == [4, 8, 0, 2]
    # mean 3.5, variance (0.25 + 20.25 + 12.25 + 2.25) / 4 = 8.75
    assert flap(of(layer, units=4)).tolist() == pytest.approx([v / 8.75**0.5 for v in (0.5, 4.5, -3.5, -1.5)])


def test_heads_are_means_over_their_dimensions_and_layers_are_means_over_readers():
    heads = consumer([1, 3, 5, 7], [[1, 1, 1, 1]], [[0, 1], [2, 3]])  # scores: -3 -1 1 3 over sqrt 5
    assert flap(of(heads, units=2)).tolist() == pytest.approx([-2 / 5**0.5, 2 / 5**0.5])
    other = consumer([3, 1], [[1, 1]], [[0], [1]])
    assert flap(of(heads, other, units=2)).tolist() == pytest.approx([0.5 - 1 / 5**0.5, 1 / 5**0.5 - 0.5])
    alike = consumer([2, 2], [[1, 1]], [[0], [1]])
    assert flap(of(alike, units=2)).tolist() == [0, 0]


def test_the_kernel_of_a_convolution_is_one_channel():
    layer = consumer([1, 2, 3, 4], [[1, 1, 1, 1]], [[2, 3], [0, 1]], kernel=2)
    assert fluctuation(layer).tolist() == [3, 7] and channels(layer).tolist() == [[1], [0]]
    assert flap(of(layer, units=2)).tolist() == [1, -1]


def test_a_coupled_group_against_the_inputs_that_its_layers_really_get(monkeypatch):
    monkeypatch.setattr(prunus.observe.moments, "PER_UNKNOWN", 10**6)  # every row
    model, groups = residual()
    data = [x for x, _ in batches(2, 6)]
    found = score(groups, "flap", collect(model, groups, data, {"moments"}))
    seen: dict[str, list[torch.Tensor]] = {"a": [], "fc": []}
    for name in seen:
        hook = lambda m, args, name=name: seen[name].append(args[0].detach())  # noqa: E731
        getattr(model, name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for x in data:
            model.eval()(x)
    expected = []
    for name, xs in seen.items():
        weight, x = getattr(model, name).weight.detach().double(), torch.cat(xs).double()
        if name == "a":
            size = getattr(model, name).kernel_size
            x = nn.functional.unfold(x, size, padding=getattr(model, name).padding).movedim(1, 2).flatten(0, 1)
        columns = x.var(0, unbiased=False) * weight.flatten(1).square().sum(0)
        expected.append(standard(columns.reshape(weight.shape[1], -1).sum(1)))
    torch.testing.assert_close(found["stem"], torch.stack(expected).mean(0), rtol=1e-6, atol=1e-8)


def test_queries_and_keys_are_left_alone_and_values_are_scored():
    net = attention()
    x = torch.randn(6, 4, 8)
    groups = prunus.trace(net, x)
    assert set(score(groups, "flap", collect(net, groups, [x], {"moments"}))) == {"v", "out"}


def repaired(net, x, gone):
    """Cut the first group's units `gone`, and let biases make up for them."""
    groups = prunus.trace(net, x[:4])
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[gone] = False
    plan = groups.plan(keep)
    if give_biases_(net, groups, plan):
        groups = prunus.trace(net, x[:4])
    means = lost(net, groups, [x], plan)
    cut = prunus.shrink_(net, groups, plan).model
    done = compensate_(cut, prunus.trace(cut, x[:4], in_place=False), means)
    return cut, done


def test_a_constant_channel_goes_into_the_bias():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))
        net[0].bias.copy_(torch.tensor([2.0, 0.0]))
        net[1].weight.copy_(torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1))
        net[1].bias.fill_(1.0)
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    wanted = net(x)
    cut, done = repaired(net, x, [0])
    assert cut[1].bias.item() == pytest.approx(1 + 6) and done.layers == 1
    torch.testing.assert_close(cut(x), wanted)


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_takes_up_the_mean_of_what_was_removed(bias):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3, bias=bias)).double()
    x = torch.randn(50, 5, dtype=torch.float64)
    before, inner, wanted = copy.deepcopy(net), net[:2](x).detach(), net(x).mean(0)
    cut, _ = repaired(net, x, [1, 4])
    old = before[2].bias if bias else torch.zeros(3).double()
    torch.testing.assert_close(cut[2].bias, old + before[2].weight[:, [1, 4]] @ inner[:, [1, 4]].mean(0))
    assert torch.equal(cut[2].weight, before[2].weight[:, [0, 2, 3, 5]])
    torch.testing.assert_close(cut(x).mean(0), wanted)


def test_the_running_mean_takes_it_up_where_a_batch_norm_follows():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3)).double().eval()
    net[2].running_mean.normal_()
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    before, wanted = copy.deepcopy(net), net(x).mean((0, 2, 3))
    gone = before[1].weight[:, 2, 0, 0] * before[0](x)[:, 2].mean()
    cut, _ = repaired(net, x, [2])
    assert cut[1].bias is None
    torch.testing.assert_close(cut[2].running_mean, before[2].running_mean - gone)
    torch.testing.assert_close(cut(x).mean((0, 2, 3)), wanted)


def test_prune_with_flap_and_bias_and_back_from_a_file(tmp_path):
    torch.manual_seed(0)

    def build():
        return nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))

    net, x = build(), torch.randn(64, 6)
    before = copy.deepcopy(net)
    report = prunus.prune_(net, x[:2], budget=Budget(macs=0.5), criterion="flap", data=[x], repair="bias")
    assert report.model[2].bias is not None and report.verified.max_relative_error < 1e-7
    assert any("a bias for what they lost" in note for note in report.notes)
    torch.testing.assert_close(report.model(x).mean(0), before(x).mean(0), rtol=1e-4, atol=1e-5)
    prunus.save(report.model, tmp_path / "m.safetensors")
    assert torch.equal(prunus.load(tmp_path / "m.safetensors", build)(x), report.model(x))
    with pytest.raises(
        InputError, match="repair='weights': expected True, False, or one of least-squares, blocks, bias"
    ):
        prunus.prune_(build(), x[:2], budget=Budget(macs=0.5), data=[x], repair="weights")


def test_the_command_takes_a_way_of_repair_or_none(monkeypatch):
    import prunus.recipes
    from prunus.cli import main

    found = []

    def check(raw, *rest):
        found.append((raw["stages"][0]["repair"], len(raw["stages"])))
        raise InputError("far enough")

    monkeypatch.setattr(prunus.recipes, "check", check)
    start = ["prune", "prunus:digits_net", "--budget", "macs=0.5", "--dry-run", "--data", "digits"]
    for words in ([], ["--repair"], ["--repair", "bias"], ["--no-repair"], ["--repair", "--seed", "1"]):
        with pytest.raises(SystemExit):
            main([*start, *words])
    assert found == [(False, 2), ("least-squares", 1), ("bias", 1), (False, 1), ("least-squares", 1)]
