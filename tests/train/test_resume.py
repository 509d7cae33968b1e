"""A run that was killed at any moment and resumed ends as the unbroken one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
DEATHS = (
    "before the first checkpoint",
    "in the middle of an epoch",
    "while a checkpoint is written",
    "before a checkpoint is put in place",
    "between metrics and checkpoint",
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of one process")


@pytest.fixture(scope="module")
def results(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "killed.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("death", DEATHS)
def test_killed_and_resumed_is_unbroken_to_the_bit(results: Any, death: str) -> None:
    unbroken, resumed = results["unbroken"], results[death]
    assert resumed["killed"], "the first process was to be killed"
    assert resumed["weights"] == unbroken["weights"]
    assert resumed["rows"] == unbroken["rows"]
    assert resumed["csv"] == unbroken["csv"]
    assert not resumed["left"]


def test_in_bfloat16_too(results: Any) -> None:
    assert results["bf16, killed"]["killed"]
    assert results["bf16, killed"]["weights"] == results["bf16"]["weights"]
    assert results["bf16"]["weights"] != results["unbroken"]["weights"]
