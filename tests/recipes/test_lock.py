"""Two processes in one run folder, what a killed one leaves, and ranks that do not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.core import InputError, TrainingError
from prunus.recipes import load, run
from prunus.recipes.lock import locked
from prunus.recipes.ranks import answering
from prunus.train.launch import patience

PLAIN = "recipe: mine\nmodel: prunus:digits_net\nmeasure: {backends: [torch], batches: [1], seconds: 0.01}\n"
PLAIN += "stages:\n- {do: prune, budget: {macs: 0.5}}\n"
HOLD = "import sys, time, pathlib; from prunus.recipes.lock import locked\n"
HOLD += "with locked(pathlib.Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(100)\n"


def recipe(folder: Path):
    (folder / "r.yaml").write_text(PLAIN)
    return load(folder / "r.yaml")


def test_a_second_process_is_told_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "in\n"
        with pytest.raises(InputError, match="another process is running in the folder"):
            run(recipe(tmp_path), out, quiet=True)
        assert not list(out.iterdir())
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    path, _ = run(recipe(tmp_path), out, quiet=True)
    assert (path / "result.json").is_file()


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    names = (".model.safetensors.vm-12.abcdefgh.part", "checkpoints/.train.pt.vm-12.ab_d3fgh.part")
    rooms = [tmp_path / name for name in names]
    for room in rooms:
        room.mkdir(parents=True)
        (room / "file").write_text("half")
    (tmp_path / "film.mkv.part").write_text("half of something else")
    with locked(tmp_path):
        assert not any(room.exists() for room in rooms)
    assert (tmp_path / "film.mkv.part").exists()


def test_a_folder_into_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()


def test_a_link_to_a_folder_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with locked(tmp_path / "real"), pytest.raises(InputError, match="another process"), locked(tmp_path / "link"):
        pass


def test_how_long_others_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNUS_TIMEOUT", raising=False)
    assert patience().total_seconds() == 300
    monkeypatch.setenv("PRUNUS_TIMEOUT", "7")
    with pytest.raises(TrainingError, match="for 7 seconds.*PRUNUS_TIMEOUT.*--resume"), answering():
        raise RuntimeError("Timed out waiting 7000ms for recv operation to complete")
    with pytest.raises(RuntimeError, match="other"), answering():
        raise RuntimeError("other")
    monkeypatch.setenv("PRUNUS_TIMEOUT", "soon")
    with pytest.raises(InputError, match="PRUNUS_TIMEOUT='soon'"):
        patience()


STOPPED = """
import os, sys, time
import torch.distributed as dist
from prunus.recipes import ranks
rank = ranks.join()
if rank == 1:
    time.sleep(600)
with ranks.answering():
    ranks.wait()
"""


def test_a_rank_that_is_stopped_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(STOPPED)
    port = str(20000 + os.getpid() % 20000)
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"PRUNUS_TIMEOUT": "4", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "two.py")],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        _, shown = both[0].communicate(timeout=300)  # a machine may be busy
        assert both[0].returncode == 1 and "did not answer for 4 seconds" in shown
    finally:
        for process in both:
            process.kill()
            process.communicate()
