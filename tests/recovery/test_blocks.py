"""Block reconstruction: finds the blocks, gets better on unseen samples or changes nothing, touches nothing else."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.core import Inputs
from prunus.recovery.blocks import block_targets, cut_blocks, rebuild_
from prunus.zoo import resnet20


def plan_without(groups, *wanted, units=2):
    """A plan that takes the first units of the groups named."""
    keep = torch.ones(groups.units, dtype=torch.bool)
    for id in wanted:
        keep[groups[id].offset : groups[id].offset + units] = False
    return groups.plan(keep)


class Residual(nn.Module):
    """The inner units are relu(x_0) and 10 relu(x_1): a bad cut leaves the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.3, 0.3]]))
            self.a.bias.zero_()
            self.b.weight.copy_(torch.tensor([[10.0, 1.0, 0.0], [-10.0, 0.0, 0.0]]))

    def forward(self, x):
        return x + self.b(self.a(x).relu())


def cut(net, x, *ids, units=1, **options):
    groups = prunus.trace(net, x[:1])
    plan = plan_without(groups, *ids, units=units)
    wanted = block_targets(net, groups, plan, Inputs.of(x), **options)
    return prunus.shrink_(net, groups, plan).model, wanted


def outer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2)), Residual(), nn.Linear(2, 3)).eval()


def test_units_that_stay_learn_what_no_least_squares_can_give_them():
    net, x, fresh = outer(), torch.randn(400, 2), torch.randn(200, 2)
    whole = copy.deepcopy(net)
    net, wanted = cut(net, x, "1.a")
    assert [block.modules for block in wanted.outputs] == [("1",)]
    bare = copy.deepcopy(net)
    done = rebuild_(net, wanted, steps=1000, rate=0.1)
    assert done.better == 1 and done.samples == 400
    ((before, after),) = done.errors.values()
    assert after < 0.05 * before
    hidden = whole[0](fresh).detach()

    def lost(network):
        return (network[1](hidden) - whole[1](hidden)).square().sum().item()

    assert lost(net) < 0.05 * lost(bare)
    inner = torch.cat([bare[1].a(hidden).relu(), torch.ones(200, 1)], 1).detach()  # the best of least squares
    target = (whole[1](hidden) - hidden).detach()
    assert lost(net) < 0.2 * float((inner @ torch.linalg.lstsq(inner, target).solution - target).square().sum())


def test_no_better_on_unseen_samples_means_unchanged():
    net, x = outer(), torch.randn(100, 2)
    net, wanted = cut(net, x, "1.a")
    before = copy.deepcopy(net.state_dict())
    done = rebuild_(net, wanted, steps=5, rate=1e6)
    assert done.better == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_nothing_else_is_touched():
    x = torch.randn(24, 3, 8, 8)
    inner = [nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)]
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), *inner).train()
    body[3].weight.requires_grad_(False)
    body, wanted = cut(body, x, "3", units=2)
    body[3].weight.grad = torch.ones_like(body[3].weight)
    others = {n: v.clone() for n, v in body.state_dict().items() if not n.startswith(("3.", "5."))}
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    done = rebuild_(body, wanted, steps=30)
    assert done.better == 1
    assert torch.equal(state, torch.random.get_rng_state()) and all(m.training for m in body.modules())
    assert all(torch.equal(body.state_dict()[n], v) for n, v in others.items())
    assert not body[3].weight.requires_grad and body[5].weight.requires_grad
    assert torch.equal(body[3].weight.grad, torch.ones_like(body[3].weight)) and body[5].weight.grad is None


def test_a_weight_that_others_share_stays():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    net[5].weight = net[4].weight
    x = torch.randn(64, 4)
    net, wanted = cut(net, x, "0", units=3)
    shared = net[4].weight.clone()
    assert rebuild_(net, wanted, steps=20).better == 1
    assert torch.equal(net[4].weight, shared) and net[4].weight is net[5].weight


def test_blocks_of_common_networks():
    net, x = resnet20().eval(), torch.randn(2, 3, 16, 16)
    groups = prunus.trace(net, x)
    inner = [group.id for group in groups if "conv1" in group.id and group.id != "conv1"]
    found = cut_blocks(net, groups, plan_without(groups, *inner))
    assert [b.modules for b in found] == [(f"layer{i}.{j}",) for i in (1, 2, 3) for j in range(3)]
    assert 0.9 < sum(b.macs for b in found) < 1
    every = cut_blocks(net, groups, plan_without(groups, *(group.id for group in groups)))
    assert [b.modules for b in every] == [b.modules for b in found]  # streams run through the whole network
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    deep = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    groups = prunus.trace(deep, torch.randn(2, 5, 16))
    found = cut_blocks(deep, groups, plan_without(groups, *(g.id for g in groups if "linear1" in g.id)))
    assert [b.modules for b in found] == [(f"layers.{i}",) for i in range(3)]


def test_a_cut_output_is_compared_on_what_stays_and_little_memory_is_said():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3)).eval()
    x = torch.randn(40, 3, 9, 9)
    net, wanted = cut(net, x, "0", "2", units=2)
    assert [(b.modules, tuple(t.shape)) for b, t in wanted.outputs.items()] == [
        (("0", "1", "2"), (40, 3, 5, 5)),
        (("2", "3", "4"), (40, 2, 3, 3)),
    ]
    assert rebuild_(net, wanted, steps=60).better == 2
    again = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)).eval()
    _, few = cut(again, x, "0", memory=100_000)
    assert few.inputs.batch < 40 and "of 40 samples" in few.notes[0]


@pytest.mark.parametrize("steps", [1, 40])
def test_equal_seeds_give_equal_networks(steps):
    nets = []
    for _ in range(2):
        torch.manual_seed(1)
        x = torch.randn(64, 2)
        net, wanted = cut(outer(), x, "1.a")
        rebuild_(net, wanted, steps=steps, seed=3)
        nets.append(net)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))


def test_prune_does_it_after_least_squares_and_says_so():
    net, plain, x, fresh = outer(), outer(), torch.randn(256, 2), torch.randn(200, 2)
    with torch.no_grad():
        before = net(fresh)
        report = prunus.prune_(net, x[:1], budget=prunus.Budget(macs=0.7), only=["1"], data=[x], repair="blocks")
        layers = prunus.prune_(plain, x[:1], budget=prunus.Budget(macs=0.7), only=["1"], data=[x], repair=True)
        assert (report.model(fresh) - before).norm() <= (layers.model(fresh) - before).norm()
    assert "1 of 1 blocks were rebuilt on 256 samples" in report.notes
    with pytest.raises(prunus.InputError, match="repair='magic': expected True, False, or one of"):
        prunus.prune_(outer(), x[:1], budget=prunus.Budget(macs=0.7), data=[x], repair="magic")
