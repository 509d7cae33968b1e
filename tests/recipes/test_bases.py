"""What a recipe says of a basis arrives in the network, and what decays in a recipe is what the methods have decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import prunus
from prunus.bases import Basis, interspaced
from prunus.bases.basis import coefficients
from prunus.cli import main
from prunus.core import InputError
from prunus.dynamic import gates
from prunus.masks import methods
from prunus.recipes import check, load, run
from prunus.recipes.context import Context
from prunus.recipes.folder import Folder
from prunus.recipes.stages import carry_out
from prunus.train.engine import Engine
from tests.recipes.small_net import small

NET = Path(__file__).with_name("small_net.py")
MODEL = [f"model={NET}:small", "data.channels=1", "data.size=8", "data=digits", "data.limit=60", "measure.backends=[]"]
BRIEF = [*MODEL, "batch=30", "epochs=1", "lr=0.01"]


class Attached(Exception):
    """The optimizer of a stage, just before its first step."""


def first_optimizer(recipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Any]:
    """The network and the optimizer that the first stage which trains begins with."""

    def start(engine: Engine, groups: Any) -> None:
        raise Attached(engine.model, engine.optimizer)

    monkeypatch.setattr(Engine, "start", start)
    context = Context.of(recipe, Folder(folder), quiet=True)
    model = context.origin.module
    with pytest.raises(Attached) as found:
        for stage in recipe.stages:
            model = carry_out(context, stage, model).model
    return found.value.args


def decays(net: nn.Module, optimizer: Any) -> dict[str, float]:
    """The weight decay of every parameter by name, each once; what the network does not hold is a threshold."""
    names = {id(p): name for name, p in net.named_parameters()}
    held = [(id(p), group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(dict(held)) and set(names) <= set(dict(held))
    return {names.get(key, f"threshold {i}"): decay for i, (key, decay) in enumerate(held)}


@pytest.mark.parametrize("basis", ["none", "coarse"])
@pytest.mark.parametrize("method", ["pruning-at-init", "lottery-ticket", *(entry.name for entry in methods)])
def test_bases_never_decay_and_learned_thresholds_as_their_method_says(method, basis, tmp_path, monkeypatch):
    recipe = ["sparse-training", f"method={method}"] if method in methods else [method]
    own = ["budget.density=0.5", "weight_decay=0.0625", "batch=5", f"basis={basis}"]
    own += ["criterion=magnitude"] if method not in methods else []
    net, optimizer = first_optimizer(load(recipe[0], [*BRIEF, *recipe[1:], *own]), tmp_path / "run", monkeypatch)
    found = decays(net, optimizer)
    bases = {name for name in found if name.endswith("weight_basis.vectors")}
    thresholds = {name for name in found if name.startswith("threshold")}
    assert len(bases) == (basis == "coarse") and len(thresholds) == 4 * (method in ("str", "dst"))
    expected = dict.fromkeys(found, 0.0625) | dict.fromkeys(bases, 0.0)  # the others decay, norms as well
    assert found == expected | dict.fromkeys(thresholds, {"str": 5e-4, "dst": 0.0}.get(method))


def test_the_decay_of_strs_thresholds_is_an_option(tmp_path, monkeypatch):
    more = ["method=str", "options.decay=0.25", "budget.density=0.5"]
    net, optimizer = first_optimizer(load("sparse-training", [*BRIEF, *more]), tmp_path / "run", monkeypatch)
    found = decays(net, optimizer)
    assert {decay for name, decay in found.items() if name.startswith("threshold")} == {0.25}


@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_scales_decay_under_slimming_unless_the_recipe_says_weights(decay, optimizer, tmp_path, monkeypatch):
    stage = {"do": "sparsify", "epochs": 1, "batch": 30, "decay": decay, "optimizer": optimizer, "basis": "fine"}
    raw = {"recipe": "slim", "model": f"{NET}:small", "stages": [stage | {"weight_decay": 0.0625}]}
    raw["data"] = {"source": "digits", "channels": 1, "size": 8, "limit": 60}
    found = decays(*first_optimizer(check(raw, {}, "here"), tmp_path / "run", monkeypatch))
    for name, value in found.items():
        plain = "basis" in name or (decay == "weights" and (name.split(".")[0] in ("1", "4", "7") or "bias" in name))
        assert value == (0.0 if plain else 0.0625), name


@pytest.mark.parametrize("method", ["manidp", "fbs", "channel-gating"])
def test_gates_do_not_decay(method, tmp_path, monkeypatch):
    stage = {"do": "dynamic", "method": method, "epochs": 1, "batch": 30, "weight_decay": 0.0625}
    raw = {"recipe": "gated", "model": "prunus:digits_net", "data": {"source": "digits", "limit": 60}}
    net, optimizer = first_optimizer(check(raw | {"stages": [stage]}, {}, "here"), tmp_path / "run", monkeypatch)
    own = {id(p) for gate in gates(net) for p in gate.parameters()}
    names = {name for name, p in net.named_parameters() if id(p) in own}
    found = decays(net, optimizer)
    assert names and found == dict.fromkeys(found, 0.0625) | dict.fromkeys(names, 0.0)


# ---- what arrives --------------------------------------------------------------------------------------------------

OPTIONS = {
    "standard": ["basis=fine"],
    "svd": ["basis=coarse", "basis.init=svd"],
    "orthonormal": ["basis.sharing=fine", "basis.init=orthonormal", "seed=3"],
    "free": ["basis=fine", "basis.unit=false"],
    "blocks": ["basis=fine", "basis.block=8"],
    "a mapping": ["basis={sharing: medium, init: svd, unit: false, block: 4}"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_basis_arrive(name, tmp_path, monkeypatch):
    recipe = load("pruning-at-init", [*BRIEF, "criterion=magnitude", "budget.density=1.0", *OPTIONS[name]])
    wanted = recipe.stages[0].basis
    assert recipe.stages[1].basis == wanted
    net, _ = first_optimizer(recipe, tmp_path / "run", monkeypatch)
    torch.manual_seed(0)
    expected = Context.of(recipe, Folder(tmp_path / "other"), quiet=True).origin.module
    options = {"init": wanted.init, "unit": wanted.unit, "block": wanted.block, "seed": recipe.seed}
    prunus.interspace_(expected, wanted.sharing, **options)
    found, made = list(interspaced(net)), list(interspaced(expected))
    assert [n for n, *_ in found] == [n for n, *_ in made] and len(found) == (4 if wanted.block else 3)
    assert len({id(b) for *_, b in found}) == len({id(b) for *_, b in made})
    for (_, layer, leaf, basis), (_, layer_, leaf_, basis_) in zip(found, made):
        assert basis.unit == basis_.unit == wanted.unit and torch.equal(basis.vectors, basis_.vectors)
        assert torch.equal(coefficients(layer, leaf), coefficients(layer_, leaf_))
    standard = torch.equal(found[0][3].vectors, torch.eye(9))
    assert standard == (wanted.init == "standard")


def test_the_dense_network_trains_in_a_basis_and_ends_plain(tmp_path, monkeypatch):
    seen: list[int] = []
    update = Engine.update
    bases = lambda engine: [m for m in engine.model.modules() if isinstance(m, Basis)]  # noqa: E731

    def watched(engine: Engine, *args: Any) -> None:
        before = [b.vectors.detach().clone() for b in bases(engine)]
        update(engine, *args)
        seen.append(sum(not torch.equal(b.vectors, v) for b, v in zip(bases(engine), before)))

    monkeypatch.setattr(Engine, "update", watched)
    stages = [{"do": "finetune", "epochs": 1, "batch": 30, "basis": {"sharing": "fine", "init": "svd"}}]
    stages += [{"do": "finetune", "name": "more", "epochs": 1, "batch": 30}]
    raw = {"recipe": "dense", "model": f"{NET}:small", "stages": stages, "measure": {"backends": []}}
    raw["data"] = {"source": "digits", "channels": 1, "size": 8, "limit": 60}
    folder, result = run(check(raw, {}, "here"), tmp_path / "run", quiet=True)
    assert seen and set(seen) == {3}  # in the stage after it too
    assert result["after"]["macs"] == result["before"]["macs"] and result["after"]["params"] == 6_986
    assert result["after"]["density"] == 1.0
    kept = load_file(folder / "model.safetensors")
    assert set(kept) == set(small().state_dict())
    assert "orthonormal" not in (folder / "recipe.yaml").read_text() and "svd" in (folder / "recipe.yaml").read_text()


def test_a_network_that_trained_in_a_basis_is_cut(tmp_path):
    stages = [{"do": "finetune", "epochs": 1, "batch": 30, "basis": "fine"}, {"do": "prune", "budget": {"macs": 0.6}}]
    raw = {"recipe": "cut", "model": f"{NET}:small", "stages": stages, "measure": {"backends": []}}
    raw["data"] = {"source": "digits", "channels": 1, "size": 8, "limit": 60}
    folder, result = run(check(raw, {}, "here"), tmp_path / "run", quiet=True)
    assert result["after"]["macs"] <= 0.6 * result["before"]["macs"]
    assert not any("basis" in name for name in load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["basis=finne"], "Did you mean 'fine'"),
        (["basis={sharing: fine, init: svdd}"], "Did you mean 'svd'"),
        (["basis=fine", "basis.block=1"], "greater than or equal to 2"),
        (["basis=fine", "basis.block=2.5"], "valid integer"),
        (["basis=fine", "basis.unit=maybe"], "valid boolean"),
        (["basis=fine", "basis.blocks=4"], "blocks"),
        (["basis=3"], "basis"),
        (["basis.init=svd"], "there is none; write basis:"),
        (["stages.mask.basis=fine", "stages.train.basis=coarse"], "names another basis"),
        (["stages.train.basis=fine"], "give the basis to stage 'mask'"),
    ],
)
def test_wrong_bases_are_one_clear_error(overrides, says):
    with pytest.raises(InputError, match=says) as error:
        load("pruning-at-init", [*BRIEF, *overrides])
    assert "Traceback" not in str(error.value)


def test_bases_that_do_not_go_with_other_stages():
    raw = {"recipe": "x", "model": f"{NET}:small", "data": "digits"}
    train = {"do": "finetune", "epochs": 1, "basis": {"sharing": "fine", "block": 8}}
    with pytest.raises(InputError, match="'prune' cuts units, and block: 8"):
        check(raw | {"stages": [train, {"do": "prune", "budget": {"macs": 0.5}}]}, {}, "here")
    with pytest.raises(InputError, match="'dynamic' gives the network gates"):
        check(raw | {"stages": [train, {"do": "dynamic", "epochs": 1}]}, {}, "here")


def test_inits_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["ls", "inits", "--json"])
    assert {'"standard"', '"orthonormal"', '"svd"'} <= set(capsys.readouterr().out.replace(",", "").split())
