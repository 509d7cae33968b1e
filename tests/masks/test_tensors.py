"""Weights as groups of units, their plans, and what they cost."""

import pytest
import torch
from torch import nn

import prunus
from prunus import Budget, BudgetError, InputError, Plan, UnknownNameError
from prunus.core import ELEMENTS, Slice
from prunus.criteria import criteria
from tests.hand_built import batches, residual
from tests.traced import residual as traced


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 6)
    )


def test_a_slice_of_elements_is_a_view_like_any_other_and_scatter_is_its_inverse():
    w = torch.arange(12.0).reshape(3, 4)
    s = Slice("w", ELEMENTS, torch.tensor([[0, 4], [5, 11]]), "out", w)
    assert s.weight.tolist() == [[0, 4], [5, 11]]
    back = s.scatter(s.weight)
    assert back.flatten().nonzero().flatten().tolist() == [4, 5, 11] and torch.equal(s.view(back), s.weight)
    assert s.scatter(torch.ones(2, 1)).sum() == 4


@pytest.mark.parametrize(("grain", "m"), [("element", 1), ("kernel", 9), ((4, 1), 4), ((2, 2), 4)])
def test_units_cover_every_element_once(grain, m):
    groups = prunus.tensors(small(), grain, only=["0", "2"])
    for g in groups:
        index = g.slices[0].index
        assert index.shape == (g.units, m)
        assert index.flatten().sort().values.tolist() == list(range(g.slices[0].tensor.numel()))


def test_blocks_lie_along_outputs_and_inputs():
    groups = prunus.tensors(small(), (4, 2), only="0")
    (g,) = groups
    places = [torch.stack(torch.unravel_index(unit, (8, 4, 3, 3))).mT for unit in g.slices[0].index[:5]]
    for p in places:
        assert p[:, 2:].unique(dim=0).shape[0] == 1  # one position of the kernel
        assert p[:, 0].max() - p[:, 0].min() == 3 and p[:, 1].max() - p[:, 1].min() == 1


def test_what_is_a_weight():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.block = nn.TransformerEncoderLayer(8, 2, 16)
            self.up = nn.ConvTranspose2d(8, 4, 2)
            self.norm = nn.GroupNorm(2, 4)
            self.head = nn.Linear(8, 10)
            self.head.weight = self.embed.weight

    names = [g.id for g in prunus.tensors(Net())]
    layers = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert names == [f"block.{leaf}" for leaf in layers] + ["up.weight"]


def test_only_and_skip():
    assert [g.id for g in prunus.tensors(small(), skip=["0", "4.weight"])] == ["2.weight"]
    with pytest.raises(UnknownNameError, match="pattern 'fc' matches no weight"):
        prunus.tensors(small(), skip="fc")


@pytest.mark.parametrize("grain", ["elements", "4:2", (0, 1), (4,), "2:4:8"])
def test_what_is_no_grain_is_said(grain):
    with pytest.raises(InputError, match="expected 'element', 'kernel', 'filter', a block such as"):
        prunus.tensors(small(), grain)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (2, 8), (5, 8)])
@pytest.mark.parametrize("allocator", ["global", "uniform", "erk"])
def test_n_of_m_keeps_exactly_n_of_every_m_inputs_or_all(n, m, allocator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(16, 5))
    groups = prunus.tensors(model, f"{n}:{m}")
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), Budget(density=0.95), allocator=allocator)
    removed = 0
    for name, mask in plan.masks.items():
        keep = mask.keep.transpose(0, 1) if mask.keep.dim() < 3 else mask.keep.movedim(1, 0)
        kept = keep.reshape(-1, m, *keep.shape[1:]).sum(1).unique().tolist()
        assert kept in ([n], [m]), name
        removed += kept == [n]
    assert removed and all(f.what not in plan.masks for f in groups.fixed)
    least = Budget(density=n / m)
    whole = prunus.allocate(groups, prunus.score(groups, "l1"), least, allocator=allocator)
    assert sum(int(k.keep.sum()) for k in whole.masks.values()) * m == n * groups.costs()["density"]
    with pytest.raises(BudgetError, match="density may be"):
        prunus.allocate(groups, prunus.score(groups, "l1"), Budget(density=n / m - 0.05), allocator=allocator)


def test_n_of_m_keeps_the_largest_of_every_part():
    model = nn.Sequential(nn.Linear(8, 1))
    model[0].weight.data = torch.tensor([[4.0, -3, 2, 1, 0.1, -0.2, 0.3, -0.4]])
    groups = prunus.tensors(model, "2:4")
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), Budget(density=0.5))
    assert plan.masks["0.weight"].keep[0].tolist() == [True, True, False, False, False, False, True, True]


