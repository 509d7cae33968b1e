"""Residual blocks: found in the trace, dropped by what they change, and put back from files."""

import copy
import math

import pytest
import torch
from torch import nn

import prunus
from prunus.core import Budget, FileError, InputError, NothingToPruneError, VerificationError
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.observe.stream import angles, influence
from prunus.surgery.depth import PassThrough


class Add(nn.Module):
    """x + scale * W x, and a constant."""

    def __init__(self, scale: float, constant: float = 0.0) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(4, 4), "full"
        with torch.no_grad():
            self.fc.weight.copy_(scale * torch.eye(4))
            self.fc.bias.fill_(constant)

    def forward(self, x):
        return x + self.fc(x)


def net(*blocks: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *blocks, nn.Linear(4, 2))


declare_torchvision_operators()
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def names(model, x):
    return [b.name for b in prunus.blocks(model, x)]


def test_a_zero_branch_has_no_influence_and_one_that_turns_round_has_two():
    model = net(Add(-2.0), Add(0.0), Add(1.0, 3.0))
    found = prunus.blocks(model, X)
    assert [b.name for b in found] == ["1", "2", "3"] and all(b.exact for b in found)
    values = influence(model, found, [X[:5], X[5:]])
    h = model[:3](X).double()
    moved = 1 - nn.functional.cosine_similarity(h, model[3](h.float()).double()).mean().item()
    assert values.tolist() == pytest.approx([2, 0, moved], abs=1e-7)
    before = model(X)
    report = prunus.drop_blocks_(model, X, data=[X], n=1)
    assert [d.module for d in report.plan.dropped] == ["2"] and report.verified.exact
    assert torch.equal(model(X), before) and isinstance(model[2], PassThrough) and model[2].kind == "full"
    assert report.before["params"] - report.after["params"] == 20 and report.before["macs"] - report.after["macs"] == 16
    assert names(model, X) == ["1", "3"]


def test_costs_and_shares_are_those_of_the_modules():
    model = net(Add(1.0), Add(2.0))
    block = prunus.blocks(model, X)[0]
    assert (block.params, block.macs, block.kind) == (20, 16, "Add") and block.share == 16 / (12 + 32 + 8)


def test_rows_of_zeros_are_alike():
    model = net(nn.ReLU(), Add(1.0))
    assert influence(model, prunus.blocks(model, X), [X]).item() == pytest.approx(0, abs=1e-7)


def test_blocks_in_a_row_by_the_angle_over_all_of_them():
    turn, back = Add(0.0, 5.0), Add(0.0, -5.0)
    model = net(Add(1.0), turn, back, Add(0.0, 2.0))
    found = prunus.blocks(model, X)
    h = [model[: i + 1](X).double() for i in range(5)]
    expected = [nn.functional.cosine_similarity(h[i], h[i + 2]).arccos().mean().item() / math.pi for i in range(3)]
    assert angles(model, found, [X], 2).tolist() == pytest.approx(expected, abs=1e-4)
    report = prunus.drop_blocks_(model, X, data=[X], keep=0.5, method="contiguous")  # alone, either turns a lot
    assert [d.module for d in report.plan.dropped] == ["2", "3"]


def test_one_token_alone():
    x = torch.randn(2, 5, 3)
    model = net(Add(1.0), Add(0.0, 1.0))
    h, g = (model[: i + 1](x)[:, -1].double() for i in (1, 2))
    expected = nn.functional.cosine_similarity(h, g).arccos().mean().item() / math.pi
    assert angles(model, prunus.blocks(model, x), [x], 1, token=-1)[1].item() == pytest.approx(expected, abs=1e-5)


