"""Another copy of the network follows its cut."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunus
import prunus.zoo
from prunus.core import Added, InputError, PrunusError
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.tracing.trace import odd_cut
from tests.hand_built import batches, chain
from tests.surgery.test_optimizer import every_third_goes, kept, train
from tests.tracing.test_in_place import X as TOKENS
from tests.tracing.test_in_place import attention

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


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.group = nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12)
        self.first, self.layer = nn.Linear(12, 16), nn.LayerNorm(16)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        return self.last(self.layer(self.first(self.group(self.conv(x)).flatten(2).mT)))


def vit():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**small, image_size=16, patch_size=8)
    return transformers.ViTForImageClassification(config), torch.randn(1, 3, 16, 16)


def llama():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.LlamaConfig(**small, num_key_value_heads=2, vocab_size=50, max_position_embeddings=32)
    return transformers.LlamaForCausalLM(config), torch.randint(0, 50, (1, 7))


def encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.Linear(6, 16), layer), torch.randn(2, 5, 6)


def norms():
    return Norms(), torch.randn(1, 3, 8, 8)


def scaled():  # by the size of a head, which the cut makes good in the weights
    return attention("computed"), TOKENS


@pytest.mark.parametrize("make", [norms, scaled, encoder, vit, llama])
@pytest.mark.parametrize("seed", [0, 2])
def test_what_follows_is_the_cut_network_to_the_bit(make, seed):
    declare_torchvision_operators()
    torch.manual_seed(0)
    report = check_follows(*make(), seed)
    assert bool(report.plan.scaled) is (make is scaled)


SMALL = ("resnet20", "vgg11", "mobilenetv2", "densenet_bc40", "digits_net")


@pytest.mark.parametrize("name", [entry.name for entry in prunus.zoo.models])
def test_what_follows_is_the_cut_network_of_the_zoo(name):
    if name not in SMALL and not os.environ.get("PRUNUS_LONG"):
        pytest.skip("a network like one that is looked at: with PRUNUS_LONG=1")
    torch.manual_seed(0)
    model = getattr(prunus.zoo, name)()
    check_follows(model, torch.randn(1, *((1, 8, 8) if name == "digits_net" else (3, 32, 32))), 2)


def check_follows(model, x, seed):
    model.eval()
    shadow = copy.deepcopy(model)
    groups = prunus.trace(model, x)
    report = prunus.shrink_(model, groups, groups.plan(odd_cut(groups, seed)), verify=False)
    assert report.after["params"] < report.before["params"]
    prunus.follow_(shadow, prunus.Plan.from_json(report.plan.to_json()))
    assert prunus.plan_of(shadow) == prunus.plan_of(model)
    state = shadow.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with torch.no_grad():
        outs = [out if isinstance(out, torch.Tensor) else out.logits for out in (model(x), shadow(x))]
    assert torch.equal(*outs)
    return report


def test_dropped_blocks_are_dropped_in_the_copy_too():
    torch.manual_seed(0)
    model, x = prunus.zoo.resnet20().eval(), torch.randn(1, 3, 32, 32)
    shadow, other = copy.deepcopy(model), prunus.zoo.vgg11()
    report = prunus.drop_blocks_(model, x, data=[x], n=2)
    prunus.follow_(shadow, report.plan)
    with torch.no_grad():
        assert torch.equal(model(x), shadow(x)) and prunus.plan_of(shadow) == prunus.plan_of(model)
    with pytest.raises(PrunusError, match="no block"):
        prunus.follow_(other, report.plan)


def test_a_plan_with_tensors_that_the_copy_lacks_is_refused():
    shadow = chain(6, 9)[0]
    added = prunus.Plan(added=(Added("conv1.bias", "bias", (6,)),))
    with pytest.raises(InputError, match="adds 'conv1.bias'"):
        prunus.follow_(shadow, added)
