"""Recipes: defaults, names, overrides, and errors with their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunus.core import FileError, InputError, UnknownNameError
from prunus.recipes import builtin, check, dump, expand, load
from prunus.recipes.resolve import override, resolve
from prunus.recipes.text import parse

SMALL = """\
recipe: small
model: prunus:digits_net
data: digits
lr: 1e-2
budget: {macs: 0.5}
stages:
  - {do: finetune, epochs: 2}
  - {do: prune}
  - {do: finetune, epochs: 3, lr: 0.5}
  - {do: prune, name: last, budget: {params: 1000}}
"""


def read(text: str):
    return check(*parse(text, "small.yaml"), "small.yaml")


def problems(text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(text)
    return str(caught.value)


def test_top_level_keys_are_defaults_of_every_stage_that_knows_them() -> None:
    first, cut, second, last = read(SMALL).stages
    assert (first.lr, second.lr) == (0.01, 0.5)
    assert (cut.budget.macs, cut.budget.params) == (0.5, None)
    assert (last.budget.macs, last.budget.params) == (0.5, 1000)


def test_unnamed_stages_that_repeat_are_numbered() -> None:
    assert [s.name for s in read(SMALL).stages] == ["finetune-1", "prune-1", "finetune-2", "last"]


def test_numbers_with_an_exponent_and_no_point_are_numbers() -> None:
    assert parse("lr: 1e-3\nx: 5E+2\nname: 1e", "t")[0] == {"lr": 0.001, "x": 500.0, "name": "1e"}


@pytest.mark.parametrize("name", sorted(builtin()))
def test_every_builtin_is_valid_and_survives_being_written(name: str) -> None:
    recipe = load(name)
    assert recipe.recipe == name
    assert check(dump(recipe), {}, name) == recipe


def test_overrides_reach_stages_that_state_their_own_value() -> None:
    pairs = ["epochs=7", "stages.finetune-2.lr=0.25", "data.mean=[0.5]", "budget.macs=0.25"]
    raw = override(parse(SMALL, "t")[0], pairs)
    recipe = check(raw, {}, "t")
    assert [s.epochs for s in recipe.stages if s.do == "finetune"] == [7, 7]
    assert [s.lr for s in recipe.stages if s.do == "finetune"] == [0.01, 0.25]
    assert (recipe.data.source, recipe.data.mean) == ("digits", [0.5])
    assert [s.budget.macs for s in recipe.stages if s.do == "prune"] == [0.25, 0.25]


def test_the_more_specific_override_wins_in_any_order() -> None:
    for pairs in (["epochs=1", "stages.finetune-1.epochs=9"], ["stages.finetune-1.epochs=9", "epochs=1"]):
        stages = check(override(parse(SMALL, "t")[0], pairs), {}, "t").stages
        assert (stages[0].epochs, stages[2].epochs) == (9, 1)


def test_a_regularizer_may_be_its_name_alone() -> None:
    stages = {s.name: s for s in load("quickstart", ["regularizer=bn-gamma"]).stages}
    assert (stages["sparsify"].regularizer.name, stages["sparsify"].regularizer.model_extra) == ("bn-gamma", {})


def test_a_part_of_a_value_does_not_switch_the_value_on_elsewhere() -> None:
    stages = {s.name: s for s in load("quickstart", ["distill.weight=0.5", "regularizer.strength=0.25"]).stages}
    assert stages["sparsify"].distill is None
    assert stages["finetune"].distill.weight == 0.5
    assert stages["finetune"].regularizer is None
    assert stages["sparsify"].regularizer.model_extra == {"strength": 0.25}


def test_overrides_leave_the_original_alone() -> None:
    raw = parse(SMALL, "t")[0]
    override(raw, ["budget.macs=0.1", "stages.last.criterion=l1"])
    assert raw == parse(SMALL, "t")[0]


def test_every_error_is_told_at_once_with_line_and_the_nearest_name() -> None:
    text = SMALL.replace("lr: 1e-2", "learning_rate: 1").replace("epochs: 2", "epoch: 2")
    text = text.replace("{do: prune}", "{do: cut}")
    said = problems(text + "  - {do: prune, criterion: bn-gama, budget: {mac: 1}}\n")
    assert "line 4, learning_rate: unknown key" in said
    assert "line 7, stages.finetune-1.epoch: unknown key. Did you mean 'epochs'?" in said
    assert "line 7, stages.finetune-1.epochs: is missing" in said
    assert "'cut' is not a stage." in said and "line 8" in said
    assert "line 11, stages.prune-2.criterion: there is no criterion named 'bn-gama'. Did you mean 'bn-gamma'?" in said
    assert "line 11, stages.prune-2.budget.mac: unknown key. Did you mean 'macs'?" in said
    assert said.startswith("small.yaml has ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("budget: {macs: 0.5}", "budget: {macs: 1.5}", "line 5, .*must lie in"),
        ("budget: {macs: 0.5}", "budget: {macs: 50%}", r"has 1 error:\n  line 5, [^\n]*'50%' is not a number[^\n]*$"),
        ("budget: {macs: 0.5}", "budget: {macs: 50}", r"line 5, .*a fraction is written 0\.5"),
        ("budget: {macs: 0.5}", "budget: 0.5", r"line 5, .*e\.g\. \{macs: 0\.5\}"),
        ("lr: 1e-2", "floor: much", r"has 1 error:\n  line 4, [^\n]*integer or a valid number; given 'much'\.$"),
        ("lr: 1e-2", "floor: 1.5", "line 4, .*neither a share"),
        ("lr: 1e-2", "regularizer: bn-gama", "line 4, .*Did you mean 'bn-gamma'"),
        ("lr: 1e-2", "loss: mine.py:loss", "loss: is for criteria .* 'finetune-1' trains"),
        ("lr: 1e-2", "lr: -1", "line 4, .*greater than 0"),
        ("lr: 1e-2", "schedule: cosin", "Did you mean 'cosine'"),
        ("lr: 1e-2", "regularizer: {name: bn-gamma, strenght: 1}", "Did you mean 'strength'"),
        ("lr: 1e-2", "distill: {teacher: prune-1}", "no earlier stage is named 'prune-1'"),
        ("data: digits", "seed: 1", "'finetune-1' needs data"),
        ("name: last", "name: prune-1", "two stages are named 'prune-1'"),
        ("lr: 1e-2", "to: [onnx]", "no stage of this recipe takes this key"),
        ("lr: 1e-2", "precision: 33", "precision='33'"),
        ("lr: 1e-2", "measure: {backends: [torhc]}", "Did you mean 'torch'"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read(SMALL.replace(old, new))


@pytest.mark.parametrize("stages", ["3", "{do: prune}", "[3]", "prune"])
def test_stages_that_are_no_list_of_stages(stages: str, tmp_path: Path) -> None:
    text = SMALL[: SMALL.index("stages:")] + f"stages: {stages}\n"
    assert "has 1 error:\n  line 6, stages" in problems(text) and "expected a list of stages" in problems(text)
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match="expected a list of stages"):
        load(tmp_path / "own.yaml", ["stages.prune.progress=1"])


def test_a_key_given_twice_is_an_error_with_both_lines() -> None:
    with pytest.raises(InputError, match=r"line 5: 'lr' is given a second time \(first in line 4\)"):
        parse(SMALL.replace("budget: {macs: 0.5}", "lr: 3"), "t")


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [1", "just words"])
def test_what_is_not_a_recipe_is_refused(text: str) -> None:
    with pytest.raises(FileError):
        parse(text, "t")


def test_unknown_recipes_keys_and_stages_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'quickstart'"):
        load("quikstart")
    with pytest.raises(UnknownNameError, match="Did you mean 'epochs'"):
        load("quickstart", ["epoch=1"])
    with pytest.raises(UnknownNameError, match="Did you mean 'prune'"):
        load("quickstart", ["stages.prun.criterion=l1"])
    with pytest.raises(InputError, match="expected key=value"):
        load("quickstart", ["epochs"])
    with pytest.raises(FileError, match="no recipe file"):
        load("missing.yaml")


def test_errors_of_overrides_point_at_the_override() -> None:
    with pytest.raises(InputError, match=r"override, stages\.sparsify\.epochs: .*given 0"):
        load("quickstart", ["epochs=0"])


def test_paths_are_stored_as_given_and_expanded_at_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_SHARED", "/somewhere")
    assert load("network-slimming").weights.startswith("$PRUNUS_SHARED/")
    assert expand("$PRUNUS_SHARED/data") == expand("${PRUNUS_SHARED}/data") == "/somewhere/data"
    monkeypatch.delenv("PRUNUS_SHARED")
    assert Path(expand("$PRUNUS_SHARED/data")) == Path("../shared/data")


def test_a_budget_on_the_way_lies_between_the_original_and_the_end() -> None:
    budget = load("network-slimming-multipass", ["budget.macs=0.4", "budget.params=200"]).stages[1].budget
    at = [budget.at(p, {"macs": 1000, "params": 500}) for p in (0.25, 0.5, 1.0)]
    assert [b.macs for b in at] == [850, 700, 400]
    assert [b.params for b in at] == [425, 350, 200]


def test_a_pass_takes_at_most_half_of_a_layer() -> None:
    stages = load("network-slimming-multipass").stages
    assert [s.floor for s in stages if s.do == "prune"] == [0.5, 0.5, 0.5]


def test_a_budget_of_one_is_the_whole_network() -> None:
    raw = resolve(parse(SMALL.replace("macs: 0.5", "macs: 1"), "t")[0])
    assert check(raw, {}, "t").stages[1].budget.at(1.0, {"macs": 1000, "params": 1}).macs == 1000
