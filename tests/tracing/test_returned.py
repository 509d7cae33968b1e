"""What forward hands out keeps its shape, whatever it lies in; what cannot be walked is refused."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import distributions, nn
from torch.utils import _pytree

import prunus
from prunus.core.nested import tensors_in, with_tensors_changed
from tests.keeping import random_keep

X = torch.randn(2, 6)


class Slots:
    __slots__ = ("__hidden", "a")

    def __init__(self, x):
        self.a = self.__hidden = x


class Inherited(Slots):
    __slots__ = ("b",)

    def __init__(self, x):
        super().__init__(x + 1)
        self.b = x


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: object


@dataclasses.dataclass
class Late:
    name: str = "late"
    x: object = dataclasses.field(init=False, default=None)


class Computed:
    """Its items are computed; what they are computed from is in a private attribute."""

    def __init__(self, x):
        self._x = x

    @property
    def value(self):
        return self._x


class Listed(list):
    """A list with an attribute."""


class Items(collections.abc.Mapping):
    def __init__(self, x):
        self.inner = {"x": x}

    def __getitem__(self, key):
        return self.inner[key]

    def __iter__(self):
        return iter(self.inner)

    def __len__(self):
        return len(self.inner)


class Node:
    def __init__(self, x):
        self.children = (x,)


_pytree.register_pytree_node(Node, lambda n: (list(n.children), None), lambda items, _: Node(items[0]))
Pair = collections.namedtuple("Pair", "a b")


def late(x):
    out = Late()
    out.x = x
    return out


def listed(x):
    out = Listed()
    out.extra = x
    return out


def ring(x):
    out = types.SimpleNamespace(x=x)
    out.me = [out]
    return out


CONTAINERS = {
    "tensor": lambda x: x,
    "namespace": lambda x: types.SimpleNamespace(x=x),
    "slots": Slots,
    "inherited": Inherited,
    "frozen": Frozen,
    "late": late,
    "private": Computed,
    "list": listed,
    "mapping": Items,
    "user dict": lambda x: collections.UserDict(x=x),
    "chain": lambda x: collections.ChainMap({"x": x}),
    "proxy": lambda x: types.MappingProxyType({"x": x}),
    "queue": lambda x: collections.deque([x]),
    "node": Node,
    "tuple": lambda x: Pair(x, 1),
    "normal": lambda x: distributions.Normal(x, x.exp()),
    "categorical": lambda x: distributions.Categorical(logits=x),
    "transformed": lambda x: distributions.TransformedDistribution(
        distributions.Independent(distributions.Normal(x, x.exp()), 1), [distributions.transforms.TanhTransform()]
    ),
    "ring": ring,
    "nested": lambda x: types.SimpleNamespace(inner=Slots([{"x": x}])),
}
HIDDEN = {
    "generator": lambda x: (t for t in [x]),
    "iterator": lambda x: iter([x]),
    "set": lambda x: {x},
    "closure": lambda x: lambda: x,
    "partial": lambda x: functools.partial(torch.add, x),
    "method": lambda x: Computed(x).__init__,
    "mapped": lambda x: map(abs, [x]),
    "view": lambda x: {"x": x}.values(),
    "inside": lambda x: types.SimpleNamespace(a=[{"b": iter([x])}]),
}


class Heads(nn.Module):
    """Several heads on a trunk, every output in a container of its own, one in the other."""

    def __init__(self, kinds, width, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.kinds = kinds
        self.trunk = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(width, 3 + i) for i in range(len(kinds))])

    def forward(self, x):
        x, out = self.trunk(x), None
        for make, head in zip(self.kinds, self.heads):
            out = (make(head(x)), {"more": out})
        return out


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(sorted(CONTAINERS)), min_size=1, max_size=4), st.integers(4, 12), st.integers(0, 99))
def test_all_outputs_keep_their_shapes_whatever_they_lie_in(kinds, width, seed):
    model = Heads([CONTAINERS[k] for k in kinds], width, seed)
    before = [t.shape for t in tensors_in(model(X))]
    groups = prunus.trace(model, X)
    assert groups.units == 2 * width  # and nothing but the outputs is held
    report = prunus.shrink_(model, groups, groups.plan(random_keep(groups, seed)))
    assert [t.shape for t in tensors_in(model(X))] == before and report.verified.max_relative_error < 1e-7
    assert len(before) >= len(kinds)


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_cannot_be_walked_is_refused_by_its_type_or_named(kind):
    model = Heads([HIDDEN[kind]], 8)
    whole = copy.deepcopy(model)
    name = type(HIDDEN[kind](X)).__name__ if kind != "inside" else r"holds at \[0\].a\[0\]\['b'\] a list_iterator"
    with pytest.raises(prunus.TraceError, match=rf"the model returns .*{name}.*outputs="):
        prunus.trace(model, X)
    with pytest.raises(prunus.TraceError, match="the model returns"):
        prunus.prune_(model, X, budget=prunus.Budget(params=0.5))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters()))


def test_outputs_names_what_must_stay():
    model = Heads([lambda x: iter([x]), lambda x: x], 8)
    report = prunus.prune_(model, X, budget=prunus.Budget(params=0.6), outputs=lambda out: {"second": out[0]})
    assert report.verified.max_relative_error < 1e-7 and model.trunk[0].out_features < 8
    assert model.heads[1].out_features == 4 and model(X)[0].shape == (2, 4)
    pruner = prunus.Pruner(model, X, budget=prunus.Budget(params=0.6), outputs=lambda out: out[0])
    assert pruner.groups.units and "heads.1" not in [g.id for g in pruner.groups]
    with pytest.raises(prunus.InputError, match="outputs= gave no tensor for what the model returns, a tuple"):
        prunus.trace(model, X, outputs=lambda out: None)


class Stashing(nn.Module):
    def __init__(self, put):
        super().__init__()
        self.a, self.b, self.c, self.put = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2), put
        self.seen, self.cache, self._private = [], {}, None

    def forward(self, x):
        x = self.a(x).relu()
        y = self.b(x).relu()
        self.put(self, x, y)
        return self.c(y)


def remembered(net, x, y):
    net.cache.setdefault("mask", torch.ones_like(y[0]))
    net.__dict__.setdefault("kept", y * 1)


@pytest.mark.parametrize(
    "put",
    [
        lambda net, x, y: setattr(net, "features", y),
        lambda net, x, y: net.seen.append({"y": y}),
        lambda net, x, y: setattr(net.c, "last", types.SimpleNamespace(y=y * 2)),
        lambda net, x, y: net.cache.update(y=y + 1),
    ],
)
def test_what_forward_leaves_in_attributes_keeps_its_shape(put):
    model = Stashing(put)
    groups = prunus.trace(model, X)
    assert [g.id for g in groups] == ["a"]
    assert "forward keeps it in an attribute" in {f.what: f.why for f in groups.fixed}["b: 8 of 8 channels"]
    assert not model.seen and not model.cache and not hasattr(model, "features")


@pytest.mark.parametrize("put", [remembered, lambda net, x, y: setattr(net, "_private", y), lambda net, x, y: None])
def test_what_forward_keeps_for_itself_may_be_cut(put):
    assert [g.id for g in prunus.trace(Stashing(put), X)] == ["a", "b"]


@pytest.mark.parametrize("take", [torch.Tensor.tolist, torch.Tensor.numpy])
def test_values_that_leave_torch_keep_their_number(take):
    model = Stashing(lambda net, x, y: None)
    model.c.forward = lambda y: {"values": take(y), "rest": nn.Linear.forward(model.c, y)}
    assert [g.id for g in prunus.trace(model, X)] == ["a"]


@pytest.mark.parametrize("kind", [k for k in CONTAINERS if k not in ("categorical", "normal", "transformed", "nested")])
def test_inputs_lie_in_objects_too(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, given):
            return self.b(self.a(tensors_in(given)[-1]).relu())

    model, given = Net(), CONTAINERS[kind](X)
    inputs = prunus.Inputs((given,))
    assert inputs.batch == 2 and all(t.dtype == torch.float64 for t in inputs.to(torch.float64).tensors)
    assert all(t.dtype == torch.float32 for t in tensors_in(given))  # the caller's object is as it was
    groups = prunus.trace(model, inputs)
    assert prunus.shrink_(model, groups, groups.plan(torch.arange(8) < 3)).verified.dtype == "float64"


def test_a_structure_is_built_again_with_what_it_shares():
    ring_ = ring(X)
    new = with_tensors_changed(ring_, lambda t: t + 1)
    assert new is not ring_ and new.me[0] is new and torch.equal(new.x, X + 1)
    assert with_tensors_changed(plain := {"a": [1, "b"]}, torch.neg) is plain


@pytest.mark.parametrize("kind", ["namespace", "slots", "inherited", "frozen", "late", "categorical", "ring"])
def test_rewritten_networks_return_objects(kind):
    model = Heads([CONTAINERS[kind]], 8)
    groups = prunus.trace(model, X, in_place=False)
    keep = torch.arange(groups.units) % 3 > 0
    report = prunus.shrink_(model, groups, groups.plan(keep))
    out = report.model(X[:1])[0]
    assert type(out) is type(model(X)[0]) and report.verified.max_relative_error < 1e-7
    assert [t.shape for t in tensors_in(out)] == [t.shape for t in tensors_in(model(X[:1])[0])]
