"""Which weights get a basis, which basis, where it starts, and that every method takes coefficients as weights."""

import copy
import inspect

import pytest
import torch
from torch import nn

import prunus
from prunus import InputError, UnknownNameError
from prunus.bases import (
    Basis,
    Interspaced,
    dictionary,
    inits,
    interspaced,
    parameter_groups,
    shared,
    sparse_dictionary,
)
from prunus.bases.basis import coefficients
from prunus.core import ELEMENTS
from prunus.zoo import resnet20, vgg16
from tests.hand_built import batches, chain, residual

SCORED = {"l1": 1, "l2": 1, "random": 1, "snip": 1, "taylor": 1, "grasp": 2, "synflow": 1, "lamp": 1}


def names_of(report: Interspaced) -> list[tuple[str, ...]]:
    return list(report.bases)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.attention(x, x, x, need_weights=False)[0])


# ---- every scored method -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("name", [*SCORED])
def test_in_the_standard_basis_every_scored_method_is_as_it_is_for_plain_weights_to_the_bit(name, unit):
    plain, net = chain()[0], chain()[0]
    prunus.interspace_(net, unit=unit)
    data = batches()
    assert torch.equal(net(data[0][0]), plain(data[0][0]))
    found = []
    for one in (plain, net):
        groups = prunus.tensors(one)
        needs = prunus.criteria.base.criteria[name].declares.get("needs", set())
        stats = prunus.collect(one, groups, data, needs) if needs else None
        scores = prunus.score(groups, name, stats)
        found.append((scores, prunus.allocate(groups, scores, prunus.Budget(density=0.3))))
    (scores, plan), (others, other) = found
    assert list(scores) == list(others) and all(torch.equal(scores[id], others[id]) for id in scores)
    assert plan.to_json() == other.to_json() and len(plan.masks) == 3


def test_a_network_trains_to_the_same_weights_when_its_standard_basis_is_frozen():
    plain, net = chain()[0].double(), chain()[0].double()
    prunus.interspace_(net, unit=False)
    for _, _, _, basis in interspaced(net):
        basis.requires_grad_(False)
    plan = None
    for one in (plain, net):
        groups = prunus.tensors(one)
        plan = plan or prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.4))
        prunus.mask_(one, groups, plan)
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        for x, y in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(one(x.double()), y).backward()
            optimizer.step()
    for name, p in plain.named_parameters():
        assert torch.allclose(p, dict(net.named_parameters())[name], rtol=1e-12, atol=1e-14), name


def test_units_of_coefficients_are_single_ones_kernels_and_blocks():
    net = chain()[0]
    prunus.interspace_(net, init="orthonormal")
    for grain in ("element", "kernel", (2, 1)):
        group = prunus.tensors(net, grain, only="conv2.weight")["conv2.weight"]
        assert group.slices[0].dim == ELEMENTS and group.slices[0].tensor is coefficients(net.conv2)


# ---- which weights, which basis ------------------------------------------------------------------------------------


def test_sharing_is_fine_medium_coarse_or_the_users_own():
    assert len(prunus.interspace_(resnet20()).bases) == 19
    medium = prunus.interspace_(resnet20(), "medium").bases
    assert [len(names) for names in medium] == [1, 6, 6, 6] and medium[0] == ("conv1.weight",)
    assert all(name.startswith("layer2.") for name in medium[2])
    assert [len(names) for names in prunus.interspace_(vgg16(), "medium").bases] == [2, 2, 3, 3, 3]
    coarse = resnet20()
    assert len(prunus.interspace_(coarse, "coarse").bases) == 1
    assert coarse.conv1.weight_basis is coarse.layer3[2].conv2.weight_basis
    own = prunus.interspace_(resnet20(), lambda name: "conv1" in name).bases
    assert [len(names) for names in own] == [10, 9]
    mapped = prunus.interspace_(resnet20(), {"layer1": "a", "layer3.*.conv1.weight": "a", "layer2": 2}).bases
    assert sorted(map(len, mapped)) == [1, 1, 1, 1, 6, 9]


