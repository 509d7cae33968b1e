"""Whole runs on a little real data: the folder, the numbers, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunus
from prunus.core import BudgetError, FileError, InputError
from prunus.core.writing import _me
from prunus.recipes import check, dump, run
from prunus.recipes.folder import choose
from prunus.recipes.schema import Recipe
from prunus.recipes.text import parse, write
from prunus.zoo import digits_net

TINY = """\
recipe: tiny
model: prunus:digits_net
data: {source: digits, limit: 200}
batch: 50
measure: {backends: [torch], batches: [1], seconds: 0.01}
stages:
  - {do: sparsify, epochs: 1, lr: 0.05, regularizer: {name: bn-gamma, strength: 1e-3}}
  - {do: prune, criterion: bn-gamma, budget: {macs: 0.6}, progress: 0.5, round_to: 8}
  - {do: recalibrate, batches: 2}
  - {do: prune, criterion: bn-gamma, budget: {macs: 0.6}, absorb: true}
  - {do: finetune, epochs: 2, lr: 0.01, distill: {temperature: 4, weight: 0.5}}
  - {do: export, to: [onnx]}
"""


def tiny(text: str = TINY) -> Recipe:
    return check(*parse(text, "tiny"), "tiny")


EVERYWHERE = TINY.replace("backends: [torch], ", "")  # timed in every runtime


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """One unbroken run."""
    return run(tiny(EVERYWHERE), tmp_path_factory.mktemp("runs") / "whole", quiet=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys() and one
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_result_has_the_promised_form(done: tuple[Path, dict]) -> None:
    folder, result = done
    assert json.loads((folder / "result.json").read_text()) == result
    assert (result["schema"], result["recipe"], result["model"], result["seed"]) == (1, "tiny", "prunus:digits_net", 0)
    for side in ("before", "after"):
        assert set(result[side]["latency_ms"]) == {"torch,b1,t1", "onnxruntime,b1,t1", "sparse,b1,t1"}
        assert all(ms > 0 for ms in result[side]["latency_ms"].values())
        assert 0 <= result[side]["accuracy"] <= 1
    files = {"before": "01-sparsify", "after": "06-export"}
    for side, name in files.items():
        assert result[side]["size_bytes"] == (folder / "checkpoints" / f"{name}.safetensors").stat().st_size
    assert [s["name"] for s in result["stages"]] == [
        "sparsify", "prune-1", "recalibrate", "prune-2", "finetune", "export",
    ]  # fmt: skip
    assert all({"name", "seconds", "params", "macs", "density", "accuracy"} == s.keys() for s in result["stages"])
    assert result["verified"]["max_relative_error"] <= 1e-7 and result["verified"]["in_place"] is True
    assert {"what": "classifier: 10 of 10 channels", "why": "it is an output of the model"} in result["left_alone"]
    assert {"prunus", "torch", "python"} <= result["versions"].keys()


def test_the_folder_has_the_promised_files(done: tuple[Path, dict]) -> None:
    names = {p.name for p in done[0].iterdir()}
    expected = {"recipe.yaml", "result.json", "report.html", "model.safetensors", "model.onnx", "metrics.csv"}
    assert expected | {"checkpoints", "gammas.json"} <= names
    assert "<html" in (done[0] / "report.html").read_text()
    assert parse((done[0] / "recipe.yaml").read_text(), "r")[0] == dump(tiny(EVERYWHERE))


def test_costs_follow_the_budget_of_the_original_network(done: tuple[Path, dict]) -> None:
    _, result = done
    whole, by_stage = result["before"]["macs"], {s["name"]: s["macs"] for s in result["stages"]}
    assert by_stage["sparsify"] == whole
    assert 0.7 * whole < by_stage["prune-1"] <= 0.8 * whole
    assert 0.55 * whole < by_stage["prune-2"] <= 0.6 * whole
    assert by_stage["finetune"] == result["after"]["macs"] == by_stage["prune-2"]


def test_the_plan_is_that_of_the_saved_network(done: tuple[Path, dict]) -> None:
    folder, result = done
    net = prunus.load(folder / "model.safetensors", digits_net)
    assert sum(p.numel() for p in net.parameters()) == result["after"]["params"]
    assert net.features[0].out_channels == result["plan"]["features.0"]["kept"]
    assert result["plan"]["features.0"]["units"] == digits_net().features[0].out_channels


def test_gammas_before_sparse_training_are_those_of_the_start(done: tuple[Path, dict]) -> None:
    gammas = json.loads((done[0] / "gammas.json").read_text())
    start = load_file(done[0] / "checkpoints" / "00-start.safetensors")
    sparse = load_file(done[0] / "checkpoints" / "01-sparsify.safetensors")
    assert gammas["before"].keys() == gammas["after"].keys() and gammas["before"]
    for name in gammas["before"]:
        torch.testing.assert_close(torch.tensor(gammas["before"][name]), start[name], atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.tensor(gammas["after"][name]), sparse[name], atol=1e-6, rtol=0)


def test_the_same_recipe_gives_the_same_weights(done: tuple[Path, dict], tmp_path: Path) -> None:
    again, result = run(tiny(), tmp_path / "again", quiet=True)
    assert_same(again, done[0])
    assert result["plan"] == done[1]["plan"]


def test_a_folder_that_holds_a_run_is_refused_and_untouched(done: tuple[Path, dict]) -> None:
    before = {p: p.stat().st_mtime_ns for p in done[0].rglob("*")}
    with pytest.raises(InputError, match="already holds a run; nothing was written"):
        run(tiny(EVERYWHERE), done[0], quiet=True)
    with pytest.raises(InputError, match="another recipe .*seed"):
        run(tiny(EVERYWHERE + "seed: 5\n"), done[0], resume=True, quiet=True)
    assert run(tiny(EVERYWHERE), done[0], resume=True, quiet=True) == done
    assert {p: p.stat().st_mtime_ns for p in done[0].rglob("*")} == before


def test_a_foreign_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out, why in ((tmp_path, "is not empty"), (tmp_path / "mine.txt", "is a file")):
        with pytest.raises(InputError, match=why):
            run(tiny(), out, quiet=True)
    with pytest.raises(InputError, match="holds no run"):
        run(tiny(), tmp_path, resume=True, quiet=True)
    with pytest.raises(InputError, match="--out .*cannot be written"):
        run(tiny(), tmp_path / "mine.txt" / "out", quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("macs: 0.6", "macs: 0.00001"), BudgetError),
        (("source: digits", "source: /no/such/folder"), FileError),
        (("recipe: tiny", "recipe: tiny\nclasses: 4"), InputError),
        (("recipe: tiny", "recipe: tiny\nweights: /no/file.safetensors"), FileError),
        (("criterion: bn-gamma,", "criterion: bn-gamma, freeze: [conv9],"), InputError),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path, change: tuple[str, str], error: type) -> None:
    with pytest.raises(error):
        run(tiny(TINY.replace(*change)), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


GONE = f".recipe.yaml.{_me().rpartition('-')[0]}-{2**22 + 1}.abcdefgh.part"  # of a process that there cannot be


@pytest.mark.parametrize("left", [None, "", GONE])
def test_resuming_where_nothing_was_written_starts(tmp_path: Path, left: str | None) -> None:
    out = tmp_path / "out"
    if left is not None:
        out.mkdir()
    if left:
        (out / left).mkdir()
        (out / left / "recipe.yaml").write_text("recipe: ti")
    text = TINY[: TINY.index("data:")] + TINY[TINY.index("measure:") : TINY.index("  - {do: sparsify")]
    recipe = tiny(text + "  - {do: prune, budget: {macs: 0.6}}\n")
    assert run(recipe, out, resume=True, quiet=True)[0] == out
    assert (out / "result.json").is_file() and not list(out.rglob("*.part"))


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "prunus", "run", str(recipe), "--out", str(out), "--json", *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)


def kill_when(process: subprocess.Popen[bytes], ready: Path, word: str) -> None:
    """SIGKILL as soon as the file `ready` has `word` in it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if ready.exists() and word in ready.read_text():
            break
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_in_fine_tuning_and_resumed_is_as_if_never_broken(done: tuple[Path, dict], tmp_path: Path) -> None:
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "out"
    recipe.write_text(write(dump(tiny())))
    kill_when(start(recipe, out), out / "metrics.csv", "finetune,1")
    assert not (out / "result.json").exists()
    process = start(recipe, out, "--resume")
    assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
    assert_same(out, done[0])
    rows = [line.split(",")[:2] for line in (out / "metrics.csv").read_text().splitlines()[1:]]
    assert rows == [["sparsify", "1"], ["finetune", "1"], ["finetune", "2"]]
    assert json.loads((out / "result.json").read_text())["plan"] == done[1]["plan"]


