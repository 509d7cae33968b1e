"""The fewest units that go, against a ranking written out in full; and how much of it is sorted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunus
from prunus.allocators import Problem, allocate, kept, removal
from prunus.allocators.uniform import uniform
from prunus.core import Budget, BudgetError

DRAWN = {
    "few values": lambda n, g: torch.randint(0, 4, (n,), generator=g).double(),
    "one value": lambda n, g: torch.full((n,), 0.5, dtype=torch.float64),
    "heavy tail": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64).pow(9),
    "most are lowest": lambda n, g: torch.rand(n, generator=g, dtype=torch.float64).sub(0.9).clamp(min=0),
    "sorted": lambda n, g: torch.arange(n, dtype=torch.float64),
}


def network(*widths):
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in zip(widths, widths[1:])))


def written_out(groups, values, limit, floors):
    """Keep masks by removing one step after the other, in Python."""
    places, steps = {}, []
    for number, g in enumerate(groups):
        (quantum,) = groups.quanta([g.id])
        rows = values[g.id].reshape(g.parts, -1).tolist()
        order = [sorted(range(g.count), key=lambda i, row=row: (row[i], i)) for row in rows]
        length = math.ceil(g.count / quantum)
        for k in range(length):
            going = [(p, i) for p, o in enumerate(order) for i in o[k * quantum : (k + 1) * quantum]]
            places[number, k] = going
            steps.append((sum(rows[p][i] for p, i in going) / len(going), number, k, length))
    steps.sort()
    keep = torch.ones(groups.units, dtype=torch.bool)
    gone = {}
    for _, number, _, length in steps:
        if groups.costs(keep)["density"] <= limit:
            return keep
        g, k = groups[number], gone.get(number, 0)
        gone[number] = k + 1
        (quantum,) = groups.quanta([g.id])
        if length - k - 1 < math.ceil(floors[g.id] / quantum):
            continue
        for p, i in places[number, k]:
            keep[g.offset + p * g.count + i] = False
    return keep


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(DRAWN)),
    st.sampled_from(["element", "kernel", (2, 2), "2:4", "1:4", "rows"]),
    st.floats(0.05, 1.0),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 10**6),
)
def test_what_goes_is_what_a_ranking_written_out_says(kind, grain, density, floor, seed):
    generator = torch.Generator().manual_seed(seed)
    model = network(8, 12, 4)
    groups = prunus.tensors(model, "element" if grain == "rows" else grain, rows=grain == "rows")
    scores = {g.id: DRAWN[kind](g.units, generator) for g in groups}
    floors = {g.id: max(math.ceil(floor * g.count), g.floor, 1) for g in groups}
    limit = int(density * groups.costs()["density"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal, "FEW", 4)
        patch.setattr(removal, "PIVOTS", 3)
        try:
            keep = kept(groups, scores, Budget(density=density), floor=floor)
        except BudgetError as error:
            assert error.least["density"] > limit
            return
    assert torch.equal(keep, written_out(groups, scores, limit, floors))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(DRAWN)), st.integers(1, 3), st.integers(0, 10**6), st.integers(1, 12))
def test_the_lowest_of_every_row_are_those_of_a_stable_sort(kind, rows, seed, count):
    values = DRAWN[kind](rows * 11, torch.Generator().manual_seed(seed)).reshape(rows, 11)
    expected = torch.zeros(rows, 11, dtype=torch.bool)
    expected.scatter_(1, values.argsort(dim=1, stable=True)[:, :count], True)
    assert torch.equal(removal.lowest(values, count), expected)


@pytest.mark.parametrize("allocator", ["uniform", "erk"])
@pytest.mark.parametrize("rows", [False, True])
def test_an_order_of_its_own_comes_out_as_the_ranking_unit_by_unit(allocator, rows):
    groups = prunus.tensors(network(8, 12, 4), rows=rows)
    scores = {g.id: torch.randint(0, 5, (g.units,)).double() for g in groups}
    ranking = {}
    for g in groups:
        ranks = torch.empty(g.units, dtype=torch.float64)
        ranks[scores[g.id].argsort(stable=True)] = torch.arange(1, g.units + 1, dtype=torch.float64)
        t = g.slices[0].tensor
        ranking[g.id] = ranks / g.units
        if allocator == "erk":
            ranking[g.id] = -(g.units + 1 - ranks) / g.units * t.numel() / sum(t.shape)
    limits = Budget(density=0.3).limits(groups.costs())
    problem = Problem(groups, scores, limits, {g.id: 1 for g in groups})
    assert torch.equal(kept(groups, scores, Budget(density=0.3), allocator=allocator), problem.remove_lowest(ranking))
    assert allocator == "erk" or torch.equal(uniform(problem), problem.remove_lowest(ranking))


class Sorted(TorchDispatchMode):
    """How many elements are sorted, and how many are looked through for the k-th."""

    def __init__(self):
        super().__init__()
        self.sorted = self.searched = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.sorted += args[0].numel() if name in ("sort", "argsort", "topk") else 0
        self.searched += args[0].numel() if name == "kthvalue" else 0
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("allocator", ["global", "uniform", "erk"])
@pytest.mark.parametrize("kind", sorted(DRAWN))
def test_of_many_weights_few_are_sorted(allocator, kind):
    groups = prunus.tensors(network(500, 600, 500))
    generator = torch.Generator().manual_seed(0)
    scores = {g.id: DRAWN[kind](g.units, generator) for g in groups}
    with Sorted() as seen:
        plan = allocate(groups, scores, Budget(density=0.3), allocator=allocator)
    assert seen.sorted <= groups.units // 4 and seen.searched <= groups.units
    assert groups.costs(groups.mask(plan)) == {"density": int(0.3 * groups.units)}
