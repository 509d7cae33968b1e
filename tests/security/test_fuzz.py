"""Crafted files: they load, or they are one clear error; nothing crashes, hangs or takes the machine's memory.

``PRUNUS_FUZZ=5000`` runs so many cases of every format instead of the few of CI; ``PRUNUS_FUZZ_SEED`` draws others.
A failure names the command that repeats it.
"""

from __future__ import annotations

import os
import sys

import pytest

from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.surgery import files
from tests.security.fuzz import find, formats, fuzz
from tests.security.tensorfile import parts, signed

NEEDS = {"pretrained": "transformers"}
CASES = int(os.environ.get("PRUNUS_FUZZ", "60"))
SEED = int(os.environ.get("PRUNUS_FUZZ_SEED", "0"))


@pytest.mark.skipif(sys.platform != "linux", reason="the limits and the peaks of memory are Linux'")
@pytest.mark.parametrize("name", sorted(formats()))
def test_a_crafted_file_can_do_nothing(name):
    declare_torchvision_operators()
    pytest.importorskip(NEEDS.get(name, "torch"))
    failures = fuzz(name, CASES, SEED)
    assert not failures, "\n".join(map(str, failures))


@pytest.mark.parametrize("name", ["state", "packed", "gated", "rewritten"])
def test_a_crafted_file_has_the_right_checksum(name, tmp_path):
    """Else all of them would be refused for that alone."""
    format = find(name)
    for path in format.write(tmp_path):
        header, data = parts(path.read_bytes())
        header["__metadata__"].pop(files.DIGEST)
        (tmp_path / "again.safetensors").write_bytes(signed(header, data))
        format.read(tmp_path / "again.safetensors")