def test_resume_without_a_folder_takes_the_newest_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: tuple[Path, dict]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no unfinished run"):
        run(tiny(EVERYWHERE), resume=True, quiet=True)
    for name in ("old", "new"):
        (tmp_path / "runs").mkdir(exist_ok=True)
        copy_unfinished(done[0], tmp_path / "runs" / name)
    os.utime(tmp_path / "runs" / "old", (1, 1))
    path, _ = run(tiny(EVERYWHERE), resume=True, quiet=True)
    assert path == Path("runs/new")
    assert_same(path, done[0])
    assert not (tmp_path / "runs" / "old" / "result.json").exists()


def test_a_recipe_written_without_a_key_is_the_same_at_its_default(done: tuple[Path, dict], tmp_path: Path) -> None:
    copy_unfinished(done[0], tmp_path / "old")
    raw = dump(tiny(EVERYWHERE))
    del raw["data"]["label"], raw["measure"]["threads"]
    (tmp_path / "old" / "recipe.yaml").write_text(write(raw))
    assert choose(tiny(EVERYWHERE), tmp_path / "old", resume=True) == tmp_path / "old"


def copy_unfinished(source: Path, target: Path) -> None:
    """A run that was killed while it measured."""
    import shutil

    shutil.copytree(source, target)
    for name in ("result.json", "report.html"):
        (target / name).unlink()


def test_scales_begin_where_the_recipe_says(tmp_path: Path) -> None:
    stage = "  - {do: sparsify, epochs: 1, lr: 1e-3, initial_scale: 0.5, regularizer: {name: bn-gamma, strength: 0}}\n"
    folder, _ = run(tiny(TINY[: TINY.index("stages:")] + "stages:\n" + stage), tmp_path / "run", quiet=True)
    before = json.loads((folder / "gammas.json").read_text())["before"]
    assert before and {v for values in before.values() for v in values} == {0.5}


def test_the_file_that_was_exported_is_the_one_that_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, to_onnx = [], prunus.export.to_onnx
    monkeypatch.setattr(prunus.export, "to_onnx", lambda *a, **k: written.append(a[2].name) or to_onnx(*a, **k))
    raw = {"recipe": "cut", "model": "prunus:digits_net", "stages": [{"do": "prune", "budget": {"macs": 0.5}}]}
    raw["stages"].append({"do": "export", "to": ["onnx"]})
    raw["measure"] = {"backends": ["onnxruntime"], "batches": [1], "seconds": 0.01}
    _, result = run(check(raw, {}, "cut"), tmp_path / "out", quiet=True)
    assert written == ["before.onnx"] and result["after"]["latency_ms"]["onnxruntime,b1,t1"] > 0
