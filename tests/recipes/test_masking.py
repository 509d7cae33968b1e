"""The recipes of weight sparsity on a little real data: densities, masks that hold, going on, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunus
from prunus.core import InputError
from prunus.recipes import builtin, load, run
from prunus.recipes import masking as verbs
from tests.recipes.small_net import Mixed
from tests.recipes.small_net import small as small_net

NET = Path(__file__).with_name("small_net.py")
SMALL = [
    f"model={NET}:small",
    "data.channels=1",
    "data.size=8",
    "data.source=digits",
    "data.limit=200",
    "batch=50",
    "lr=0.05",
    "epochs=1",
]
SMALL += ["measure.backends=[torch]", "measure.batches=[1]", "measure.seconds=0.01"]
RECIPES = ("pruning-at-init", "sparse-training", "lottery-ticket", "prune-weights")


def small(name: str, *more: str):
    own = {"lottery-ticket": ["rounds=2"], "pruning-at-init": ["rounds=5"]}.get(name, [])
    return load(name, [*SMALL, "budget.density=0.1", *own, *more])


def nonzero(folder: Path) -> float:
    net = prunus.load(folder / "model.safetensors", small_net)
    stored, names = net.state_dict(), [g.id for g in prunus.tensors(net)]
    return sum(int(stored[n].count_nonzero()) for n in names) / sum(stored[n].numel() for n in names)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_meets_its_density(name, tmp_path):
    assert name in builtin()
    folder, result = run(small(name), tmp_path / "run", quiet=True)
    assert result["before"]["density"] == 1.0
    assert 0.099 < result["after"]["density"] <= 0.1
    assert result["after"]["size_bytes"] < 0.5 * result["before"]["size_bytes"]
    assert nonzero(folder) == result["after"]["density"]
    assert result["after"]["params"] == result["before"]["params"] and 0 <= result["after"]["accuracy"] <= 1


def test_weights_are_read_off_the_operators(tmp_path):
    folder, result = run(
        small("prune-weights", f"model={NET}:Mixed", "budget.density=0.2"), tmp_path / "run", quiet=True
    )
    stored = prunus.load(folder / "model.safetensors", Mixed).state_dict()
    weights = [t for name, t in stored.items() if t.dim() > 1]
    assert 0 < stored["token_mix"].count_nonzero() < 0.6 * 96**2
    left = sum(int(t.count_nonzero()) for t in weights) / sum(t.numel() for t in weights)
    assert result["after"]["density"] == left and 0.199 < left <= 0.2


@pytest.mark.parametrize("method", ["set", "gmp", "dpf", "str"])
def test_methods_by_name(method, tmp_path):
    _, result = run(small("sparse-training", f"method={method}"), tmp_path / "run", quiet=True)
    assert result["after"]["density"] <= 0.1


@pytest.mark.parametrize("criterion", ["snip", "grasp", "force", "erk"])
def test_criteria_by_name(criterion, tmp_path):
    _, result = run(small("pruning-at-init", f"criterion={criterion}"), tmp_path / "run", quiet=True)
    assert 0.099 < result["after"]["density"] <= 0.1


@pytest.mark.parametrize("control", ["shuffle", "redraw", "invert"])
def test_controls_give_other_networks_of_the_same_density(control, tmp_path):
    plain, one = run(small("pruning-at-init"), tmp_path / "plain", quiet=True)
    other, two = run(small("pruning-at-init", f"control={control}"), tmp_path / "other", quiet=True)
    assert one["after"]["density"] == two["after"]["density"]
    paths = [folder / "checkpoints" / "01-mask.safetensors" for folder in (plain, other)]
    a, b = (prunus.load(path, small_net).state_dict() for path in paths)
    assert any(not torch.equal(a[k], b[k]) for k in a)


def test_a_stage_that_was_cut_short_goes_on_to_the_same_end(tmp_path, monkeypatch):
    recipe = small("lottery-ticket", "rewind=rate")
    whole, _ = run(recipe, tmp_path / "whole", quiet=True)
    fit, count = verbs.fit, [0]

    def dies(*args, **settings):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return fit(*args, **settings)

    monkeypatch.setattr(verbs, "fit", dies)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(verbs, "fit", fit)
    resumed, _ = run(recipe, tmp_path / "cut", resume=True, quiet=True)
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_early_epochs_and_the_weights_of_a_model(tmp_path):
    recipe = load("lottery-ticket", [*SMALL, "epochs=2", "early=1", "rounds=1", "budget.density=0.5"])
    _, result = run(recipe, tmp_path / "run", quiet=True)
    assert result["after"]["density"] <= 0.5
    assert load("prune-weights", [*SMALL, "weights=net.safetensors"]).weights == "net.safetensors"


def test_a_layer_that_collapses_is_named_with_the_highest_safe_sparsity(tmp_path):
    recipe = small("pruning-at-init", "criterion=magnitude", "control=invert", "budget.density=0.001")
    _, result = run(recipe, tmp_path / "run", quiet=True)
    note = next(n for n in result["notes"] if n.startswith("layer collapse"))
    assert "down to their last unit (first: '" in note and "up to a sparsity of" in note


def test_one_shot_with_repair(tmp_path):
    recipe = small("prune-weights", "stages.mask.repair=obc", "budget.density=0.3", "samples=100")
    _, result = run(recipe, tmp_path / "run", quiet=True)
    assert 0.29 < result["after"]["density"] <= 0.3


@pytest.mark.parametrize("basis", ["fine", "coarse"])
def test_coefficients_in_a_basis_are_masked_as_weights_are_and_the_end_is_a_plain_network(basis, tmp_path):
    recipe = small("pruning-at-init", f"basis={basis}", "budget.density=0.1", "epochs=1")
    _, result = run(recipe, tmp_path / "run", quiet=True)
    assert 0.09 < result["after"]["density"] <= 0.1 and result["before"]["density"] == 1.0
    assert result["after"]["macs"] == result["before"]["macs"]  # plain filters in the end
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert not any("basis" in name for name in kept)
    assert "after: weights in a basis are folded (3)" in result["notes"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["budget.macs=0.5"], "density"),
        (["budget.density=5"], "a fraction is written 0.5"),
        (["basis=finne"], "Did you mean 'fine'"),
        (["criterion=synflo"], "Did you mean 'synflow'"),
        (["criterion=fpgm"], "compares channels"),
        (["grain=3:2"], "grain"),
    ],
)
def test_bad_recipes_say_what_is_wrong(overrides, says):
    with pytest.raises(InputError, match=says):
        load("pruning-at-init", [*SMALL, *overrides])


def test_bad_methods_say_what_is_wrong():
    with pytest.raises(InputError, match="Did you mean 'rigl'"):
        load("sparse-training", ["method=rigll"])
    with pytest.raises(InputError, match="Did you mean 'fraction'"):
        load("sparse-training", ["options.fractoin=0.1"])
    with pytest.raises(InputError, match="early"):
        load("lottery-ticket", ["early=9", "epochs=2"])
    with pytest.raises(InputError, match="do: mask"):
        load("quickstart", ["budget.density=0.5"])
    with pytest.raises(InputError, match="least reachable"):
        run(load("pruning-at-init", [*SMALL, "budget.density=0.00001"]), quiet=True)
