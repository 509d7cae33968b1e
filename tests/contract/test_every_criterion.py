"""What holds for every criterion in the registry."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.core import Budget, Groups, InputError
from prunus.criteria import criteria, needs, score
from prunus.observe import collect
from tests.traced import batches, chain, residual

every = pytest.mark.parametrize("entry", list(criteria), ids=lambda entry: entry.name)
looking = pytest.mark.parametrize(  # at the network, not drawing by the number of the unit
    "entry", [entry for entry in criteria if not entry.declares["seeded"]], ids=lambda entry: entry.name
)
ZERO_IS_NOT_LOWEST = {
    "grasp": "a unit that holds the gradient down scores below one that does nothing",
    "obd-hutchinson": "a curvature may be negative",
    "nisp": "it asks what layers make of a unit, not what makes the unit",
}
DRAWS_BY_PLACE = {"obd-hutchinson": "the probes are drawn for a place in a tensor, not for a unit"}
networks = pytest.mark.parametrize("network", [chain, residual])


def scores_of(entry, model, groups, seed=0):
    wanted = needs(entry.name)
    stats = collect(model, groups, batches(), wanted) if wanted else None
    return score(groups, entry.name, stats, seed=seed)


@every
@networks
def test_one_finite_number_a_unit_of_every_group_that_has_its_roles(entry, network):
    model, groups = network()
    scores = scores_of(entry, model, groups)
    assert scores, "every network here has every common role"
    assert list(scores) == [g.id for g in groups if g.with_role(*entry.declares["roles"])]
    for id, values in scores.items():
        assert values.shape == (groups[id].units,) and values.dtype == torch.float64 and values.device.type == "cpu"
        assert values.isfinite().all() and not values.requires_grad


@looking
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_permuting_units_permutes_scores(entry, seed):
    if entry.name in DRAWS_BY_PLACE:
        pytest.skip(DRAWS_BY_PLACE[entry.name])
    model, groups = residual(5, 6, seed)
    before = scores_of(entry, model, groups)
    orders = permute_(model, groups, seed)
    after = scores_of(entry, model, groups)
    for id, values in before.items():
        rounding = 1e-5 * float(values.abs().max())  # activations are of single precision
        torch.testing.assert_close(after[id], values[orders[id]], rtol=1e-5, atol=rounding)


@every
def test_same_twice_and_nothing_touched(entry):
    model, groups = residual()
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    first, second = scores_of(entry, model, groups), scores_of(entry, model, groups)
    assert all(torch.equal(first[id], second[id]) for id in first)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training


@looking
def test_a_unit_of_zeros_scores_lowest(entry):
    if entry.name in ZERO_IS_NOT_LOWEST:
        pytest.skip(ZERO_IS_NOT_LOWEST[entry.name])
    model, groups = residual()
    silence_(model, groups, "a", 2)
    values = scores_of(entry, model, groups)["a"]
    assert values[2] == values.min()


@every
def test_it_says_what_it_is(entry):
    assert entry.line.endswith((".", ":")) and len(entry.line) < 120
    assert entry.paper or entry.name == "random"


def permute_(model, groups: Groups, seed: int) -> dict[str, torch.Tensor]:
    """Renumber the units of every group; the function of the network stays."""
    draw = torch.Generator().manual_seed(seed)
    orders = {g.id: torch.randperm(g.units, generator=draw) for g in groups}
    for group in groups:
        for s in group.slices:
            s.tensor.data = s.tensor.data.index_select(s.dim, orders[group.id])
    return orders


def silence_(model, groups: Groups, id: str, unit: int) -> None:
    """Set everything that produces a unit to zero."""
    for s in groups[id].with_role("out", "bias", "norm_scale", "norm_shift"):
        s.tensor.data.index_fill_(s.dim, torch.tensor([unit]), 0.0)


def test_permuting_keeps_the_function_of_the_network():
    model, groups = residual(5, 6)
    model.eval()
    (x, _), *_ = batches(1)
    before = model(x)
    permute_(model, groups, 3)
    torch.testing.assert_close(model(x), before)


def test_scores_of_another_network_are_refused():
    from prunus.allocators import allocate

    _, groups = chain(4, 6)
    other = score(chain(4, 7)[1], "l1")
    with pytest.raises(InputError, match=r"scores of group 'conv2' have shape \(7,\); the group has 6 units"):
        allocate(groups, other, Budget(macs=0.5))


def test_groups_are_never_changed_by_scoring():
    _, groups = chain()
    copy = replace(groups)
    score(groups, "l2")
    assert groups.members is copy.members and groups.costs() == copy.costs()
