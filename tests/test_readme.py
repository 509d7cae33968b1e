"""Every block of the README does what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_HERE = ("python3 -m venv", "./test")  # what .ci/run itself does


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(language: str) -> list[list[str]]:
    lines = [line for block in blocks(language) for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines if not line.startswith(NOT_HERE)]


SMALL = """\
from torch import nn
from prunus.zoo import CifarResNet


def net():
    model = CifarResNet(8)
    model.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
    return model
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def prunus(arguments: list[str], folder: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prunus", *arguments]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, f"prunus {' '.join(arguments)}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def test_the_python_blocks_run_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["report"].after["macs"] <= 0.5 * names["report"].before["macs"]
    assert names["report"].verified.max_relative_error <= 1e-7
    assert (folder / "smaller.safetensors").is_file()


@pytest.mark.slow
def test_the_commands_run_in_order_and_the_quickstart_keeps_its_promise(folder: Path) -> None:
    given = commands("bash")
    assert given[0][:3] == ["prunus", "run", "quickstart"] and all(c[0] == "prunus" for c in given)
    for command in given:
        assert prunus(command[1:], folder).strip()
    first = folder / "runs" / "first"
    result = json.loads((first / "result.json").read_text())
    before, after = result["before"], result["after"]
    assert after["macs"] <= 0.4 * before["macs"]
    assert all(g["kept"] % 16 == 0 for g in result["plan"].values())
    assert after["accuracy"] >= before["accuracy"] - 0.02 and before["accuracy"] > 0.95
    assert result["verified"]["max_relative_error"] <= 1e-7
    for name in ("report.html", "model.safetensors", "model.onnx"):
        assert (first / name).stat().st_size > 1000


def test_the_long_command_is_a_valid_recipe(folder: Path) -> None:
    command = commands("console")[0]
    assert command[:3] == ["prunus", "run", "network-slimming"]
    overrides = [a for a in command[3:] if "=" in a]
    resolved = json.loads(prunus(["validate", "network-slimming", *overrides, "--json"], folder))
    cut = next(s for s in resolved["stages"] if s["do"] == "prune")
    assert (resolved["weights"], cut["budget"]["macs"]) == ("resnet56.safetensors", 0.5)


def test_the_command_without_training_is_one(folder: Path) -> None:
    """On a smaller network without weights, and on digits."""
    (folder / "small.py").write_text(SMALL)
    command = commands("console")[1]
    given = {"prunus:resnet56": "small.py:net", "cifar10": "digits"}
    args = [given.get(a, a) for a in command[1:]]
    at, out = args.index("--weights"), args.index("--out")
    args = args[:at] + args[at + 2 : out] + ["--dry-run", "--json"]
    data = json.loads(prunus(args, folder))
    assert data["after"]["macs"] <= 0.5 * data["before"]["macs"]


def test_the_command_of_single_weights_is_a_valid_recipe(folder: Path) -> None:
    command = commands("console")[2]
    assert command[:3] == ["prunus", "run", "pruning-at-init"]
    resolved = json.loads(prunus(["validate", *command[2:], "--json"], folder))
    mask = next(s for s in resolved["stages"] if s["do"] == "mask")
    assert (mask["criterion"], mask["basis"]["sharing"], mask["budget"]["density"]) == ("synflow", "fine", 0.05)


def test_every_file_linked_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_example_for_a_task_without_classes(tmp_path: Path) -> None:
    source = ROOT / "examples" / "own_model.py"
    assert len(source.read_text().splitlines()) <= 80
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, source, tmp_path], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    numbers = [float(n) for n in re.findall(r"([\d.]+) dB", run.stdout)]
    assert len(numbers) == 3 and numbers[2] > numbers[0] - 1.0
    assert (tmp_path / "denoiser.safetensors").is_file()
