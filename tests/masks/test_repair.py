"""OBC, SparseGPT, Wanda and least squares against what is worked out another way."""

from functools import partial

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import score
from prunus.criteria.obc import removal_errors
from prunus.masks.repair import solve_
from prunus.masks.solve import System, exact, fast, obc, repairs, sparsegpt

DOUBLE = torch.float64


def system(rows=4, fan=12, seed=0, density=0.5, **settings) -> System:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(40, fan, generator=draw, dtype=DOUBLE) @ torch.randn(fan, fan, generator=draw, dtype=DOUBLE)
    w = torch.randn(rows, fan, generator=draw, dtype=DOUBLE)
    keep = torch.rand(rows, fan, generator=draw) < density
    return System(w, x.mT @ x / 40, keep, torch.arange(fan), **settings)


def error(s: System, v: torch.Tensor) -> torch.Tensor:
    """(rows,)"""
    return (((v - s.weight) @ s.moment) * (v - s.weight)).sum(1) / 2


def brute_force(w: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Errors added by greedy removal from one row: every step tries each weight and fits the rest again."""
    fan, left, last, top, out = len(w), list(range(len(w))), 0.0, 0.0, torch.zeros(len(w), dtype=DOUBLE)

    def loss(kept):
        v = torch.zeros(fan, dtype=DOUBLE)
        if kept:
            v[kept] = torch.linalg.solve(h[kept][:, kept], h[kept] @ w)
        return float((v - w) @ h @ (v - w)) / 2

    while left:
        losses = [loss([i for i in left if i != p]) for p in left]
        best = min(range(len(left)), key=losses.__getitem__)
        top = max(top, losses[best] - last)
        out[left[best]], last = top, losses[best]
        left.pop(best)
    return out


def test_optimal_brain_surgeon_by_hand():
    h = torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 0.5]], dtype=DOUBLE)
    errors = removal_errors(torch.ones(1, 3, dtype=DOUBLE), h, ridge=0)[0]
    assert errors.argmin() == 0 and errors.tolist() == pytest.approx([0.095, 1.805, 0.25])  # 0.095 + 1.805 = 1.90
    v, _ = exact(System(torch.ones(1, 3, dtype=DOUBLE), h, torch.tensor([[False, True, True]]), torch.arange(3)))
    assert v[0].tolist() == pytest.approx([0, 1.9, 1])


@pytest.mark.parametrize("seed", range(3))
def test_greedy_removal_equals_brute_force(seed):
    s = system(3, 8, seed)
    found = removal_errors(s.weight, s.moment, ridge=0)
    for row, w in zip(found, s.weight):
        torch.testing.assert_close(row, brute_force(w, s.moment), rtol=1e-6, atol=1e-9)


def test_rows_in_small_portions_are_the_same(monkeypatch):
    s = system(5, 10)
    whole = removal_errors(s.weight, s.moment), exact(s)[0]
    monkeypatch.setattr("prunus.criteria.obc.MEMORY", 1)
    monkeypatch.setattr("prunus.masks.solve.MEMORY", 1)
    torch.testing.assert_close((removal_errors(s.weight, s.moment), exact(s)[0]), whole)


def test_exact_is_the_least_squares_solution_on_every_support():
    s = system()
    v, keep = exact(s)
    assert torch.equal(keep, s.keep) and (v[~keep] == 0).all()
    slope = (v - s.weight) @ s.moment
    assert slope[keep].abs().max() < 1e-9 * slope.abs().max()


def test_a_row_without_weights_and_a_whole_row():
    s = system()
    s.keep[0], s.keep[1] = False, True
    v, _ = exact(s)
    assert (v[0] == 0).all()
    torch.testing.assert_close(v[1], s.weight[1])


def test_sparsegpt_column_by_column_is_elimination_in_order():
    """Of a prefix of columns, the sweep is exact: what remains is free."""
    s = system()
    s.keep[:] = torch.arange(12) >= 5
    torch.testing.assert_close(fast(s)[0], exact(s)[0])


@pytest.mark.parametrize("block", [3, 128])
def test_fast_lies_between_nothing_and_exact_and_blocks_do_not_matter(block, monkeypatch):
    s = system(6, 16)
    whole = fast(s)[0]
    monkeypatch.setattr("prunus.masks.solve.BLOCK", block)
    v, keep = fast(s)
    torch.testing.assert_close(v, whole)
    assert torch.equal(keep, s.keep) and (v[~keep] == 0).all()
    assert (error(s, exact(s)[0]) <= error(s, v) + 1e-9).all()
    assert error(s, v).sum() < error(s, s.weight * s.keep).sum()


def test_sparsegpt_of_an_identity_is_magnitude():
    s = system(4, 12)
    s = System(s.weight, torch.eye(12, dtype=DOUBLE), s.keep, s.order)
    v, keep = sparsegpt(s)
    gone = int((~s.keep).sum())
    lowest = s.weight.abs().flatten().argsort()[:gone]
    assert set((~keep).flatten().nonzero().flatten().tolist()) == set(lowest.tolist())
    assert torch.equal(v, s.weight * keep)


@pytest.mark.parametrize("name", ["sparsegpt", "obc"])
@pytest.mark.parametrize("fan", [60, 300])
def test_what_chooses_keeps_as_many_as_the_plan_and_beats_magnitude(name, fan):
    s = system(8, fan, density=0.4)
    count = int(s.keep.sum())
    threshold = s.weight.abs().flatten().sort(descending=True).values[count - 1]
    magnitude = s.weight.abs() >= threshold
    x = torch.randn(4 * fan, fan, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    s = System(s.weight, x.mT @ x / (4 * fan), magnitude, s.order)
    v, keep = repairs[name].call(s)
    assert int(keep.sum()) == count and (v[~keep] == 0).all()
    assert error(s, v).sum() < error(s, s.weight * magnitude).sum()


@pytest.mark.parametrize("name", ["sparsegpt", "obc"])
def test_two_of_four_in_any_order_of_the_columns(name):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    s = system(5, 16, pattern=(2, 4))
    keep = torch.zeros(5, 16, dtype=torch.bool)
    keep[:, order] = torch.arange(16) % 4 < 2
    v, found = repairs[name].call(System(s.weight, s.moment, keep, order, (2, 4)))
    assert (found[:, order].reshape(-1, 4).sum(1) == 2).all() and (v[~found] == 0).all()


def test_even_rows_stay_even():
    s = system(6, 300, even=True)
    keep = torch.arange(300).expand(6, 300) % 5 < 2
    for name in ("sparsegpt", "obc"):
        _, found = repairs[name].call(System(s.weight, s.moment + torch.eye(300), keep, s.order, even=True))
        assert (found.sum(1) == 120).all()


def test_obc_is_the_score_and_least_squares():
    s = system()
    v, keep = obc(s)
    errors = removal_errors(s.weight, s.moment, ridge=0)
    assert errors[keep].min() >= errors[~keep].max()
    assert torch.equal(v, exact(System(s.weight, s.moment, keep, s.order))[0])


def test_wanda_by_hand_and_with_equal_norms():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0]])
    groups = prunus.tensors(model, rows=True)
    stats = prunus.collect(model, groups, [torch.tensor([[3.0, 0.6]]), torch.tensor([[0.0, 0.8]])], {"input-norms"})
    scores = score(groups, "wanda", stats)
    assert scores["0.weight"].tolist() == pytest.approx([3, 2])
    plan = prunus.allocate(groups, scores, prunus.Budget(density=0.5), allocator="uniform")
    assert plan.masks["0.weight"].keep.tolist() == [[True, False]]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    groups = prunus.tensors(model, rows=True)
    stats = prunus.collect(model, groups, [torch.ones(3, 6)], {"input-norms"})
    budget = prunus.Budget(density=0.5)
    plans = [prunus.allocate(groups, score(groups, c, stats), budget, allocator="uniform") for c in ("wanda", "l1")]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("layer", [
    nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    nn.Conv1d(4, 6, 5, dilation=2),
    nn.Conv2d(4, 4, (3, 1), groups=4),
])  # fmt: skip
def test_norms_and_moments_are_those_of_the_unfolded_input(layer, monkeypatch):
    monkeypatch.setattr("prunus.observe.moments.PER_UNKNOWN", 10**6)  # all rows
    x = torch.randn(3, 4, *([11] * (layer.weight.dim() - 2)), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(layer)
    groups = prunus.tensors(model)
    stats = prunus.collect(model, groups, [x], {"input-norms", "input-moments"})
    leaf = layer.weight.detach().clone().requires_grad_()
    out = nn.functional.conv1d if layer.weight.dim() == 3 else nn.functional.conv2d
    y = out(x, leaf, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    squares = out(x.square(), leaf, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    (expected,) = torch.autograd.grad(squares.sum(), leaf)
    torch.testing.assert_close(stats.of("0.weight")["input-norms"].square().float(), expected, rtol=1e-4, atol=1e-4)
    moment = stats.of_group("0.weight")["input-moments"]["0.weight"].values
    rows = y.movedim(1, -1).reshape(-1, layer.groups, len(leaf) // layer.groups)
    w = leaf.detach().flatten(1).reshape(layer.groups, -1, leaf[0].numel()).double()
    by_moment = (w @ moment @ w.mT).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(by_moment, rows.double().var(0, correction=0), rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    """A transformer's linear layers, and one that is stored as (in, out)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = Conv1D(8, 8)
        self.last = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class Conv1D(nn.Module):
    def __init__(self, ins, nf):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(ins, nf) / 3), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).reshape(*x.shape[:-1], self.nf)


