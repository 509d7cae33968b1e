"""Both ways to run a layer in a basis give the same, and what they cost is what the formulas say."""

import pytest
import torch
from torch import nn

import prunus
from prunus.bases import costs, interspaced, mixing
from prunus.bases.basis import coefficients
from prunus.zoo import resnet20

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 7)),
    "stride": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 7, 7)),
    "groups": (nn.Conv2d(4, 6, (3, 5), groups=2, padding="same"), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (2, 4, 7, 7)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7)),
    "circular": (nn.Conv1d(4, 6, 4, padding=2, padding_mode="circular"), (2, 4, 9)),
    "no batch": (nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "3d": (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 5, 5, 5)),
    "linear": (nn.Linear(12, 5), (2, 3, 12)),
    "linear, rows": (nn.Linear(12, 5), (2, 12)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_answers_mixed_are_filters_recomposed(name):
    layer, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    net = nn.Sequential(layer).double()
    x = torch.randn(shape, dtype=torch.float64)
    prunus.interspace_(net, init="orthonormal", block=4)
    with torch.no_grad():
        layer.weight_basis.vectors += 0.2 * torch.randn_like(layer.weight_basis.vectors)
        coefficients(layer)[torch.rand_like(coefficients(layer)) < 0.7] = 0
    wanted = net(x).detach()
    with mixing(net) as names:
        found = net(x).detach()
    assert names == ("0.weight",) and found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-12 and not torch.equal(found, torch.zeros_like(found))
    assert torch.equal(net(x), wanted) and "forward" not in vars(layer)
    prunus.fold_(net)


def test_a_whole_network_and_its_gradients_are_the_same_both_ways():
    torch.manual_seed(0)
    net = resnet20().double().eval()
    prunus.interspace_(net, "medium", "orthonormal")
    x, grads = torch.randn(2, 3, 16, 16, dtype=torch.float64), []
    with mixing(net) as names:
        mixed = net(x)
        mixed.square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in net.named_parameters()})
    net.zero_grad()
    wanted = net(x)
    wanted.square().sum().backward()
    assert len(names) == 19
    assert float(((mixed - wanted).abs().max() / wanted.abs().max()).detach()) <= 1e-12
    for name, p in net.named_parameters():
        assert torch.allclose(p.grad, grads[0][name], rtol=1e-8, atol=1e-10), name


def test_forward_is_put_back_when_something_fails():
    net = nn.Sequential(nn.Conv2d(4, 6, 3))
    prunus.interspace_(net)
    with pytest.raises(RuntimeError), mixing(net):
        net(torch.zeros(1, 3, 7, 7))
    assert "forward" not in vars(net[0])


@pytest.mark.parametrize(
    ("wide", "size", "dense", "sparse", "mixed"),
    [(64, 28, 28.9e6, 2.89e6, 6.95e6), (512, 7, 115.6e6, 11.56e6, 13.59e6)],
)
def test_multiply_adds_of_the_worked_examples(wide, size, dense, sparse, mixed):
    net = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, bias=False))
    prunus.interspace_(net)
    with torch.no_grad():
        gone = torch.randperm(wide * wide * 9, generator=torch.Generator().manual_seed(0))[: int(0.9 * wide * wide * 9)]
        coefficients(net[0]).view(-1)[gone] = 0
    found = costs(net, torch.zeros(2, wide, size, size))
    assert found.rate == pytest.approx(0.9, abs=1e-4)
    assert found.dense == pytest.approx(dense, rel=2e-3)
    assert found.sparse == pytest.approx(sparse, rel=2e-3)
    assert found.mixed == pytest.approx(mixed, rel=2e-3)
    assert found.recompose == found.nonzero * 9
    assert (found.mixed - found.sparse) / found.dense == pytest.approx(9 / wide, rel=1e-3)  # 14.1 %, 1.76 %


def test_the_pruning_rate_counts_coefficients_and_plain_weights_over_the_dense_networks_weights():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 10)
    )
    x = torch.randn(3, 3, 6, 6)
    plain = costs(net, x)
    assert (plain.prunable, plain.nonzero, plain.rate, plain.basis, plain.recompose) == (552, 552, 0.0, 0, 0)
    assert plain.dense == plain.sparse == plain.mixed == 216 * 16 + 32 * 16 + 144 * 4 + 160
    prunus.interspace_(net, "coarse")
    with torch.no_grad():
        coefficients(net[0])[:, 0] = 0  # 72
        net[5].weight[:, :8] = 0  # 80
        net[3].weight_basis.vectors[0, 4] = 1.0
    found = costs(net, x)
    assert found.prunable == 552 and found.nonzero == 552 - 152 and found.rate == pytest.approx(152 / 552)
    assert found.basis == 81  # shared: once
    assert found.mixed - found.sparse == 3 * 81 * 16 + 4 * 81 * 4
    assert found.sparse == 144 * 16 + 32 * 16 + 144 * 4 + 80
    assert found.recompose == (144 + 144) * 9 and "pruning rate 27.54%" in str(found)


def test_a_grouped_convolution_answers_for_every_input_channel_once():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    prunus.interspace_(net)
    assert costs(net, torch.zeros(1, 4, 5, 5)).mixed == 9 * (4 * 81 + 6 * 2 * 9)


def test_linear_blocks_cost_their_basis_and_what_is_not_called_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 6)

        def forward(self, x):
            return self.fc(self.attention(x, x, x)[0])

    net = Net()
    prunus.interspace_(net, block=4)
    found = costs(net, torch.randn(2, 5, 8))
    assert found.dense == 5 * 48 and found.mixed == 5 * (48 + 8 * 4)  # rows of one sample
    assert found.uncounted == ("attention.in_proj_weight", "attention.out_proj.weight")


def test_bases_are_a_ten_thousandth_of_the_parameters_and_less_where_they_are_shared():
    with torch.device("meta"):
        net = prunus.zoo.vgg16()
    wide = sum(p.numel() for p in net.parameters())
    prunus.interspace_(net.to_empty(device="cpu"))
    entries = sum(b.vectors.numel() for *_, b in interspaced(net))
    assert entries == 13 * 81 and entries / wide <= 1e-4


def test_criteria_and_repairs_that_look_at_inputs_see_the_answers_of_the_basis_while_layers_run_mixed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3)).double()
    prunus.interspace_(net, init="orthonormal")
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    groups, basis, given = prunus.tensors(net), net[0].weight_basis, coefficients(net[0]).detach()
    with mixing(net):
        scores = prunus.score(groups, "wanda", prunus.collect(net, groups, [x], {"input-norms"}))
    kernels = basis.directions().reshape(9, 1, 3, 3)
    answers = [nn.functional.conv2d(x[:, i : i + 1], kernels, padding=1).detach() for i in range(3)]
    norms = torch.stack([a.square().sum((0, 2, 3)).sqrt() for a in answers])  # (in, m)
    wanted = (given.abs().flatten(2) * norms).flatten()
    assert torch.allclose(scores["0.weight"] / scores["0.weight"].max(), wanted / wanted.max(), rtol=1e-10)
    before, errors = net(x).detach(), {}
    state = {n: p.detach().clone() for n, p in net.named_parameters()}
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.5))
    for repair in (False, "exact"):
        for n, p in net.named_parameters():
            p.data.copy_(state[n])
        with mixing(net):
            done = prunus.mask_(net, groups, plan, repair=repair, data=[x])
        assert done.repaired == (2 if repair else 0) and done.density <= 0.5
        errors[repair] = float((net(x) - before).detach().norm())
    assert errors["exact"] < 0.7 * errors[False]
