"""The network inside what wraps it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.core.wrappers import unwrapped
from tests.hand_built import chain

X = torch.zeros(1, 3, 6, 6)


def test_only_known_wrappers_are_taken_off():
    net = chain()[0]
    assert unwrapped(nn.DataParallel(torch.compile(nn.DataParallel(net), backend="eager"))) is net

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = net

    own = Own()
    assert unwrapped(own) is own


def test_a_compiled_network_is_cut_inside_and_compiles_itself_again():
    net = chain(8, 8)[0].train()
    compiled = torch.compile(net, backend="aot_eager")
    x = torch.randn(2, 3, 6, 6)
    compiled(x).sum().backward()
    report = prunus.prune_(compiled, X, budget=prunus.Budget(macs=0.5))
    assert report.model is net and "conv1.weight" in report.plan.tensors
    net.eval()
    torch.testing.assert_close(compiled(x), net(x))
    compiled(x).sum().backward()
    assert net.conv1.weight.grad.shape == net.conv1.weight.shape
    torch._dynamo.reset()


@pytest.fixture
def sharded():
    """A network whose parameters are sharded over a group of one process."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield lambda net: fully_shard(net, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    finally:
        torch.distributed.destroy_process_group()


def test_sharded_parameters_are_refused_and_a_cut_network_can_be_sharded(sharded):
    net, x = chain(8, 8)[0], torch.randn(2, 3, 6, 6)
    groups = prunus.trace(net, X)
    pruner = prunus.Pruner(net, X, budget=prunus.Budget(macs=0.5))
    cut = prunus.prune_(chain(8, 8)[0], X, budget=prunus.Budget(macs=0.5)).model
    net = sharded(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for attempt in (
        lambda: prunus.prune_(net, X, budget=prunus.Budget(macs=0.5)),
        lambda: prunus.Pruner(net, X, budget=prunus.Budget(macs=0.5)),
        lambda: prunus.shrink_(net, groups, prunus.Plan()),
        lambda: pruner.attach(optimizer),
        lambda: prunus.follow_(net, prunus.Plan()),
    ):
        with pytest.raises(prunus.InputError, match=r"first: 'conv1.weight'.*Prune first and shard the smaller"):
            attempt()
    expected = cut(x)
    cut = sharded(cut)
    torch.testing.assert_close(cut(x), expected)
    cut(x).sum().backward()
    torch.optim.SGD(cut.parameters(), lr=0.1).step()