def network(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "tokens":
        return Tokens(), torch.randn(64, 5, 8) @ torch.randn(8, 8)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4)), torch.randn(128, 3, 5, 5)


@pytest.mark.parametrize("kind", ["tokens", "convolutions"])
@pytest.mark.parametrize("repair", [entry.name for entry in repairs])
@pytest.mark.parametrize("grain", ["element", "2:4"])
def test_repair_brings_the_network_nearer_to_what_it_was(kind, repair, grain):
    model, x = network(kind)
    wanted = model(x).detach()
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def distance(**settings) -> tuple[float, prunus.masks.Masked]:
        model.load_state_dict(state)
        groups = prunus.tensors(model, grain)
        plan = prunus.allocate(groups, score(groups, "l1"), prunus.Budget(density=0.55))
        report = prunus.mask_(model, groups, plan, **settings)
        return float((model(x).detach() - wanted).square().mean()), report

    plain, before = distance()
    repaired, report = distance(repair=repair, data=[x])
    assert repaired < 0.7 * plain
    assert report.repaired == sum(d < 1 for d in report.densities.values()) > 0
    assert report.densities == pytest.approx(before.densities, abs=0.02) and report.density == before.density
    assert all((dict(model.named_parameters())[n][~m.keep] == 0).all() for n, m in report.plan.masks.items())
    again = prunus.tensors(model, grain)
    again.check_proportions(again.mask(report.plan))  # N of every M