def test_global_magnitude_is_one_threshold_over_raw_weights():
    model = small()
    groups = prunus.tensors(model)
    everything = torch.cat([g.slices[0].tensor.flatten() for g in groups]).abs()
    for density in (0.5, 0.1, 0.05):
        plan = prunus.allocate(groups, prunus.score(groups, "l1"), Budget(density=density))
        kept = torch.cat([plan.masks[g.id].keep.flatten() for g in groups])
        assert kept.sum() == int(density * len(kept))
        assert everything[kept].min() >= everything[~kept].max()


def test_uniform_and_rows():
    groups = prunus.tensors(small(), rows=True)
    plan = prunus.allocate(groups, prunus.score(groups, "l2"), Budget(density=0.5), allocator="uniform")
    for mask in plan.masks.values():
        rows = mask.keep.flatten(1).sum(1)
        assert len(rows.unique()) == 1 and abs(rows[0] / mask.keep[0].numel() - 0.5) < 0.05


def test_erk_densities():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3))
    groups = prunus.tensors(model)
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), Budget(density=0.1), allocator="erk")
    kept = [int(m.keep.sum()) for m in plan.masks.values()]
    assert sum(kept) == 504
    assert kept[0] / 432 == pytest.approx(0.369198, abs=2e-3) and kept[1] / 4608 == pytest.approx(0.074763, abs=2e-4)
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(10, 10, 1))
    groups = prunus.tensors(model)
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), Budget(density=0.5), allocator="erk")
    assert plan.masks["1.weight"].keep.all()


def test_lamp_on_weights():
    model = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2))
    model[0].weight.data = torch.tensor([[2.0, -1, 3]])
    scores = prunus.score(prunus.tensors(model), "lamp")["0.weight"]
    assert scores.tolist() == pytest.approx([4 / 13, 1 / 14, 1])


def test_snip_on_weights():
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[2.0, -1, 0.5]])
    groups = prunus.tensors(model)
    stats = prunus.collect(model, groups, [torch.tensor([[0.1, 0.3, -0.2]])], {"grad"}, loss=lambda out, _: out.sum())
    assert prunus.score(groups, "snip", stats, normalize="sum")["0.weight"].tolist() == pytest.approx(
        [1 / 3, 1 / 2, 1 / 6]
    )


@pytest.mark.parametrize("entry", [e for e in criteria if e.declares["weights"]], ids=lambda e: e.name)
@pytest.mark.parametrize("grain", ["element", (1, 1), "kernel"])
def test_every_criterion_of_weights_scores_them(entry, grain):
    if "norm_scale" in entry.declares["roles"] and "out" not in entry.declares["roles"]:
        pytest.skip("reads norms")
    model, _ = residual()
    groups = prunus.tensors(model, grain)
    stats = prunus.collect(model, groups, batches(), entry.declares["needs"])
    scores = prunus.score(groups, entry.name, stats)
    assert {id: len(s) for id, s in scores.items()} == {g.id: g.units for g in groups}


def test_criteria_of_whole_units_are_refused():
    with pytest.raises(InputError, match="criterion 'fpgm' compares units as wholes"):
        prunus.score(prunus.tensors(small()), "fpgm")


def test_plans_are_data_and_know_their_groups():
    model = small()
    groups = prunus.tensors(model)
    plan = prunus.allocate(groups, prunus.score(groups, "random"), Budget(density=0.3))
    assert Plan.from_json(plan.to_json()) == plan and not plan.identity
    keep = groups.mask(plan)
    assert groups.plan(keep) == plan and int(keep.sum()) == groups.costs(keep)["density"]
    with pytest.raises(InputError, match="splits units of '0.weight'"):
        prunus.tensors(model, (2, 1), only="0").mask(Plan(masks={"0.weight": plan.masks["0.weight"]}))
    with pytest.raises(InputError, match="this plan masks weights"):
        network, channels = traced()
        prunus.shrink_(network, channels, plan)


def test_budgets_of_another_kind_are_refused():
    groups = prunus.tensors(small())
    with pytest.raises(BudgetError, match="these groups count density"):
        prunus.allocate(groups, prunus.score(groups, "l1"), Budget(macs=0.5))
    _, channels = traced()
    with pytest.raises(BudgetError, match="these groups count params, macs"):
        prunus.allocate(channels, prunus.score(channels, "l1"), Budget(density=0.5))


def test_statistics_of_units_are_refused():
    model, _ = residual()
    with pytest.raises(InputError, match="keyed by the operators of a trace"):
        prunus.collect(model, prunus.tensors(model), batches(), {"moments"})
