"""What goes, by hand-made scores, and what it costs, by counting."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from prunus.allocators import allocate
from prunus.core import Budget, BudgetError, InputError, UnknownNameError
from tests.hand_built import chain, groups_of, residual


def scores_of(groups, **values):
    return {id: torch.tensor(v, dtype=torch.float64) for id, v in values.items()}


def columns(*sizes):
    """Independent layers of one input: every unit costs one multiply-add, so that MACs count units."""
    model = nn.ModuleList(nn.Linear(1, n, bias=False) for n in sizes)
    members = {f"g{i}": (n, [(f"{i}.weight", 0, "out")]) for i, n in enumerate(sizes)}
    return groups_of(model, members, [(1, [f"g{i}"]) for i in range(len(sizes))])


def kept(plan):
    return {id: list(g.kept) for id, g in plan.groups.items()}


def test_the_lowest_of_the_whole_network_go_first():
    groups = columns(3, 2)
    scores = scores_of(groups, g0=[0.9, 0.1, 0.5], g1=[0.2, 0.8])  # the slimming percentile of 40 %: two of five
    assert kept(allocate(groups, scores, Budget(macs=3))) == {"g0": [0, 2], "g1": [1]}
    assert kept(allocate(groups, scores, Budget(macs=2))) == {"g0": [0], "g1": [1]}


def test_a_layer_that_would_be_emptied_keeps_its_best_unit():
    groups = columns(3, 2)
    scores = scores_of(groups, g0=[0.1, 0.3, 0.2], g1=[0.8, 0.9])
    assert kept(allocate(groups, scores, Budget(macs=2))) == {"g0": [1], "g1": [1]}


def test_ties_take_no_more_than_needed_and_go_by_order():
    groups = columns(3, 3)
    scores = scores_of(groups, g0=[0.5, 0.5, 0.5], g1=[0.5, 0.5, 0.5])
    assert kept(allocate(groups, scores, Budget(macs=4))) == {"g0": [2], "g1": [0, 1, 2]}
    assert kept(allocate(groups, scores, Budget(macs=3))) == {"g0": [2], "g1": [1, 2]}


def test_uniform_takes_the_same_fraction_of_every_group():
    groups = columns(4, 8)
    scores = scores_of(groups, g0=[10.0, 12.0, 11.0, 13.0], g1=[0.1 * i for i in range(8)])
    assert kept(allocate(groups, scores, Budget(macs=6), allocator="uniform")) == {"g0": [1, 3], "g1": [4, 5, 6, 7]}
    plan = allocate(groups, scores, Budget(macs=9), allocator="uniform")
    assert kept(plan) == {"g0": [1, 2, 3], "g1": [2, 3, 4, 5, 6, 7]}


def test_global_and_uniform_differ_where_one_group_is_weak():
    groups = columns(4, 4)
    scores = scores_of(groups, g0=[1.0, 2.0, 3.0, 4.0], g1=[5.0, 6.0, 7.0, 8.0])
    widths = {
        name: [len(k) for k in kept(allocate(groups, scores, Budget(macs=5), allocator=name)).values()]
        for name in ("global", "uniform")
    }
    assert widths == {"global": [1, 4], "uniform": [2, 3]}


def test_the_default_floor_is_one_percent_rounded_up():
    groups = columns(150, 350)
    scores = scores_of(groups, g0=[0.0] * 150, g1=[1.0] * 350)
    plan = allocate(groups, scores, Budget(macs=6))
    assert [len(k) for k in kept(plan).values()] == [2, 4]
    with pytest.raises(BudgetError, match=r"macs may be 5 at most, but the least reachable is 6 \(1.2% of 500\)"):
        allocate(groups, scores, Budget(macs=5))


@pytest.mark.parametrize(("floor", "least"), [(3, [3, 3]), (0.5, [5, 4]), (0.0, [1, 1]), (0, [1, 1]), (100, [10, 7])])
def test_a_floor_is_a_number_or_a_fraction(floor, least):
    groups = columns(10, 7)
    scores = scores_of(groups, g0=list(range(10)), g1=list(range(7)))
    plan = allocate(groups, scores, Budget(macs=sum(least)), floor=floor)
    assert [len(k) for k in kept(plan).values()] == least
    if sum(least) > 2:
        with pytest.raises(BudgetError, match=f"least reachable is {sum(least)} "):
            allocate(groups, scores, Budget(macs=sum(least) - 1), floor=floor)


@pytest.mark.parametrize("floor", [-1, 1.5, True, "2", float("nan")])
def test_a_floor_that_is_none_is_refused(floor):
    groups = columns(2)
    with pytest.raises(InputError, match="floor="):
        allocate(groups, scores_of(groups, g0=[1.0, 2.0]), Budget(macs=1), floor=floor)


def test_kept_counts_are_multiples_where_the_group_is_that_wide():
    groups = columns(40, 20, 10)
    scores = scores_of(groups, g0=list(range(40)), g1=list(range(20)), g2=list(range(10)))
    widths = [len(k) for k in kept(allocate(groups, scores, Budget(macs=40), round_to=16)).values()]
    assert widths == [16, 16, 1]  # while the first group has more than 16 left, it keeps 32: 32 + 16 + 1 > 40


def test_a_group_as_wide_as_the_multiple_stays_whole_and_a_narrower_one_gives():
    groups = columns(16, 15)
    scores = scores_of(groups, g0=[0.0] * 16, g1=[1.0] * 15)
    plan = allocate(groups, scores, Budget(macs=20), round_to=16)
    assert [len(k) for k in kept(plan).values()] == [16, 4]


def test_rounding_never_widens_and_never_exceeds_the_budget():
    groups = columns(33, 17)
    scores = scores_of(groups, g0=list(range(33)), g1=list(range(17)))
    plan = allocate(groups, scores, Budget(macs=1.0), round_to=16)
    assert [len(k) for k in kept(plan).values()] == [33, 17] and plan.identity
    plan = allocate(groups, scores, Budget(macs=49), round_to=16)
    assert [len(k) for k in kept(plan).values()] == [32, 17]
    with pytest.raises(BudgetError, match="least reachable is 32 .*round_to= .16 now"):
        allocate(groups, scores, Budget(macs=31), round_to=16)


@pytest.mark.parametrize("allocator", ["global", "uniform"])
def test_nothing_to_remove_is_the_identity(allocator):
    _, groups = chain()
    scores = {g.id: torch.arange(g.units) for g in groups}
    for budget in (Budget(macs=1.0), Budget(params=10**9), Budget(macs=groups.costs()["macs"])):
        plan = allocate(groups, scores, budget, allocator=allocator)
        assert plan.identity and groups.costs(groups.mask(plan)) == groups.costs()


def test_groups_without_scores_stay_whole_and_the_error_says_so():
    groups = columns(4, 4)
    scores = scores_of(groups, g1=[1.0, 2.0, 3.0, 4.0])
    assert kept(allocate(groups, scores, Budget(macs=5))) == {"g0": [0, 1, 2, 3], "g1": [3]}
    with pytest.raises(BudgetError, match="1 of 2 groups have no score and stay whole"):
        allocate(groups, scores, Budget(macs=4))
    with pytest.raises(BudgetError, match="least reachable is 8"):
        allocate(groups, {}, Budget(macs=7))


def test_several_budgets_all_hold():
    _, groups = chain(8, 12)
    scores = {g.id: torch.rand(g.units) for g in groups}
    full = groups.costs()
    plan = allocate(groups, scores, Budget(macs=0.8, params=0.4))
    cost = groups.costs(groups.mask(plan))
    assert cost["macs"] <= 0.8 * full["macs"] and cost["params"] <= 0.4 * full["params"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    budget=st.floats(0.05, 1.0),
    kind=st.sampled_from(["macs", "params"]),
    allocator=st.sampled_from(["global", "uniform"]),
    levels=st.integers(1, 40),
    round_to=st.sampled_from([1, 1, 2, 4]),
)
def test_the_budget_is_met_and_one_step_less_exceeds_it(seed, budget, kind, allocator, levels, round_to):
    """Against a plain loop that removes one unit after the other, with few distinct scores so that ties abound."""
    _, groups = residual(7, 11)
    draw = torch.Generator().manual_seed(seed)
    scores = {g.id: torch.randint(levels, (g.units,), generator=draw) for g in groups}
    limit = Budget(**{kind: budget}).limits(groups.costs())[kind]
    expected = one_by_one(groups, scores, kind, limit, allocator, round_to)
    assume(expected is not None)
    plan = allocate(groups, scores, Budget(**{kind: budget}), allocator=allocator, round_to=round_to)
    assert kept(plan) == expected
    assert groups.costs(groups.mask(plan))[kind] <= limit


def one_by_one(groups, scores, kind, limit, allocator, round_to):
    """Ask the units to go in order until the cost fits: the widths it leaves, or None."""

    def rank(g, u):
        return sum((float(v), i) <= (float(scores[g.id][u]), u) for i, v in enumerate(scores[g.id]))

    def key(g, u):
        return rank(g, u) / g.units if allocator == "uniform" else float(scores[g.id][u])

    line = sorted((key(g, u), n, u) for n, g in enumerate(groups) for u in range(g.units))
    for asked in range(len(line) + 1):
        result, keep = {}, torch.zeros(groups.units, dtype=torch.bool)
        for n, g in enumerate(groups):
            left = max(g.units - sum(m == n for _, m, _ in line[:asked]), 1)
            if g.units >= round_to:
                left = min(math.ceil(left / round_to) * round_to, g.units)
            best = sorted(range(g.units), key=lambda u: rank(g, u))[g.units - left :]
            result[g.id] = sorted(best)
            keep[[g.offset + u for u in best]] = True
        if groups.costs(keep)[kind] <= limit:
            return result
    return None


def test_equal_scores_hit_the_budget_within_one_unit():
    groups = columns(60, 40)
    scores = scores_of(groups, g0=[1.0] * 60, g1=[1.0] * 40)
    for budget in (0.11, 0.5, 0.77):
        for allocator in ("global", "uniform"):
            plan = allocate(groups, scores, Budget(macs=budget), allocator=allocator)
            assert sum(len(k) for k in kept(plan).values()) == int(budget * 100)


def test_bad_input_gets_one_clear_message():
    groups = columns(3)
    good = scores_of(groups, g0=[1.0, 2.0, 3.0])
    with pytest.raises(UnknownNameError, match="no allocator named 'globl'. Did you mean 'global'"):
        allocate(groups, good, Budget(macs=0.5), allocator="globl")
    with pytest.raises(UnknownNameError, match="no group 'g9'"):
        allocate(groups, {"g9": torch.zeros(3)}, Budget(macs=0.5))
    with pytest.raises(InputError, match="not finite"):
        allocate(groups, scores_of(groups, g0=[1.0, float("nan"), 2.0]), Budget(macs=0.5))
    with pytest.raises(InputError, match="round_to=0"):
        allocate(groups, good, Budget(macs=0.5), round_to=0)
