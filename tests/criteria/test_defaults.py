"""How every criterion's scores are made comparable between groups: as measured, or as its paper has it."""

import pytest
import torch

import prunus
from prunus.criteria import criteria, normalizers, score
from prunus.observe import collect
from tests.traced import batches, chain

# criterion: what its units are divided by, and what by their cost
DEFAULTS = {
    "agglomerative": ("none", None),
    "apoz": ("none", None),
    "bn-gamma": ("none", None),
    "chip": ("max", None),
    "dcp": ("rank", None),
    "entropy": ("none", None),
    "fisher": ("none", None),
    "flap": ("none", None),
    "fpgm": ("max", None),
    "fpgm-greedy": ("none", None),
    "grasp": ("none", None),
    "group-fisher": ("none", "macs"),
    "kmeans": ("rank", None),
    "l1": ("max", None),
    "l2": ("max", None),
    "lasso": ("mean", None),
    "llm-pruner": ("none", None),
    "nisp": ("rank", None),
    "obd": ("none", None),
    "obd-gauss-newton": ("none", None),
    "obd-hutchinson": ("none", None),
    "obd-mc": ("none", None),
    "obs": ("mean", None),
    "obs-fisher": ("none", "macs"),
    "random": ("none", None),
    "snip": ("none", None),
    "synflow": ("none", None),
    "taylor": ("none", None),
    "taylor-activation": ("l2", None),
    "taylor-gate": ("none", None),
    "taylor-second": ("none", None),
    "taylor-weight": ("none", None),
    "thinet": ("mean", None),
    "thinet-omp": ("mean", None),
    "wanda": ("max", None),
    "woodfisher": ("none", None),
}
WITHIN = ["dcp", "fpgm-greedy", "kmeans", "nisp"]  # rank within a group
OF_WEIGHTS = {"lamp", "obc"}  # made for single weights


def test_the_defaults_are_those_that_were_measured():
    found = {e.name: (e.declares["normalize"], e.declares["per"]) for e in criteria if e.name not in OF_WEIGHTS}
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS


def test_no_default_takes_from_a_layer_because_it_is_wide():
    """Twice the units, with the same scores: each is worth what it was; not so by the sum."""
    narrow = torch.tensor([1.0, 5, 2, 4], dtype=torch.float64)
    wide = narrow.repeat_interleave(2)
    for name in {kind for kind, _ in DEFAULTS.values()} - {"rank", "l2"}:
        call = normalizers[name].call
        assert torch.equal(call(wide)[::2], call(narrow))
    assert torch.equal(normalizers["rank"].call(wide)[1::2], normalizers["rank"].call(narrow))
    assert torch.equal(normalizers["sum"].call(wide)[::2], normalizers["sum"].call(narrow) / 2)


@pytest.mark.parametrize("name", WITHIN)
def test_what_ranks_within_a_group_takes_the_same_fraction_of_every_group(name):
    model, groups = chain(8, 12)
    stats = collect(model, groups, batches(2, 8), prunus.criteria.needs(name))
    scores = score(groups, name, stats)
    plans = [
        prunus.allocate(groups, scores, prunus.Budget(macs=0.5), allocator=allocator)
        for allocator in ("global", "uniform")
    ]
    kept = [{id: entry.kept for id, entry in plan.groups.items()} for plan in plans]
    assert kept[0] == kept[1]
