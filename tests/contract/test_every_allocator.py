"""What holds for every allocator in the registry."""

import pytest
import torch

from prunus.allocators import allocate, allocators
from prunus.core import Budget, BudgetError, Plan
from tests.hand_built import chain, residual

every = pytest.mark.parametrize("entry", list(allocators), ids=lambda entry: entry.name)
networks = pytest.mark.parametrize("network", [chain, residual])


def some_scores(groups, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {g.id: torch.rand(g.units, generator=draw, dtype=torch.float64) for g in groups}


@every
@networks
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.9])
def test_the_budget_holds_by_counting_the_shrunk_tensors(entry, network, kind, budget):
    model, groups = network(12, 20)
    plan = allocate(groups, some_scores(groups), Budget(**{kind: budget}), allocator=entry.name)
    cost = groups.costs(groups.mask(plan))
    assert cost[kind] <= budget * groups.costs()[kind]
    left = 0
    for name, p in model.named_parameters():
        for dim, rows in (plan.tensors[name].kept if name in plan.tensors else {}).items():
            p = p.index_select(dim, torch.tensor(rows))
        left += p.numel()
    assert cost["params"] == left


@every
@networks
def test_no_group_is_emptied_and_the_least_reachable_is_said(entry, network):
    _, groups = network()
    with pytest.raises(BudgetError, match="least reachable is") as error:
        allocate(groups, some_scores(groups), Budget(macs=1), allocator=entry.name)
    least = int(str(error.value).split("least reachable is ")[1].split(" ")[0].replace(",", ""))
    plan = allocate(groups, some_scores(groups), Budget(macs=least), allocator=entry.name)
    assert groups.costs(groups.mask(plan))["macs"] == least
    assert all(len(g.kept) >= 1 for g in plan.groups.values())


@every
@networks
def test_the_whole_budget_keeps_everything(entry, network):
    _, groups = network()
    assert allocate(groups, some_scores(groups), Budget(macs=1.0), allocator=entry.name).identity


@every
def test_same_plan_twice_and_through_json(entry):
    _, groups = residual(12, 20)
    plans = [allocate(groups, some_scores(groups), Budget(macs=0.5), allocator=entry.name) for _ in range(2)]
    assert plans[0] == plans[1] == Plan.from_json(plans[0].to_json())


@every
def test_the_function_itself_can_be_given(entry):
    _, groups = chain()
    given = allocate(groups, some_scores(groups), Budget(macs=0.5), allocator=entry.call)
    assert given == allocate(groups, some_scores(groups), Budget(macs=0.5), allocator=entry.name)
    assert entry.line.endswith(".")