def test_a_whole_mask_changes_nothing_and_one_layer_is_solved_exactly(monkeypatch):
    model, x = (
        nn.Sequential(nn.Linear(6, 5).double()),
        torch.randn(100, 6, dtype=DOUBLE) @ torch.randn(6, 6, dtype=DOUBLE),
    )
    groups, before = prunus.tensors(model), model[0].weight.detach().clone()
    target = model(x).detach()
    assert prunus.mask_(model, groups, groups.plan(torch.ones(30).bool()), repair=True, data=[x]).repaired == 0
    assert torch.equal(model[0].weight, before)
    keep = torch.rand(30, generator=torch.Generator().manual_seed(0)) < 0.6
    monkeypatch.setattr("prunus.masks.mask.solve_", partial(solve_, ridge=0.0))
    prunus.mask_(model, groups, groups.plan(keep), repair=True, data=[x])
    for row, kept in enumerate(keep.reshape(5, 6)):
        design = torch.cat([x[:, kept], torch.ones(100, 1, dtype=DOUBLE)], 1)
        best = torch.linalg.lstsq(design, target[:, row]).solution
        torch.testing.assert_close(model[0].weight[row, kept], best[:-1], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(model[0].bias[row], best[-1], rtol=1e-6, atol=1e-8)


def test_blocks_are_repaired_but_not_chosen_weight_by_weight():
    model, x = network("convolutions")
    groups = prunus.tensors(model, (2, 1), skip="0")
    plan = prunus.allocate(groups, score(groups, "l2"), prunus.Budget(density=0.5))
    with pytest.raises(prunus.InputError, match="chooses single weights"):
        prunus.mask_(model, groups, plan, repair="obc", data=[x])
    assert prunus.mask_(model, groups, plan, repair="fast", data=[x]).plan == plan


def test_a_shared_weight_is_masked_and_not_solved():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    groups = prunus.tensors(model)
    plan = prunus.allocate(groups, score(groups, "l1"), prunus.Budget(density=0.5))
    report = prunus.mask_(model, groups, plan, repair=True, data=[torch.randn(20, 6)])
    assert report.repaired == 0 and "were not repaired" in report.notes[0] and report.density == 0.5


def test_what_the_data_do_not_tell_stays_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False).double())
    x = torch.randn(50, 6, dtype=DOUBLE) * torch.tensor([1.0, 1, 1, 1, 0, 0])  # the last two inputs are never there
    groups, before = prunus.tensors(model), model[0].weight.detach().clone()
    keep = (torch.arange(30) % 6 != 0) & (torch.arange(30) % 6 != 5)
    prunus.mask_(model, groups, groups.plan(keep), repair=True, data=[x])
    after = model[0].weight.detach()
    torch.testing.assert_close(after[:, 4], before[:, 4])
    assert (after[:, 1:4] - before[:, 1:4]).abs().min() > 0 and (after[:, [0, 5]] == 0).all()


def test_layers_that_are_too_wide_for_a_system_are_masked_alone_and_said(monkeypatch):
    monkeypatch.setattr("prunus.masks.repair.LARGEST", 5)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    groups = prunus.tensors(model)
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.5), allocator="uniform")
    report = prunus.mask_(model, groups, plan, repair=True, data=[torch.randn(64, 6)])
    assert report.repaired == 1 and "'0.weight') were not repaired" in report.notes[0]
