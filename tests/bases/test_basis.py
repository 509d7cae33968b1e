"""Coefficients times a basis: the algebra, its gradients, the gauge, and the way back."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.bases import Basis, interspaced, normalize_, parameter_groups
from prunus.bases.basis import coefficients


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def two_layers(unit: bool = True) -> nn.Sequential:
    """Two convolutions that share a basis that is not orthogonal."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False)).double()
    prunus.interspace_(net, "coarse", unit=unit)
    with torch.no_grad():
        net[0].weight_basis.vectors += 0.3 * random(9, 9, seed=1)
    return net


def test_a_filter_is_the_sum_of_basis_filters_times_coefficients():
    net = two_layers(unit=False)
    given, vectors = coefficients(net[0]), net[0].weight_basis.vectors
    for o, i in ((0, 0), (3, 2)):
        wanted = sum(given[o, i].flatten()[n] * vectors[n].reshape(3, 3) for n in range(9))
        assert torch.allclose(net[0].weight[o, i], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("unit", [False, True])
def test_gradients_are_those_of_the_equations_and_a_shared_basis_gets_the_sum_over_its_layers(unit):
    net = two_layers(unit)
    basis = net[0].weight_basis
    assert basis is net[2].weight_basis and len(list(net.parameters())) == 4
    plain = copy.deepcopy(net)
    prunus.fold_(plain)
    x = random(2, 3, 8, 8, seed=2)
    for one in (net, plain):
        one(x).square().sum().backward()
    directions, of_basis = basis.directions().detach(), torch.zeros(9, 9, dtype=torch.float64)
    for layer, folded in ((net[0], plain[0]), (net[2], plain[2])):
        dense = folded.weight.grad.reshape(-1, 9)  # dL/dh, a filter a row
        wanted = torch.stack([dense @ directions[n] for n in range(9)], 1)  # <g_n, dL/dh>
        assert torch.allclose(coefficients(layer).grad.reshape(-1, 9), wanted, rtol=1e-10, atol=1e-10)
        for n in range(9):
            of_basis[n] += (coefficients(layer).detach().reshape(-1, 9)[:, n, None] * dense).sum(0)
    if unit:  # through the division by the norm: what is orthogonal to the vector is left
        along = (of_basis * directions).sum(1, keepdim=True) * directions
        of_basis = (of_basis - along) / basis.vectors.detach().norm(dim=1, keepdim=True)
    assert torch.allclose(basis.vectors.grad, of_basis, rtol=1e-10, atol=1e-9)


def test_the_gauge_keeps_the_function_and_makes_norms_one():
    net = two_layers(unit=False)
    x = random(2, 3, 8, 8, seed=2)
    before, old = net(x), coefficients(net[0]).detach().clone()
    lengths = net[0].weight_basis.vectors.detach().norm(dim=1)
    normalize_(net)
    assert torch.allclose(net[2].weight_basis.vectors.norm(dim=1), torch.ones(9).double(), rtol=0, atol=1e-14)
    assert torch.allclose(coefficients(net[0]).reshape(-1, 9), old.reshape(-1, 9) * lengths, rtol=1e-14)
    assert torch.allclose(net(x), before, rtol=0, atol=1e-12)
    again = copy.deepcopy(net.state_dict())
    normalize_(net)
    assert all(torch.allclose(v, again[k], rtol=1e-14, atol=0) for k, v in net.state_dict().items())


def test_the_scale_of_a_unit_basis_changes_nothing():
    net = two_layers()
    x = random(2, 3, 8, 8, seed=2)
    before, old = net(x), coefficients(net[0]).detach().clone()
    with torch.no_grad():
        net[0].weight_basis.vectors.mul_(torch.arange(1.0, 10.0).double()[:, None])
    assert torch.allclose(net(x), before, rtol=0, atol=1e-12)
    normalize_(net)
    assert torch.equal(coefficients(net[0]), old) and torch.allclose(net(x), before, rtol=0, atol=1e-12)


def test_a_basis_vector_of_zeros_does_no_harm():
    for unit in (False, True):
        net = two_layers(unit)
        with torch.no_grad():
            net[0].weight_basis.vectors[3] = 0
        net(random(1, 3, 8, 8)).sum().backward()
        normalize_(net)
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in net.parameters())


def test_fold_gives_back_the_users_own_layers():
    net = two_layers()
    x = random(2, 3, 8, 8, seed=2)
    wanted, parameters = net(x), [coefficients(net[0]), coefficients(net[2])]
    assert isinstance(net[0], nn.Conv2d) and type(net[0]) is not nn.Conv2d
    names = prunus.fold_(net)
    assert names == ("0.weight", "2.weight") and not list(interspaced(net))
    assert [type(m) for m in net] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight"] and not list(net[0].children())
    assert net[0].weight is parameters[0] and net[2].weight is parameters[1]
    assert torch.equal(net(x), wanted)
    assert prunus.fold_(net) == ()
    prunus.interspace_(net)  # and again


