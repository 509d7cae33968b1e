"""The main jobs, whole, on a little of the real data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunus
from prunus.core import Plan
from prunus.recipes import load, run
from prunus.zoo import build, densenet_bc40, resnet20

ROOT = Path(__file__).resolve().parents[1]
LITTLE = ["data.limit=96", "epochs=1", "batch=32", "measure.batches=[1]", "measure.seconds=0.01"]


def test_network_slimming_of_a_trained_network(shared: Path, tmp_path: Path) -> None:
    weights = "$PRUNUS_SHARED/models/cifar10/resnet20.safetensors"
    given = ["model=prunus:resnet20", f"weights={weights}", "budget.macs=0.5", "stages.recalibrate.batches=3"]
    folder, result = run(load("network-slimming", [*LITTLE, *given]), tmp_path / "out", quiet=True)
    assert result["before"]["macs"] == 40_551_040 and result["before"]["params"] == 269_722
    assert 0.45 < result["after"]["macs"] / result["before"]["macs"] <= 0.5
    assert result["before"]["accuracy"] > 0.8  # the pretrained network, on 96 images of the test part
    assert result["verified"]["max_relative_error"] <= 1e-7
    assert "$PRUNUS_SHARED" in (folder / "recipe.yaml").read_text()
    net = prunus.load(folder / "model.safetensors", resnet20)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_several_passes_with_channel_selections(shared: Path, tmp_path: Path) -> None:
    weights = "$PRUNUS_SHARED/models/cifar10/densenet_bc40_k12.safetensors"
    given = ["model=prunus:densenet_bc40", f"weights={weights}", "budget.macs=0.7", "stages.recalibrate.batches=1"]
    recipe = load("network-slimming-multipass", [*LITTLE, "measure.backends=[torch]", "data.limit=32", *given])
    folder, result = run(recipe, tmp_path / "out", quiet=True)
    costs = {s["name"]: s["macs"] / result["before"]["macs"] for s in result["stages"]}
    assert 1 > costs["prune-1"] > costs["prune-2"] > costs["prune-3"]
    assert costs["prune-1"] <= 1 - 0.34 * 0.3 and 0.65 < costs["prune-3"] <= 0.7
    net = prunus.load(folder / "model.safetensors", densenet_bc40).eval()
    x = build("prunus:densenet_bc40").example(2)
    assert net(x).shape == (2, 10) and prunus.plan_of(net).added


SPY = """\
import os, sys
from pathlib import Path
from prunus.cli import main
from prunus.recipes import stages

cut = stages.cut

def spied(*given, **more):
    report = cut(*given, **more)
    Path(sys.argv[1], f"plan-{os.environ['RANK']}.json").write_text(report.plan.to_json())
    return report

stages.cut = spied
main(sys.argv[2:])
"""


def test_two_processes_make_the_same_plan_and_one_writes(tmp_path: Path) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        "recipe: two\nmodel: prunus:digits_net\ndata: {source: digits, limit: 200}\nbatch: 50\n"
        "measure: {batches: [1], backends: [torch], seconds: 0.01}\nstages:\n"
        "  - {do: sparsify, epochs: 1, lr: 0.05}\n"
        "  - {do: prune, criterion: bn-gamma, budget: {macs: 0.5}}\n"
        "  - {do: finetune, epochs: 1, lr: 0.01}\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    spy = tmp_path / "spy.py"
    spy.write_text(SPY)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617", str(spy)]
    arguments = [str(tmp_path), "run", str(recipe), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run([sys.executable, *command, *arguments], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one rank speaks
    assert result["after"]["macs"] <= 0.5 * result["before"]["macs"]
    one, two = (Plan.from_json((tmp_path / f"plan-{rank}.json").read_text()) for rank in (0, 1))
    assert one == two and not one.identity
    assert {k: len(g.kept) for k, g in one.groups.items()} == {k: g["kept"] for k, g in result["plan"].items()}
    rows = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert [r.split(",")[0] for r in rows] == ["stage", "sparsify", "finetune"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    parameters = [t for name, t in tensors.items() if name.endswith(("weight", "bias"))]
    assert sum(t.numel() for t in parameters) == result["after"]["params"]


ELSEWHERE = """\
import sys, torch, prunus
from prunus.zoo import build, resnet20

torch.set_num_threads(1)
net = prunus.load(f"{sys.argv[1]}/x/model.safetensors", resnet20).eval()
torch.save(net(build("prunus:resnet20").example(3)).detach(), f"{sys.argv[1]}/there.pt")
"""


@pytest.mark.slow
def test_the_pruned_resnet20_of_the_command_line(shared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prunus", "prune", "prunus:resnet20", "--criterion", "l2", "--budget", "macs=0.7"]
    command += ["--weights", str(shared / "models/cifar10/resnet20.safetensors")]
    command += ["--out", str(tmp_path / "x"), "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0.67 < result["after"]["macs"] / result["before"]["macs"] <= 0.7
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path)], env=env, check=True)
    there = torch.load(tmp_path / "there.pt", weights_only=True)
    here = prunus.load(tmp_path / "x" / "model.safetensors", resnet20).eval()(build("prunus:resnet20").example(3))
    assert torch.equal(there, here) and here.std() > 0
