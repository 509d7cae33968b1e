"""Methods of sparse training, rewinding and iterated scores take coefficients as they take weights."""

import pytest
import torch
from torch import nn

import prunus
from prunus.bases import interspaced, parameter_groups
from prunus.bases.basis import coefficients
from tests.hand_built import batches, residual

masks = prunus.masks
if not hasattr(masks, "MaskPruner"):
    pytest.skip("sparse training is not there", allow_module_level=True)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x, y = batches()[number % 3]
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("method", [entry.name for entry in masks.methods] if hasattr(masks, "methods") else [])
def test_sparse_training_keeps_the_density_of_coefficients_and_trains_the_basis(method):
    net = residual()[0]
    prunus.interspace_(net, init="orthonormal")
    bases = {name: basis.vectors.detach().clone() for name, _, _, basis in interspaced(net)}
    optimizer = torch.optim.SGD(parameter_groups(net), lr=0.05, momentum=0.9, weight_decay=1e-4)
    pruner = masks.MaskPruner(net, prunus.tensors(net), method, density=0.2, steps=8)
    pruner.attach(optimizer)
    for number in range(8):
        step(net, optimizer, number)
    assert 0 < pruner.finish_().density <= 0.2
    for name, module, leaf, basis in interspaced(net):
        assert 0 < int(coefficients(module, leaf).count_nonzero()) < 0.6 * module.weight.numel()
        assert not torch.equal(basis.vectors, bases[name])
        assert module.weight.ne(0).sum() > coefficients(module, leaf).ne(0).sum()


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_iterated_scores_at_initialisation_are_those_of_plain_weights_to_the_bit(criterion):
    plans = []
    for interspace in (False, True):
        net = residual()[0]
        if interspace:
            prunus.interspace_(net)
        plan = masks.at_init(net, prunus.tensors(net), criterion, density=0.1, rounds=4, data=batches())
        plans.append(plan.to_json())
    assert plans[0] == plans[1]


def test_lottery_tickets_rewind_the_basis_too():
    net = residual()[0]
    prunus.interspace_(net)
    seen = []

    def train(model: nn.Module, number: int) -> None:
        seen.append(model.stem.weight_basis.vectors.detach().clone())
        optimizer = torch.optim.SGD(parameter_groups(model), lr=0.1)
        step(model, optimizer, 0)
        assert not torch.equal(model.stem.weight_basis.vectors, seen[-1])

    masks.lottery_(net, prunus.tensors(net), train, density=0.3, rounds=2)
    assert len(seen) == 3 and all(torch.equal(one, torch.eye(9)) for one in seen)
