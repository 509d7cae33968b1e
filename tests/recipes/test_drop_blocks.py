"""Whole blocks that go, as a stage of a recipe."""

import pytest
import torch
import yaml

import prunus
from prunus.core import InputError
from prunus.recipes import load, run

RECIPE = {
    "recipe": "shallow",
    "model": "prunus:resnet20",
    "data": {"source": "digits", "limit": 64},
    "measure": {"backends": ["torch"], "batches": [1], "seconds": 0.01},
}


def recipe(tmp_path, *stages):
    path = tmp_path / "shallow.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "stages": list(stages)}))
    return load(path)


def test_blocks_go_and_channels_after_them(tmp_path):
    cut = {"do": "prune", "budget": {"macs": 0.4}}
    _, result = run(recipe(tmp_path, {"do": "drop-blocks", "n": 3}, cut), tmp_path / "run", quiet=True)
    dropped, pruned = result["stages"]
    whole = result["before"]["macs"]
    assert pruned["macs"] <= 0.4 * whole < dropped["macs"] < 0.75 * whole
    assert result["verified"]["max_relative_error"] < 1e-9
    assert sum("influence" in note for note in result["notes"]) >= 1
    net = prunus.load(tmp_path / "run" / "model.safetensors", prunus.zoo.resnet20)
    assert len(prunus.blocks(net, torch.zeros(2, 3, 32, 32))) == 4


@pytest.mark.parametrize("asked", [{}, {"n": 1, "keep": 0.5}])
def test_one_of_two_numbers_is_needed(tmp_path, asked):
    with pytest.raises(InputError, match="n: how many blocks go, or keep"):
        recipe(tmp_path, {"do": "drop-blocks", **asked})
