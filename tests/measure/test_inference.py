"""What is timed and counted is the network as it is run, not as it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import prunus
from prunus.bases import Basis, interspaced
from prunus.bases.basis import coefficients
from prunus.core import Inputs
from prunus.core.backends import backends
from prunus.core.inference import copied, inference_form
from prunus.dynamic import dynamic_, gates
from prunus.dynamic.skip import Skipping
from prunus.export.onnx import _plain
from prunus.measure import form_for, latency, macs, race

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)]
    return nn.Sequential(*layers).double()


def in_a_basis(sharing: str = "fine") -> nn.Sequential:
    """With a basis that is not orthogonal, and coefficients of which most are zero."""
    net = plain()
    prunus.interspace_(net, sharing, init="orthonormal", block=8)
    with torch.no_grad():
        for _, module, leaf, basis in interspaced(net):
            basis.vectors.add_(0.1 * torch.randn_like(basis.vectors))
            coefficients(module, leaf)[torch.rand_like(coefficients(module, leaf)) < 0.8] = 0
    return net


def masked_by_torch() -> nn.Sequential:
    net = plain()
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.ln_structured(net[2], "weight", 0.5, n=2, dim=0)
    net(X)
    return net


def normalised(old: bool) -> nn.Sequential:
    net = plain()
    first, second = (weight_norm, spectral_norm) if old else (parametrizations.weight_norm, parametrizations.orthogonal)
    first(net[0])
    second(net[5])
    net.train()(X)
    return net


def tied() -> nn.Sequential:
    """Two layers whose weights are computed of one parameter."""
    net = plain()
    parametrizations.spectral_norm(net[2])
    twin = nn.Conv2d(6, 6, 3, padding=1, bias=False).double()
    twin.weight = net[2].parametrizations.weight.original
    parametrizations.spectral_norm(twin)
    assert twin.parametrizations.weight.original is net[2].parametrizations.weight.original
    return nn.Sequential(*net[:3], twin, *net[3:])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "fine": (in_a_basis, "weights in a basis are folded (3)"),
    "coarse": (lambda: in_a_basis("coarse"), "weights in a basis are folded (3)"),
    "masked": (masked_by_torch, "weights that a parametrization or mask makes are computed once (2)"),
    "parametrized": (lambda: normalised(False), "weights that a parametrization or mask makes are computed once (2)"),
    "old norms": (lambda: normalised(True), "weights that a parametrization or mask makes are computed once (2)"),
    "tied": (tied, "weights that a parametrization or mask makes are computed once (2)"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_that_is_run_is_plain_and_computes_the_same(name: str) -> None:
    net = NETWORKS[name][0]()
    names, classes, wanted = list(net.state_dict()), [type(m) for m in net], net.eval()(X).detach()
    net.train()
    found = inference_form(net, X)
    assert found.notes == (NETWORKS[name][1],)
    assert not any(isinstance(m, Basis) for m in found.model.modules()) and not found.model.training
    assert {type(m) for m in found.model} == {type(m) for m in plain()}
    assert {n for n, _ in found.model.named_parameters()} == set(found.model.state_dict())
    assert not any(m._forward_pre_hooks for m in found.model.modules())
    assert torch.allclose(found.model(X), wanted, rtol=0, atol=1e-13)
    assert net.training and list(net.state_dict()) == names and [type(m) for m in net] == classes  # as it was
    assert torch.equal(net.eval()(X), wanted)
    assert inference_form(found.model, X).model is found.model


def test_what_is_run_as_it_trains_is_the_network_itself() -> None:
    net = plain()
    found = inference_form(net, X)
    assert found.model is net and found.notes == ()


class Ran(nn.Module):
    """Tells, also of a copy, when it was run, and of bases in it."""

    def __init__(self, net: nn.Module, ran: list[str]) -> None:
        super().__init__()
        self.net, self.ran = net, ran

    def __deepcopy__(self, memo: dict[int, object]) -> Ran:
        return Ran(copy.deepcopy(self.net, memo), self.ran)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ran += ["run", *(type(m).__name__ for m in self.net.modules() if isinstance(m, Basis))]
        return self.net(x)


def test_folded_networks_are_timed() -> None:
    ran: list[str] = []
    latency(Ran(in_a_basis(), ran), X, seconds=0.01)
    race({"one": Ran(in_a_basis(), ran)}, X, seconds=0.01)
    assert ran == ["run"] * len(ran) != []


def test_networks_masked_by_torch_are_timed() -> None:
    assert latency(masked_by_torch(), X, seconds=0.01).runs >= 5  # torch copies no such network


def test_the_engine_is_given_bases_and_gates_and_onnx_gates_alone() -> None:
    net = in_a_basis().float()
    assert form_for("sparse", net, X.float()).model is net
    assert form_for("torch", net, X.float()).notes == form_for("onnxruntime", net, X.float()).notes != ()
    assert {b.name: set(b.declares.get("reads", ())) for b in backends} == {
        "torch": set(),
        "onnxruntime": {"gates"},
        "openvino": {"gates"},
        "sparse": {"bases", "gates"},
    }


def test_gates_skip_where_torch_runs_them() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)]
    net, x = nn.Sequential(*layers).double().eval(), X
    dynamic_(net, x, "fbs")
    for gate in gates(net):
        gate.count.fill_(3)
    found = form_for("torch", net.train(), x)
    assert net.training and any(isinstance(m, Skipping) for m in found.model.modules())
    assert "gated layers skip channels" in found.notes[0]
    assert torch.allclose(found.model(x), net.eval()(x), rtol=1e-5, atol=1e-6)
    assert form_for("onnxruntime", net, x).model is net


def test_multiply_adds_are_those_of_the_folded_network() -> None:
    wanted = macs(plain(), X)
    for net in (in_a_basis(), normalised(False)):
        found = macs(net, X)
        assert found.total == wanted.total == 6 * 6 * 6 * 27 + 4 * 4 * 6 * 54 + 96 * 4
        assert found.by_operator == wanted.by_operator and found.by_module == wanted.by_module


def test_a_cut_counts_what_is_run() -> None:
    wanted = prunus.trace(plain(), X).costs()["macs"]
    for net in (in_a_basis(), in_a_basis("coarse"), normalised(False)):
        assert prunus.trace(net, X).costs()["macs"] == wanted == macs(net, X).total
    report = prunus.prune_(net := in_a_basis(), X, budget=prunus.Budget(macs=0.6))
    assert report.before["macs"] == wanted and report.after["macs"] == macs(net, X).total <= 0.6 * wanted


def test_what_is_exported_to_onnx_has_no_basis_in_it() -> None:
    net = in_a_basis()
    ready = _plain(net, Inputs.of(X))
    assert not list(interspaced(ready)) and len(list(interspaced(net))) == 3
    assert torch.allclose(ready(X), net(X), rtol=0, atol=1e-13)


def test_a_copy_keeps_what_modules_have_computed() -> None:
    net = masked_by_torch()
    twin = copied(net)
    assert torch.equal(twin[0].weight, net[0].weight) and twin[0].weight is not net[0].weight
    with torch.no_grad():
        twin[0].weight_orig.zero_()
    assert not twin(X).equal(net(X)) and net[0].weight_orig.any()
