"""The command line: what the user gave is wrong in content, not only in form; one message, code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunus.cli import main

OWN = """\
from torch import nn
def net():
    return nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3))
def conv():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
def broken():
    raise RuntimeError("no such layer here")
def needy(width):
    return nn.Linear(width, 2)
def score(model): return "good"
def fails(model): raise KeyError("labels.csv")
"""
HALF = ["--budget", "params=0.6"]


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A user's file with networks and measures."""
    (tmp_path / "mine.py").write_text(OWN)
    return str(tmp_path / "mine.py")


def code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that ends with code 2 and prints nothing else."""
    assert code(*arguments) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("Error: ") and "Traceback" not in streams.err and streams.out == ""
    return streams.err


@pytest.mark.parametrize("shape", ["1,6", "1,5:int64<50", "1,6:int64<99999"])
def test_an_input_that_forward_does_not_take(
    shape: str, own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["groups"], ["measure"], ["prune", *HALF, "--out", tmp_path / "out"]):
        assert "does not take inputs of (1," in refused(capsys, *command, f"{own}:net", "--input", shape)
    assert not (tmp_path / "out").exists()


def test_an_own_measure_is_tried_before_anything_is_written(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prune", f"{own}:net", "--input", "1,6:int64<50", *HALF, "--out", tmp_path / "out"]
    assert "returned 'good'; expected one finite number" in refused(capsys, *command, "--evaluate", f"{own}:score")
    assert "raised KeyError: 'labels.csv'" in refused(capsys, *command, "--evaluate", f"{own}:fails")
    assert "defines no function 'los'" in refused(capsys, *command, "--loss", f"{own}:los")
    assert not (tmp_path / "out").exists()


def test_a_factory_that_raises_or_needs_arguments(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "groups", f"{own}:broken", "--input", "1,3")
    assert "raised RuntimeError when it was called: no such layer here" in said
    assert "missing a required argument: 'width'" in refused(capsys, "groups", f"{own}:needy", "--input", "1,3")


def test_a_finished_run_needs_neither_its_weights_nor_its_shape_again(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prunus.zoo import build

    torch.save(build(f"{own}:conv", seed=1).module.state_dict(), tmp_path / "w.pt")
    given = ["--data", "digits", "--weights", tmp_path / "w.pt", "--out", tmp_path / "out", "--json"]
    assert code("prune", f"{own}:conv", *HALF, *given) == 0
    (tmp_path / "w.pt").unlink()
    assert code("measure", tmp_path / "out", "--backend", "torch", "--seconds", "0.01", "--json") == 0
    assert code("export", tmp_path / "out", "--out", tmp_path / "net.onnx", "--json") == 0


def test_export_never_writes_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.onnx"
    mine.write_text("mine")
    assert "exists already; nothing was written" in refused(capsys, "export", tmp_path, "--out", mine)
    assert mine.read_text() == "mine"


def test_weights_that_hold_nothing_or_more_than_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "w.pt"
    weights.touch()
    assert "is empty" in refused(capsys, "measure", "prunus:digits_net", "--weights", weights)
    torch.save({"model": Path()}, weights)
    said = refused(capsys, "measure", "prunus:digits_net", "--weights", weights)
    assert "holds more than tensors" in said and "weights_only" not in said and len(said) < 400


@pytest.mark.parametrize("budget", ["macs=50", "macs=50%", "params=100"])
def test_a_percentage_is_told_how_a_fraction_is_written(
    budget: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "prune", "prunus:digits_net", "--budget", budget, "--out", tmp_path / "out")
    assert "0.5" in said and not (tmp_path / "out").exists()


def test_a_folder_in_use_is_no_reason_to_resume_a_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    said = refused(capsys, "prune", "prunus:digits_net", *HALF, "--out", tmp_path)
    assert "is not empty" in said and "--resume" not in said


def test_a_place_that_cannot_be_written(own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = ["prune", "prunus:digits_net", *HALF]
    assert "cannot be written" in refused(capsys, *cut, "--out", Path(own) / "out")
    page = Path(own) / "groups" / "page.html"
    assert "--html" in refused(capsys, "groups", "prunus:digits_net", "--html", page)


def test_a_folder_that_is_not_there_is_no_misspelt_model(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "measure", "runs/resnet20")
    assert "no folder of a run at 'runs/resnet20'" in said and "Did you mean" not in said


def test_a_floor_between_two_numbers_of_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = ["prune", "prunus:digits_net", *HALF, "--out", tmp_path / "out"]
    assert "1.5 is neither a share" in refused(capsys, *cut, "--floor", "1.5")
