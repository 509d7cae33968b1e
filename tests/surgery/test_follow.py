"""Another copy of the network follows its cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators
from tests.hand_built import batches, chain
from tests.surgery.test_optimizer import every_third_goes, kept, train

X = torch.zeros(1, 3, 6, 6).double()


def averaged(make):
    """A network trained for a while, with its moving average."""
    model = chain(6, 9)[0].double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = make(model)
    train(model, optimizer, batches(3), lambda: average.update_parameters(model))
    return model, optimizer, average


def torch_average(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)


def timm_average(model):
    declare_torchvision_operators()
    utils = pytest.importorskip("timm.utils", reason="timm is not installed")
    average = utils.ModelEmaV3(model, decay=0.5, foreach=False)
    average.update_parameters = average.update
    return average


@pytest.mark.parametrize("make", [torch_average, timm_average])
def test_a_moving_average_follows_and_goes_on(make):
    model, optimizer, average = averaged(make)
    before = {n: t.clone() for n, t in average.module.state_dict().items()}
    groups = prunus.trace(model, X)
    report = prunus.shrink_(model, groups, every_third_goes(groups), optimizer=optimizer)
    prunus.follow_(average, report.plan)
    for name, tensor in average.module.state_dict().items():
        assert torch.equal(tensor, kept(before[name], report.plan.tensors.get(name))), name
    assert average.module.conv1.out_channels == model.conv1.out_channels == 4
    assert prunus.plan_of(average.module) == prunus.plan_of(model)
    train(model, optimizer, batches(2), lambda: average.update_parameters(model))
    bn = average.module.bn1.weight
    assert bn.shape == (4,) and not torch.equal(bn, model.bn1.weight) and average.module(X).shape == (1, 5)


def test_cuts_of_a_copy_compose():
    model = chain(6, 9)[0].double()
    shadow = copy.deepcopy(model)
    for _ in range(2):
        groups = prunus.trace(model, X)
        prunus.follow_(shadow, prunus.shrink_(model, groups, every_third_goes(groups)).plan)
    assert prunus.plan_of(shadow) == prunus.plan_of(model)
    assert all(
        torch.equal(p, q) for p, q in zip(model.state_dict().values(), shadow.state_dict().values(), strict=True)
    )


def test_another_network_is_refused_and_stays_whole():
    model = chain(6, 9)[0].double()
    other, twice = chain(5, 9)[0], copy.deepcopy(model)
    groups = prunus.trace(model, X)
    plan = prunus.shrink_(model, groups, every_third_goes(groups)).plan
    prunus.follow_(twice, plan)
    for wrong, text in (
        (other, r"should be \(6, 3, 3, 3\), in the copy it is \(5, 3, 3, 3\)"),
        (twice, r"in the copy it is \(4, 3, 3, 3\).*follow once"),
        (nn.Linear(2, 2), "'conv1.weight' .* missing"),
    ):
        state = copy.deepcopy(wrong.state_dict())
        with pytest.raises(prunus.InputError, match=text):
            prunus.follow_(wrong, plan)
        assert all(torch.equal(t, state[n]) for n, t in wrong.state_dict().items())


def test_integer_attributes_follow_too():
    class Depthwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.d, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.b(self.d(self.a(x)))

    model = Depthwise()
    shadow, edited = copy.deepcopy(model), copy.deepcopy(model)
    edited.d.groups = 3
    groups = prunus.trace(model, X.float())
    plan = prunus.shrink_(model, groups, every_third_goes(groups)).plan
    prunus.follow_(shadow, plan)
    assert shadow.d.groups == model.d.groups == 4 and torch.equal(shadow(X.float()), model(X.float()))
    with pytest.raises(prunus.InputError, match="d.groups = 6, the network given has 3"):
        prunus.follow_(edited, plan)
