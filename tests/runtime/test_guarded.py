"""No kernel touches a byte outside of its buffers, whatever the network, the batch and the threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with mprotect")

KINDS = {
    "residual": "dense layout mean pool sparse",
    "mobile": "dense layout mean mul sparse",
    "dense": "dense layout pool sparse",
    "shuffle": "add dense layout mul pool sparse",
    "pixels": "dense layout mean pool resize rows sparse",
    "basis": "dense layout sparse winograd",
    "dynamic": "dynamic",
}


@pytest.fixture(scope="module")
def ended() -> dict[tuple[str, ...], list[str]]:
    """How every case of `guarded` ended, and what it ran."""
    command = [sys.executable, "-m", "tests.runtime.guarded"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stderr[-2000:]
    print(ran.stderr[-2000:])
    return {tuple(line.split()[:3]): line.split()[3:] for line in ran.stdout.splitlines()}


@pytest.mark.parametrize("where", ["end", "start"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_of_the_buffers_is_touched(ended, kind: str, where: str) -> None:
    how, *kinds = ended[kind, where, "sound"]
    assert how == "well" and {*KINDS[kind].split()} <= {*kinds}


def test_every_kind_of_kernel_that_writes_elsewhere_is_noticed(ended) -> None:
    broken = {case: how for case, how in ended.items() if case[2] != "sound"}
    assert {case[2] for case in broken} >= {k for kinds in KINDS.values() for k in kinds.split()} - {"dynamic"}
    assert all(how == ["killed"] for how in broken.values())
