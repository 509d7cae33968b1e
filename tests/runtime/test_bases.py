"""Layers whose filters are coefficients times a basis: answers and mixing, or filters put together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus import zoo
from prunus.bases import interspace_, interspaced
from prunus.bases.basis import coefficients
from prunus.core.inputs import Inputs
from prunus.runtime import bases, compile, load, save
from prunus.runtime.capture import capture
from prunus.runtime.graph import Graph, Node


def in_a_basis(net: nn.Module, sparsity: float, sharing: str = "fine") -> nn.Module:
    """Orthonormal bases, the same everywhere, and coefficients with zeros; statistics that are all different."""
    random = torch.Generator().manual_seed(0)
    interspace_(net, sharing)
    turned = torch.linalg.qr(torch.randn(9, 9, generator=random))[0]
    for _, module, leaf, basis in interspaced(net):
        basis.vectors.data = 2 * turned
        given = coefficients(module, leaf)
        given.data[torch.rand(given.shape, generator=random) < sparsity] = 0
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2, generator=random)
            m.running_var.uniform_(0.5, 2, generator=random)
            m.weight.data.uniform_(-0.5, 1.5, generator=random)
    return net.eval()


def error(net: nn.Module, x: Tensor) -> float:
    got = compile(net, x)(x)
    with torch.no_grad():
        want = net.double()(x.double())
    net.float()
    return float((got - want).abs().max() / want.abs().max())


class Block(nn.Module):
    """A sum and a bound behind two layers that share a basis, one with strides, and one whose basis is per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(16, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.b = nn.Conv2d(48, 48, 3, padding=2, dilation=2)
        self.each, self.c = nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.Conv2d(48, 48, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        return self.c(self.each(torch.relu(self.b(x) + x)))


@pytest.mark.parametrize("sharing", ["fine", "coarse"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.98])
def test_the_outputs_are_those_of_torch(sharing: str, sparsity: float, tmp_path) -> None:
    torch.manual_seed(0)
    net = in_a_basis(Block(), sparsity, sharing)
    x = torch.randn(1, 16, 13, 10)
    assert error(net, x) < 1e-5
    compiled = compile(net, x)
    assert "torch" not in compiled.report()
    save(compiled, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net")(x), compiled(x))


def test_a_network_of_the_zoo() -> None:
    torch.manual_seed(0)
    assert error(in_a_basis(zoo.resnet20(), 0.9, "coarse"), torch.randn(1, 3, 32, 32)) < 1e-5


def layer(coefficients: Tensor, basis: Tensor, residual: bool = False) -> Graph:
    """A graph of one convolution in a basis."""
    out, inputs = coefficients.shape[:2]
    weight = (coefficients.reshape(-1, 9) @ basis).reshape(coefficients.shape)
    tensors = {"weight": weight, "bias": torch.arange(float(out)), "coefficients": coefficients, "basis": basis}
    geometry = {"stride": 1, "padding": [1, 1], "dilation": [1, 1], "groups": 1, "low": 0.0, "high": 9.0}
    nodes = {0: Node("input", [], (1, inputs, 12, 12), {"plain": True})}
    if residual:
        nodes[1] = Node("input", [], (1, out, 12, 12), {"plain": True})
    nodes[2] = Node("conv", [0, 1] if residual else [0], (1, out, 12, 12), geometry, tensors)
    return Graph(nodes, [2])


def test_channels_go_the_way_that_takes_fewer_multiply_adds() -> None:
    """Channel 0 has a coefficient for one output, channel 1 one of one vector for all 64: 9 < 10 + 1, 576 > 10 + 64."""
    given = torch.zeros(64, 2, 3, 3)
    given[5, 0, 1, 2], given[:, 1, 0, 1] = 2, 3
    assert bases._cheaper(given.flatten(2), (given.flatten(2) != 0).any(0)).tolist() == [False, True]
    basis = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(1)))[0]
    for residual in (False, True):
        found = bases.mix(layer(given, basis, residual), 1).nodes
        answers, rest, mixing = (n for n in found.values() if n.kind == "conv")
        assert answers.shape == (1, 1, 12, 12) and torch.equal(
            answers.tensors["weight"][0, 1].float(), basis[1].reshape(3, 3)
        )
        assert rest.tensors["weight"][:, 1].count_nonzero() == 0 and rest.tensors["weight"][5, 0].count_nonzero() > 0
        assert torch.equal(mixing.tensors["weight"].flatten().float(), torch.full((64,), 3.0))
        assert rest.numbers.keys().isdisjoint({"low", "high"}) and mixing.numbers["high"] == 9.0
        assert len(rest.inputs) == 1 + residual and len(mixing.inputs) == 2
        assert torch.equal(mixing.tensors["bias"], torch.arange(64.0)) and not rest.tensors["bias"].any()


def test_dense_coefficients_and_a_basis_that_does_not_make_the_weight_stay_filters() -> None:
    net = in_a_basis(Block(), 0.0)
    graph = capture(net, Inputs.of(torch.randn(1, 16, 12, 12)))
    assert not any("coefficients" in n.tensors for n in graph.nodes.values())
    node = layer(torch.eye(9).reshape(9, 1, 3, 3), torch.eye(9)).nodes[2]
    del node.tensors["coefficients"], node.tensors["basis"]
    bases.attach_factors(node, torch.eye(9).reshape(9, 1, 3, 3), 2 * torch.eye(9))
    assert "basis" not in node.tensors
    bases.attach_factors(node, torch.eye(9).reshape(9, 1, 3, 3), torch.eye(9))
    assert "basis" in node.tensors