class Not(nn.Module):
    """Modules that look like blocks, and are none."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.fc, self.p = way, nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        if self.way == "position":
            return x + self.p
        if self.way == "product":
            return x * self.fc(x)
        if self.way == "plain":
            return self.fc(x)
        if self.way == "constant":
            return x + torch.ones(4)
        return x + self.fc(x)


class Twice(nn.Module):
    def __init__(self, leak: bool) -> None:
        super().__init__()
        self.block, self.leak = Leaky(1.0) if leak else Add(1.0), leak

    def forward(self, x):
        if self.leak:
            y, inner = self.block(x)
            return nn.functional.pad(y * inner, (0, 1))
        return nn.functional.pad(self.block(self.block(x)), (0, 1))


class Leaky(Add):
    def forward(self, x):
        inner = self.fc(x)
        return x + inner, inner


@pytest.mark.parametrize("way", ["position", "product", "plain", "constant"])
def test_what_is_no_block(way):
    assert names(net(Not(way), Add(1.0)), X) == ["2"]


@pytest.mark.parametrize("leak", [False, True])
def test_what_is_called_twice_or_read_inside_is_no_block(leak):
    assert prunus.blocks(Twice(leak), torch.randn(2, 4)) == ()


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        nn.init.normal_(self.norm.weight)

    def forward(self, x, mask=None):
        x = self.norm(x + self.fc(x))
        return x, None


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, mask=None)[0]
        return self.out(x)


def test_a_post_norm_goes_with_its_block_and_the_proof_says_so():
    torch.manual_seed(0)
    model, x = Stack(PostNorm(), PostNorm(), PostNorm()), torch.randn(5, 4)
    before = copy.deepcopy(model)
    report = prunus.drop_blocks_(model, x, data=[x], n=1)
    gone = int(report.plan.dropped[0].module[-1])
    del before.layers[gone]
    assert not report.verified.exact and report.verified.max_relative_error < 1e-12
    assert torch.equal(model(x), before(x))


def test_dropping_is_silencing_the_branch_of_a_pre_norm_transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 8)
    silent = copy.deepcopy(model)
    report = prunus.drop_blocks_(model, x, data=[x], n=2)
    for d in report.plan.dropped:
        block = silent.get_submodule(d.module)
        for last in (block.self_attn.out_proj, block.linear2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    assert report.verified.exact and len(report.plan.dropped) == 2
    torch.testing.assert_close(model(x), silent(x))


def test_a_resnet_block_after_a_rectifier_and_its_file(tmp_path):
    torch.manual_seed(0)
    model, x = prunus.zoo.resnet20().eval(), torch.randn(4, 3, 32, 32)
    report = prunus.drop_blocks_(model, x, data=[x], n=3)
    assert report.verified.exact
    prunus.save(model, tmp_path / "m.safetensors")
    assert torch.equal(prunus.load(tmp_path / "m.safetensors", prunus.zoo.resnet20).eval()(x), model(x))
    with pytest.raises(FileError, match="there is no block"):
        prunus.load(tmp_path / "m.safetensors", lambda: net(Add(1.0)))


@pytest.mark.parametrize("first", ["units", "blocks"])
def test_blocks_and_units_in_one_plan(first, tmp_path):
    def build():
        return nn.Sequential(nn.Linear(3, 4), Inner(), Inner(), Inner(), nn.Linear(4, 2))

    torch.manual_seed(0)
    model = build()
    for step in (first, "units" if first == "blocks" else "blocks"):
        if step == "units":
            prunus.prune_(model, X, budget=Budget(macs=0.7))
        else:
            prunus.drop_blocks_(model, X, data=[X], n=1)
    plan = prunus.plan_of(model)
    gone = plan.dropped[0].module
    assert plan.tensors and not any(name.startswith(f"{gone}.") for name in plan.tensors)
    assert prunus.Plan.from_json(plan.to_json()) == plan and not plan.identity
    prunus.save(model, tmp_path / "m.safetensors")
    assert torch.equal(prunus.load(tmp_path / "m.safetensors", build)(X), model(X))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 4)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Nosy(nn.Module):
    """Its code looks at the block that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.out = Add(1.0), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.block(x) * self.block.fc.weight.sum())


def test_what_cannot_be_is_said_and_leaves_the_model_alone():
    model = net(Add(1.0), nn.Linear(4, 4), Add(1.0))
    for options, message in (
        ({"n": 3}, "3 of the 2 residual blocks cannot go"),
        ({}, "say either n="),
        ({"n": 1, "keep": 1}, "say either n="),
        ({"n": 1, "method": "middle"}, "expected one of shortgpt, contiguous"),
        ({"n": 2, "method": "contiguous"}, "no 2 residual blocks follow each other"),
    ):
        with pytest.raises(InputError, match=message):
            prunus.drop_blocks_(model, X, data=[X], **options)
    with pytest.raises(InputError, match="no batch"):
        prunus.drop_blocks_(model, X, data=[], n=1)
    with pytest.raises(NothingToPruneError, match="has no residual block"):
        prunus.drop_blocks_(nn.Linear(3, 2), X, data=[X], n=1)
    nosy, x = Nosy(), torch.randn(2, 4)
    with pytest.raises(VerificationError, match="without block the network does not give"):
        prunus.drop_blocks_(nosy, x, data=[x], n=1)
    assert isinstance(nosy.block, Add) and prunus.plan_of(nosy) is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), *nosy.modules()))


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    model, ids = transformers.BertModel(config).eval(), prunus.Inputs((torch.randint(0, 30, (2, 6)),))
    assert names(model, ids) == [f"encoder.layer.{i}" for i in range(3)]
    prunus.drop_blocks_(model, ids, data=[ids], n=1)
    model.save_pretrained(tmp_path)
    again = transformers.BertModel.from_pretrained(tmp_path).eval()
    assert torch.equal(ids(again).last_hidden_state, ids(model).last_hidden_state)


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_vision_transformers(source):
    if source == "timm":
        timm = pytest.importorskip("timm")
        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
        model, at = timm.models.VisionTransformer(**sizes), "blocks."
    else:
        models = pytest.importorskip("torchvision").models
        model, at = models.VisionTransformer(16, 8, 3, 2, 16, 32), "encoder.layers.encoder_layer_"
    x = torch.randn(2, 3, 16, 16)
    nn.init.normal_(model.get_submodule("head" if source == "timm" else "heads.head").weight)
    assert names(model, x) == [f"{at}{i}" for i in range(3)]
    report = prunus.drop_blocks_(model, x, data=[(x, None)], n=1)
    assert report.verified.exact and report.after["macs"] < report.before["macs"]
