"""torchvision, and lightning with it, can be imported beside a CPU-only torch once the operators are declared."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

DECLARE = "from prunus.core.torchvision_ops import declare_torchvision_operators as declare; declare();"
installed = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new process: what a library declares cannot be taken back in this one."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@installed
def test_lightning_can_be_imported() -> None:
    done = run(f"{DECLARE} import lightning")
    assert done.returncode == 0, done.stderr


@installed
def test_torchvision_can_be_imported_and_both_operators_are_there() -> None:
    done = run(f"{DECLARE} import torch, torchvision; torch.ops.torchvision.nms; torch.ops.torchvision.qnms")
    assert done.returncode == 0, done.stderr


def test_an_operator_that_is_there_is_left_alone() -> None:
    done = run(
        "import torch, importlib.util as u; from types import SimpleNamespace as N;"
        "library = torch.library.Library('torchvision', 'FRAGMENT');"
        "library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor');"
        "real = u.find_spec; u.find_spec = lambda n, *a: N(origin='/none/x.py') if n == 'torchvision' else real(n, *a);"
        "from prunus.core.torchvision_ops import declare_torchvision_operators as declare;"
        "assert declare() == ('qnms',); assert declare() == ()"
    )
    assert done.returncode == 0, done.stderr


def test_without_torchvision_nothing_is_declared() -> None:
    done = run(
        "import torch, importlib.util as u; real = u.find_spec;"
        "u.find_spec = lambda n, *a: None if n == 'torchvision' else real(n, *a);"
        "from prunus.core.torchvision_ops import declare_torchvision_operators as declare;"
        "assert declare() == (); assert not hasattr(torch.ops.torchvision, 'nms')"
    )
    assert done.returncode == 0, done.stderr