def test_stages_of_other_networks():
    from prunus.core.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        found = {name: getattr(models, name)() for name in ("resnet18", "resnet50", "vgg16_bn")}
    for name, counts in (("resnet18", [1, 4, 4, 4, 4]), ("resnet50", [1, 3, 4, 6, 3]), ("vgg16_bn", [2, 2, 3, 3, 3])):
        net = found[name]
        names = [f"{n}.weight" for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
        stages = list(shared(nn.Sequential(net), [f"0.{n}" for n in names], "medium").values())
        assert [stages.count(stage) for stage in dict.fromkeys(stages)] == counts
        assert stages == list(shared(net, names, "medium").values())


def test_kernels_of_different_sizes_never_share():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, (1, 9)), nn.Conv2d(4, 4, 5))
    assert len(prunus.interspace_(net, "coarse").bases) == 3


def test_what_has_no_spatial_kernel_stays_as_it_is_and_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, 10), nn.LSTM(10, 4))
    report = prunus.interspace_(net, block=4)
    assert names_of(report) == [("0.weight",), ("3.weight",)]
    left = {f.what: f.why for f in report.left_alone}
    assert left["1.weight"] == "it has no kernel of several positions" and "LSTM" in left["4.weight_ih_l0"]
    assert "2 weights in 2 bases" in str(report) and "left as it is: 1.weight" in str(report)
    assert type(net[1]) is nn.Conv2d and isinstance(net[1]._parameters["weight"], nn.Parameter)


def test_tied_layers_hold_one_set_of_coefficients():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    net[1].weight = net[0].weight
    x = torch.randn(1, 4, 5, 5)
    wanted = net(x)
    prunus.interspace_(net, init="svd")
    assert coefficients(net[0]) is coefficients(net[1]) and net[0].weight_basis is net[1].weight_basis
    assert torch.allclose(net(x), wanted, atol=1e-5)
    prunus.fold_(net)
    assert net[1].weight is net[0].weight and torch.allclose(net(x), wanted, atol=1e-5)


def test_linear_layers_and_attention_by_blocks():
    torch.manual_seed(0)
    net = Attention().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    wanted = net(x)
    report = prunus.interspace_(net, "fine", "orthonormal", block=8)
    assert [n for names in report.bases for n in names] == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "fc.weight",
    ]
    assert torch.allclose(net(x), wanted, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), wanted, rtol=0, atol=1e-12)  # the fused path too
    given, vectors = coefficients(net.fc), net.fc.weight_basis.vectors
    wanted_block = sum(given[3, 8 + n] * vectors[n] for n in range(8))
    assert torch.allclose(net.fc.weight[3, 8:], wanted_block, rtol=0, atol=1e-14)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert len(prunus.tensors(net)) == 3


# ---- where it starts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", "orthonormal", "svd"])
@pytest.mark.parametrize("sharing", ["fine", "coarse"])
def test_every_initialisation_by_name_keeps_the_function(name, sharing):
    net = residual()[0].double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    wanted = net(x)
    report = prunus.interspace_(net, sharing, name)
    assert report.error < 1e-14 and torch.allclose(net(x), wanted, rtol=0, atol=1e-12)
    for *_, basis in interspaced(net):
        assert torch.allclose(basis.vectors @ basis.vectors.mT, torch.eye(9).double(), rtol=0, atol=1e-13)


def test_orthonormal_bases_are_drawn_by_the_seed():
    found = []
    for seed in (0, 0, 1):
        net = chain()[0]
        prunus.interspace_(net, init="orthonormal", seed=seed)
        found.append(net.conv1.weight_basis.vectors.detach())
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], net.conv2.weight_basis.vectors)


def test_singular_vectors_hold_as_much_of_the_filters_as_any_basis_can():
    net = chain()[0].double()
    filters = torch.cat([net.conv1.weight.reshape(-1, 9), net.conv2.weight.reshape(-1, 9)]).detach()
    prunus.interspace_(net, "coarse", "svd")
    made = torch.cat([coefficients(m).detach().reshape(-1, 9) for m in (net.conv1, net.conv2)])
    assert torch.allclose(made.norm(dim=0), torch.linalg.svdvals(filters), rtol=1e-10)


