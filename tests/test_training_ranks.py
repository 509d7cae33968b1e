"""Pruning in training on two gloo processes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus

SCRIPT = Path(__file__).parent / "two_pruners.py"
pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch was built without gloo",
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("pruners")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    run = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("case", ["dropped", "alive"])
def test_both_ranks_make_the_choice_and_the_steps_of_one_process(
    ranks: list[Any], two: dict[str, Any], case: str
) -> None:
    model = two["network"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = two["pruner_of"](model)
    pruner.attach(optimizer)
    two["train"](model, optimizer, range(two["STEPS"]))
    report = pruner.finish_()
    two["train"](model, optimizer, range(two["STEPS"], two["STEPS"] + two["MORE"]))
    for rank in ranks:
        assert prunus.Plan.from_json(rank[case]["plan"]).groups == report.plan.groups
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(rank[case]["model"][name], tensor, rtol=1e-8, atol=1e-10)
            assert torch.equal(ranks[0][case]["model"][name], rank[case]["model"][name])


def test_what_was_cut_is_sharded_and_trained(ranks: list[Any], two: dict[str, Any]) -> None:
    model = two["network"]()
    prunus.prune_(model, two["X"], budget=prunus.Budget(params=0.6))
    assert all(torch.equal(ranks[0]["sharded"]["before"][n], t) for n, t in model.state_dict().items())
    two["train"](model, torch.optim.AdamW(model.parameters(), lr=0.01), range(two["MORE"]))
    for rank in ranks:
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(rank["sharded"]["model"][name], tensor, rtol=1e-8, atol=1e-10)
