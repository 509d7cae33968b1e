"""The recipes of networks that prune themselves, from the file to the report."""

from __future__ import annotations

from pathlib import Path

import pytest

import prunus
from prunus import recipes
from prunus.core import InputError
from prunus.dynamic import dynamic_of, realised
from prunus.report import html
from prunus.zoo import build


def recipe(method: str, *more: str) -> recipes.Recipe:
    small = ["model=prunus:digits_net", "data=digits", "data.limit=60", "batch=30", "epochs=1", "measure.seconds=0.01"]
    return recipes.load(method, [*small, "measure.batches=[1]", *more])


@pytest.mark.parametrize("method", ["manidp", "fbs"])
def test_macs_in_the_result_are_the_realised_mean(method: str, tmp_path: Path) -> None:
    made = recipe(method, "stages.dynamic.periods=2", *([] if method == "fbs" else ["measure.backends=[torch]"]))
    folder, result = recipes.run(made, tmp_path / "run", quiet=True)
    net = prunus.load(folder / "model.safetensors", lambda: build("prunus:digits_net").module).eval()
    context = recipes.context.Context.of(made, recipes.folder.Folder(tmp_path / "x"))
    assert context.data is not None
    said = realised(net, (x for x, _ in context.data.test.batches(16, context.preprocess)))
    assert result["after"]["macs"] == result["stages"][-1]["macs"] == said.mean
    assert result["before"]["macs"] == said.dense > said.mean
    assert sum(result["dynamic"]["histogram"]["counts"]) == result["dynamic"]["inputs"] == len(said.macs)
    least = result["dynamic"]["easy"][0]
    assert least["macs"] == int(said.macs.min()) == int(said.macs[least["image"]])
    assert result["before"]["accuracy"] == result["stages"][0]["accuracy"]
    assert dynamic_of(net).method.keep == 0.6  # type: ignore[union-attr]
    page = html(folder).read_text()
    assert "Which inputs took how much" in page
    assert page.count('<img src="data:image/png;base64,') == 16


def test_wrong_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'manidp' has no 'kep'"):
        recipe("manidp", "stages.dynamic.options.kep=0.5")
    with pytest.raises(InputError, match="begin all open without it"):
        recipe("fbs", "stages.dynamic.method=channel-gating", "stages.dynamic.options={}")
    late = tmp_path / "late.yaml"
    stages = "[{do: dynamic, epochs: 1}, {do: prune, budget: {macs: 0.5}}]"
    late.write_text(f"recipe: late\nmodel: prunus:digits_net\ndata: digits\nstages: {stages}\n")
    with pytest.raises(InputError, match="only exports may follow"):
        recipes.load(late)