def test_an_initialisation_of_ones_own():
    net = chain()[0].double()
    weight = net.conv2.weight.detach().clone()
    prunus.interspace_(net, init=lambda u, g: (2 * torch.eye(9).double(), u / 2), unit=False)
    assert torch.equal(coefficients(net.conv2), weight / 2) and torch.equal(net.conv2.weight, weight)
    with pytest.raises(InputError, match=r"basis \(8, 8\) and coefficients"):
        prunus.interspace_(chain()[0], init=lambda u, g: (torch.eye(8), u))
    assert {e.name for e in inits} == {"standard", "orthonormal", "svd"}


def test_a_mask_of_the_weights_does_not_hold_the_coefficients():
    net = chain()[0]
    groups = prunus.tensors(net)
    prunus.mask_(net, groups, prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.2)))
    prunus.interspace_(net, init="orthonormal", skip="fc.weight")
    net(batches()[0][0]).square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    assert coefficients(net.conv2).ne(0).double().mean() > 0.5 and net.fc.weight.eq(0).any()


# ---- with the rest of the package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["standard", "orthonormal"])
def test_channels_are_cut_inside_the_interspace(init):
    torch.manual_seed(0)
    net = residual(8, 10)[0]
    prunus.interspace_(net, init=init)
    plain = copy.deepcopy(net)
    prunus.fold_(plain)
    x = torch.randn(2, 3, 6, 6)
    groups, others = prunus.trace(net, x), prunus.trace(plain, x)
    assert [(g.id, g.units, [(s.name, s.dim, s.role) for s in g.slices]) for g in groups] == [
        (g.id, g.units, [(s.name, s.dim, s.role) for s in g.slices]) for g in others
    ]
    scores = {g.id: torch.rand(g.units, generator=torch.Generator().manual_seed(g.units)) for g in groups}
    plan = prunus.allocate(groups, scores, prunus.Budget(params=0.6))
    report = prunus.shrink_(net, groups, plan)
    assert report.in_place and report.verified.exact and report.verified.max_relative_error < 1e-12
    assert report.after["params"] < report.before["params"]
    prunus.shrink_(plain, others, plan)
    prunus.fold_(net)
    assert torch.allclose(net.eval()(x), plain.eval()(x), atol=1e-6)


def test_depthwise_and_transposed_layers_play_the_same_roles_in_a_basis():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.c, self.d = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            return self.d(self.c(self.b(self.a(x))))

    net = Net()
    x = torch.randn(2, 3, 6, 6)
    plain = prunus.trace(net, x)
    prunus.interspace_(net)
    for found, wanted in zip(prunus.trace(net, x), plain, strict=True):
        assert [(s.name, s.dim, s.role) for s in found.slices] == [(s.name, s.dim, s.role) for s in wanted.slices]


@pytest.mark.parametrize("init", ["standard", "orthonormal", "svd"])
def test_a_network_in_a_basis_is_saved_and_loaded(tmp_path, init):
    def built() -> nn.Module:
        net = residual()[0]
        prunus.interspace_(net, "medium", init)
        return net

    net = built()
    x = torch.randn(2, 3, 6, 6)
    groups = prunus.tensors(net)
    prunus.mask_(net, groups, prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.5)))
    with torch.no_grad():
        for *_, basis in interspaced(net):
            basis.vectors += 0.1 * torch.randn(9, 9)
    cut = prunus.trace(net, x)
    prunus.shrink_(net, cut, prunus.allocate(cut, prunus.score(cut, "l2"), prunus.Budget(params=0.8)))
    prunus.save(net, tmp_path / "net.safetensors")
    again = prunus.load(tmp_path / "net.safetensors", built)
    assert torch.equal(again.eval()(x), net.eval()(x))
    first, second = (list(interspaced(one)) for one in (net, again))
    assert [(n, id(b) == id(first[0][3])) for n, *_, b in first] == [
        (n, id(b) == id(second[0][3])) for n, *_, b in second
    ]


def test_a_network_that_was_cut_before_is_saved_too(tmp_path):
    net, x = residual(8, 10)[0], torch.randn(2, 3, 6, 6)
    prunus.prune_(net, x, criterion="l2", budget=prunus.Budget(params=0.7))
    prunus.interspace_(net, init="orthonormal")
    prunus.save(net, tmp_path / "net.safetensors")

    def built() -> nn.Module:
        fresh = residual(8, 10)[0]
        prunus.interspace_(fresh)
        return fresh

    assert torch.equal(prunus.load(tmp_path / "net.safetensors", built).eval()(x), net.eval()(x))
    with pytest.raises(prunus.FileError, match="weight_basis.vectors"):
        prunus.load(tmp_path / "net.safetensors", lambda: residual(8, 10)[0])