def test_coefficients_are_parameters_like_any_other():
    net = two_layers()
    x = random(2, 3, 8, 8, seed=2)
    wanted = net(x)
    state = net.state_dict()
    assert set(state) == {
        *("0.weight", "0.bias", "2.weight"),
        *("0.weight_basis.vectors", "2.weight_basis.vectors"),
    }
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False)).double()
    prunus.interspace_(other, "coarse")
    other.load_state_dict(state)
    assert torch.equal(other(x), wanted)
    copied = copy.deepcopy(net)
    assert copied[0].weight_basis is copied[2].weight_basis is not net[0].weight_basis
    with torch.no_grad():
        coefficients(copied[0]).zero_()
    assert torch.equal(net(x), wanted) and not torch.equal(copied(x), wanted)
    assert torch.equal(torch.func.functional_call(net, dict(net.named_parameters()), (x,)), wanted)
    assert net.float()(x.float()).dtype == torch.float32 and net[0].weight_basis.vectors.dtype == torch.float32


def test_masked_coefficients_stay_zero_through_momentum_and_decay_while_the_basis_trains():
    net = two_layers()
    groups = prunus.tensors(net)
    assert [g.id for g in groups] == ["0.weight", "2.weight"]  # a basis is not pruned
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.2))
    optimizer = torch.optim.SGD(parameter_groups(net), lr=0.01, momentum=0.9, weight_decay=0.1)
    net(random(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()  # momentum of what is masked afterwards
    assert prunus.mask_(net, groups, plan).density <= 0.2
    keep = {g.id: coefficients(net[int(g.id[0])]).ne(0) for g in groups}
    bases = net[0].weight_basis.vectors.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        net(random(2, 3, 8, 8, seed=step)).square().mean().backward()
        optimizer.step()
    for g in groups:
        assert torch.equal(coefficients(net[int(g.id[0])]).ne(0), keep[g.id])
    assert not torch.equal(net[0].weight_basis.vectors, bases)
    assert all(m.weight.ne(0).double().mean() > 0.5 for m in (net[0], net[2]))  # filters are dense in space
    prunus.fold_(net)
    dense = net[0].weight.ne(0)
    net(random(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    assert torch.equal(net[0].weight.ne(0), dense)  # the mask of the coefficients does not hold the filters


def test_depthwise_transposed_one_and_three_dimensional_convolutions():
    torch.manual_seed(0)
    cases = [
        (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 7, 7)),
        (nn.Conv2d(6, 4, (3, 5), groups=2), (2, 6, 7, 7)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
        (nn.Conv1d(3, 4, 5), (2, 3, 9)),
        (nn.Conv3d(2, 3, 2), (2, 2, 5, 5, 5)),
    ]
    for layer, shape in cases:
        net = nn.Sequential(layer).double()
        x = random(*shape, seed=3)
        wanted, weight = net(x), layer.weight.detach().clone()
        prunus.interspace_(net, init="orthonormal")
        assert not torch.allclose(coefficients(layer), weight)
        assert torch.allclose(net(x), wanted, rtol=0, atol=1e-12), layer
        plain = (coefficients(layer).reshape(-1, weight[0, 0].numel()) @ layer.weight_basis.vectors).reshape(
            weight.shape
        )
        assert torch.allclose(layer.weight, plain, rtol=0, atol=1e-14)


def test_parameter_groups_hold_every_parameter_once():
    net = two_layers()
    rest, bases = parameter_groups(net, basis_decay=0.1, lr=0.5)
    assert [p is net[0].weight_basis.vectors for p in bases["params"]] == [True]
    assert bases["weight_decay"] == 0.1 and bases["lr"] == 0.5
    assert {id(p) for p in rest["params"] + bases["params"]} == {id(p) for p in net.parameters()}
    assert len(parameter_groups(nn.Linear(2, 2))) == 1


def test_a_basis_says_what_it_is():
    assert repr(Basis(torch.eye(4))) == "Basis(4, unit=True)"


def test_a_basis_that_fails_is_never_taken_for_none():
    net = two_layers()

    class Broken(nn.Module):
        def forward(self, coefficients, along):
            return self.nothing

    net[0].weight_basis = Broken()
    with pytest.raises(RuntimeError, match="the basis of 'weight' failed"):
        net(random(1, 3, 8, 8))


def test_a_network_wrapped_for_several_processes_is_refused():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        net = nn.Sequential(nn.Conv2d(3, 4, 3))
        wrapped = nn.parallel.DistributedDataParallel(net)
        with pytest.raises(prunus.InputError, match="wrap it afterwards"):
            prunus.interspace_(wrapped)
        assert type(net[0]) is nn.Conv2d
        prunus.interspace_(net)
        wrapped = nn.parallel.DistributedDataParallel(net)
        wrapped(torch.randn(1, 3, 5, 5)).sum().backward()
        assert net[0].weight_basis.vectors.grad is not None
    finally:
        distributed.destroy_process_group()
