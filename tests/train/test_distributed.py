"""Two processes over gloo, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.train import fit

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(HERE / "two_ranks.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Any:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("stage", ["plain", "norm", "norm-resumed"])
def test_both_ranks_end_equal(ranks: Any, stage: str) -> None:
    a, b = ranks[0][stage], ranks[1][stage]
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert a["rows"] == b["rows"]


def test_they_make_the_steps_of_one_process(ranks: Any, data: Any, small: Any, make: Any) -> None:
    model = make(norm=False)
    history = fit(model, data, **small, stage="plain")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            ranks[0]["plain"]["model"][name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    for (loss, accuracy), row in zip(ranks[0]["plain"]["rows"], history, strict=True):
        assert loss == pytest.approx(row.loss, rel=1e-5)
        assert accuracy == row.accuracy


def test_running_means_are_those_of_whole_batches(ranks: Any, data: Any, small: Any, make: Any) -> None:
    """A running mean is linear in its batch; the variance of halves lacks what is between the halves' means."""
    model = make()
    fit(model, data, **small | {"lr": 1e-12}, stage="still")
    for rank in ranks:
        state = rank["still"]["model"]
        torch.testing.assert_close(state["1.running_mean"], model[1].running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state["1.running_var"], model[1].running_var, rtol=0.02, atol=0)
        assert int(state["1.num_batches_tracked"]) == 12


def test_a_finished_stage_is_loaded_on_both(ranks: Any) -> None:
    for rank in ranks:
        for name, value in rank["norm"]["model"].items():
            assert torch.equal(rank["norm-resumed"]["model"][name], value)


def test_only_the_first_rank_writes(folder: Path) -> None:
    assert (folder / "metrics.csv").read_text().count("plain,") == 2
    assert len(list((folder / "tensorboard" / "plain").iterdir())) == 1


def test_nan_on_one_rank_stops_both(folder: Path) -> None:
    for rank in (0, 1):
        assert (folder / f"error{rank}.txt").read_text().startswith("TrainingError: stage 'bad': the loss became nan")


def test_a_process_leaves_its_group_before_it_ends(folder: Path) -> None:
    assert all((folder / f"left{rank}").exists() for rank in (0, 1))