def test_linear_layers_in_blocks_are_cut_by_whole_blocks_and_by_positions_in_all_blocks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    prunus.interspace_(net, block=4, init="orthonormal")
    x = torch.randn(4, 8)
    for cut in (
        ["0/heads"],
        ["2/heads"],
        ["0/head_dim", "2.weight_basis.vectors", "2/head_dim", "4.weight_basis.vectors"],
    ):
        one = copy.deepcopy(net)
        groups = prunus.trace(one, x)
        keep = torch.ones(groups.units, dtype=torch.bool)
        for id in cut:
            keep[groups[id].offset] = False
        report = prunus.shrink_(one, groups, groups.plan(keep))
        assert report.in_place and report.verified.max_relative_error < 1e-12
        wanted = one(x)
        prunus.fold_(one)
        assert torch.allclose(one(x), wanted, atol=1e-6)
        assert one[2].weight.shape[1] == (12 if cut != ["2/heads"] else 16)


def test_channels_go_while_coefficients_train():
    net, data = residual(8, 10)[0], batches()
    prunus.interspace_(net)
    optimizer = torch.optim.SGD(parameter_groups(net), lr=0.05, momentum=0.9)
    pruner = prunus.Pruner(net, data[0][0], budget=prunus.Budget(params=0.6), schedule=lambda step: min(step / 4, 1.0))
    pruner.attach(optimizer)
    for x, y in data * 2:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    report = pruner.finish_()
    assert report.in_place and len(list(interspaced(net))) == 3
    assert report.after["params"] <= 0.6 * report.before["params"]
    optimizer.zero_grad()
    net(data[0][0]).sum().backward()
    optimizer.step()


def test_bad_input_says_what_to_do_and_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4))
    with pytest.raises(InputError, match=r"0.weight, it has no kernel.*Linear layers are taken in blocks: block=8"):
        prunus.interspace_(net)
    with pytest.raises(InputError, match="its 4 inputs are not divisible by block=8"):
        prunus.interspace_(net, block=8)
    with pytest.raises(InputError, match="block=1.: expected a whole number"):
        prunus.interspace_(net, block=1)
    net = chain()[0]
    keys = list(net.state_dict())
    with pytest.raises(InputError, match="sharing='fin'"):
        prunus.interspace_(net, "fin")
    with pytest.raises(UnknownNameError, match="Did you mean 'orthonormal'"):
        prunus.interspace_(net, init="orthonormall")
    with pytest.raises(UnknownNameError, match="'conv7' matches no weight"):
        prunus.interspace_(net, skip="conv7")
    with pytest.raises(UnknownNameError, match="sharing: pattern 'conv7'"):
        prunus.interspace_(net, {"conv7": 1})
    assert list(net.state_dict()) == keys and type(net.conv1) is nn.Conv2d
    report = prunus.interspace_(net, skip=["conv1"])
    assert names_of(report) == [("conv2.weight",)] and report.left_alone[0].why == "it is skipped"
    with pytest.raises(InputError, match="'conv2.weight' is in a basis already: prunus.fold_"):
        prunus.interspace_(net)


def test_defaults():
    given = {name: p.default for name, p in inspect.signature(prunus.interspace_).parameters.items()}
    del given["model"]
    assert given == {"sharing": "fine", "init": "standard", "block": None, "unit": True, "skip": (), "seed": 0}
    assert inspect.signature(dictionary).parameters["rounds"].default == 10
    assert inspect.signature(sparse_dictionary).parameters["rounds"].default == 10
    assert inspect.signature(parameter_groups).parameters["basis_decay"].default == 0
    assert Basis(torch.eye(4)).unit and not Basis.decays
    bases = []
    for options in ({}, {"seed": 0}, {"seed": 1}):
        net = nn.Sequential(nn.Conv2d(3, 4, 3))
        prunus.interspace_(net, init="orthonormal", **options)
        bases.append(net[0].weight_basis.vectors)
    assert torch.equal(bases[0], bases[1]) and not torch.equal(bases[0], bases[2])
