"""A plan belongs to the modules that were cut, not to their names: changed networks are saved, read and cut again."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion, parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import prunus
from tests.hand_built import batches, chain

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """A wrapper of one's own, with layers before and behind."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.out = inner, nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x):
        return self.out(self.inner(x))


class Low(nn.Module):
    """A linear layer with a low-rank update that trains beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.ones(2, base.in_features) / 10)
        self.up = nn.Parameter(torch.ones(base.out_features, 2) / 10)

    def forward(self, x):
        return self.base(x) + x @ self.down.t() @ self.up.t()

    def merged(self) -> nn.Linear:
        layer = nn.Linear(self.base.in_features, self.base.out_features)
        layer.weight.data = (self.base.weight + self.up @ self.down).detach()
        layer.bias.data = self.base.bias.detach()
        return layer


def network() -> nn.Module:
    torch.manual_seed(0)
    return chain(6, 8)[0].eval()


def cut(model: nn.Module, budget: float = 0.6, seed: int = 0) -> None:
    keep = {"budget": prunus.Budget(macs=budget), "criterion": "random", "seed": seed}
    prunus.prune_(model, X, **keep)


def head(classes: int):
    """A new head, as wide as what is left in front of it."""

    def change(model, width=None):
        model.fc = nn.Linear(width or model.conv2.out_channels, classes)
        return model

    return change


def headed(classes: int):
    return lambda model: head(classes)(model, 5)


def in_sequence(model):
    return nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.conv2, model.bn2, nn.ReLU(), Mean(), model.fc)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def renamed(model):
    model.first = model.conv1
    del model.conv1
    model.forward = lambda x: chain_forward(model, x)
    return model


def chain_forward(model, x):
    x = model.bn2(model.conv2(model.bn1(model.first(x)).relu())).relu()
    return model.fc(x.mean((2, 3)))


def merged(model):
    model.fc = Low(model.fc)
    model.fc = model.fc.merged()
    return model


def merged_in_place(model):
    layer = Low(model.fc)
    model.fc = layer
    with torch.no_grad():
        layer.base.weight += layer.up @ layer.down
    model.fc = layer.base
    return model


def folded(model):
    model.conv1 = fusion.fuse_conv_bn_eval(model.conv1, model.bn1)
    model.bn1 = nn.Identity()
    return model


def normed(model):
    parametrizations.weight_norm(model.conv2)
    return model


def old_norm(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(model.conv2)
    return model


def torch_masked(model):
    prune.l1_unstructured(model.conv2, "weight", 0.5)
    return model


class Adapted(nn.Module):
    """A layer as libraries of adapters wrap it: factors of low rank by name, and a scale of every output."""

    def __init__(self, base_layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        out, into, *kernel = base_layer.weight.shape
        conv = bool(kernel)
        make = nn.Conv2d if conv else nn.Linear
        self.lora_a = nn.ModuleDict({"default": make(into, rank, *kernel[:1], padding=1) if conv else make(into, rank)})
        self.lora_b = nn.ModuleDict({"default": make(rank, out, 1) if conv else make(rank, out)})
        self.magnitude = nn.Parameter(torch.ones(out, *[1] * len(kernel)))

    def forward(self, x):
        return self.magnitude * (self.base_layer(x) + self.lora_b["default"](self.lora_a["default"](x)))


def adapted(rank):
    """Adapters that train beside their layers, not merged."""

    def change(model):
        torch.manual_seed(rank)
        model.conv2, model.fc = Adapted(model.conv2, rank), Adapted(model.fc, rank)
        return model

    return change


def low(model):
    model.fc = Low(model.fc)
    return model


def without_bias(model):
    model.fc.bias = None
    return model


# what is done to a network that was cut; and to a fresh one, by whoever reads the file
CHANGES = {
    "a deep copy": (copy.deepcopy, lambda m: m),
    "a wrapper": (Around, Around),
    "nn.DataParallel": (nn.DataParallel, nn.DataParallel),
    "a moving average": (AveragedModel, AveragedModel),
    "copies of it": (lambda m: nn.Sequential(Around(copy.deepcopy(m)), nn.Linear(2, 2)),
                     lambda m: nn.Sequential(Around(m), nn.Linear(2, 2))),
    "layers in a sequence": (in_sequence, in_sequence),
    "a layer under another name": (renamed, renamed),
    "a merged low-rank update": (merged, lambda m: m),
    "a low-rank update merged in place": (merged_in_place, lambda m: m),
    "a low-rank update beside it": (low, low),
    "adapters": (adapted(2), adapted(2)),
    "adapters as wide as what is left": (adapted(5), adapted(5)),
    "a folded batch norm": (folded, folded),
    "weight norm": (normed, normed),
    "weight norm with hooks": (old_norm, old_norm),
    "a mask of torch": (torch_masked, torch_masked),
    "no bias any more": (without_bias, without_bias),
}  # fmt: skip


def round_trip(model, factory, path):
    prunus.save(model.eval(), path)
    again = prunus.load(path, factory).eval()
    assert torch.equal(again(X), model(X))
    return again


def same(loaded, model):
    a, b = loaded.state_dict(), model.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_after_a_cut_is_saved_read_and_cut_again(change, tmp_path):
    after, fresh = CHANGES[change]
    model = network()
    cut(model)
    model = after(model)
    told = pytest.warns(UserWarning, match="bn1") if change == "a folded batch norm" else nullcontext()
    with told:
        same(round_trip(model, lambda: fresh(network()), tmp_path / "a"), model)
    if change not in ("a mask of torch", "weight norm", "weight norm with hooks"):
        cut(model, 0.7, seed=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(round_trip(model, lambda: fresh(network()), tmp_path / "b"), model)


@pytest.mark.parametrize("classes", [3, 5, 8])
def test_a_new_head_is_one_of_the_changed_original(classes, tmp_path):
    model = network()
    cut(model)
    width = model.conv2.out_channels
    model = head(classes)(model)
    factory = lambda: head(classes)(network(), width)  # noqa: E731
    if classes == 5:  # as many as before: nothing tells it from the old one, and either original will do
        same(round_trip(model, network, tmp_path / "plain"), model)
        same(round_trip(model, factory, tmp_path / "a"), model)
    else:
        with pytest.warns(UserWarning, match="fc.weight"):
            same(round_trip(model, factory, tmp_path / "a"), model)
    for seed in (1, 2):
        cut(model, 0.8, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(round_trip(model, factory, tmp_path / f"b{seed}"), model)


@pytest.mark.parametrize("wrap", [Around, lambda m: nn.Sequential(m, nn.Linear(5, 3)), nn.DataParallel])
def test_a_part_of_what_was_cut_is_saved_alone(wrap, tmp_path):
    torch.manual_seed(1)
    whole = wrap(network())
    cut(whole)
    inner = next(m for m in whole.modules() if hasattr(m, "conv1"))
    same(round_trip(inner, network, tmp_path / "a"), inner)
    layer = inner.conv2
    prunus.save(layer, tmp_path / "layer")
    assert torch.equal(prunus.load(tmp_path / "layer", lambda: network().conv2).weight, layer.weight)
    cut(inner, 0.7, seed=1)  # the part alone, and then the whole again
    same(round_trip(inner, network, tmp_path / "b"), inner)
    torch.manual_seed(1)
    fresh = wrap(network())
    same(round_trip(whole, lambda: copy.deepcopy(fresh), tmp_path / "c"), whole)


def test_two_networks_that_were_cut_become_parts_of_one(tmp_path):
    first, second = network(), network()
    cut(first)
    cut(second, 0.5, seed=3)
    make = lambda a, b: nn.ModuleDict({"a": a, "b": b})  # noqa: E731
    both = make(first, second)
    prunus.save(both, tmp_path / "both")
    again = prunus.load(tmp_path / "both", lambda: make(network(), network()))
    same(again, both)
    assert prunus.plan_of(again["a"]).tensors == prunus.plan_of(first).tensors != prunus.plan_of(second).tensors
    assert prunus.plan_of(nn.Sequential(nn.Linear(2, 2))) is None


@pytest.mark.parametrize("change", [headed(3), merged, folded, in_sequence])
def test_a_pruner_finishes_on_a_network_that_was_changed_after_a_cut(change, tmp_path):
    model = network()
    prunus.prune_(model, X, budget=prunus.Budget(macs=0.6), criterion="random", floor={"conv2": 5})
    groups = prunus.trace(model, X)
    rows = torch.ones(groups.units, dtype=torch.bool)
    wide = groups["conv2"]
    rows[wide.offset + 5 : wide.offset + wide.units] = False
    prunus.shrink_(model, groups, groups.plan(rows))
    model = change(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pruner = prunus.Pruner(model, X, budget=prunus.Budget(macs=0.7), schedule=lambda step: step / 4)
        pruner.attach(optimizer)
    assert bool(told) == (change not in (merged, in_sequence))
    for x, _ in batches(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert pruner.finish_().verified.max_relative_error < 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(round_trip(model, lambda: change(network()) if change is not merged else network(), tmp_path / "a"), model)


def test_files_of_another_architecture_are_still_refused(tmp_path):
    model = network()
    cut(model)
    prunus.save(model, tmp_path / "a")
    for other in (lambda: chain(7, 8)[0], lambda: chain(6, 2)[0], lambda: head(4)(network(), 5)):
        with pytest.raises(prunus.FileError, match="another architecture"):
            prunus.load(tmp_path / "a", other)


@pytest.mark.parametrize("other", [adapted(3), low, lambda m: m, lambda m: adapted(2)(chain(6, 9)[0])])
def test_adapters_of_another_kind_or_network_are_refused(other, tmp_path):
    model = network()
    cut(model)
    prunus.save(adapted(2)(model), tmp_path / "a")
    with pytest.raises(prunus.FileError, match="of another architecture"):
        prunus.load(tmp_path / "a", lambda: other(network()))
