"""Wanda on channels: the columns that read a unit, times the norm of what flows into them."""

import pytest
import torch
from torch import nn

import prunus
from prunus.core import Budget
from prunus.criteria import score
from prunus.observe import collect
from tests.traced import batches, residual


def wanda(model, groups, data):
    return score(groups, "wanda", collect(model, groups, data, {"input-norms"}), normalize="none")


def test_the_column_that_reads_a_unit_and_not_the_row_that_makes_it():
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[100.0], [1.0]]))
        net[2].weight.copy_(torch.tensor([[0.01, -2.0], [0.02, 1.0]]))
    groups, data = prunus.trace(net, torch.ones(1, 1)), [torch.tensor([[3.0]]), torch.tensor([[4.0]])]
    # inputs 300, 400 and 3, 4: norms 500 and 5; columns 0.03 and 3
    assert wanda(net, groups, data)["0"].tolist() == pytest.approx([15, 15])
    net[2].weight.data[0, 1] = -2.5
    assert wanda(net, groups, data)["0"].tolist() == pytest.approx([15, 17.5])
    report = prunus.prune_(net, torch.ones(1, 1), budget=Budget(macs=0.5), criterion="wanda", data=data)
    assert report.plan.groups["0"].kept == (1,)


def test_a_coupled_group_is_the_sum_over_all_layers_that_read_it():
    model, groups = residual()
    data = [x for x, _ in batches(2, 6)]
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
        columns = x.norm(dim=0) * weight.flatten(1).abs().sum(0)
        expected.append(columns.reshape(weight.shape[1], -1).sum(1))
    torch.testing.assert_close(wanda(model, groups, data)["stem"], sum(expected), rtol=1e-6, atol=1e-8)


def test_a_unit_that_nothing_flows_into_goes_first():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias.fill_(2)
        net[0].bias[5] = -100  # never on, whatever reads it
        net[2].weight[:, 5] = 100
    groups = prunus.trace(net, torch.ones(1, 4))
    assert int(wanda(net, groups, [torch.randn(20, 4)])["0"].argmin()) == 5
