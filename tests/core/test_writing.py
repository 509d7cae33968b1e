"""Files are replaced whole or not at all; links stay links, devices stay devices, and what the dead left is removed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.core.errors import WriteError
from prunus.core.writing import replacing, write_text


def net() -> nn.Module:
    return nn.Linear(64, 64)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "m.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(target)
    for _ in range(2):  # a link to nothing, and to a file
        prunus.save(net(), link)
        assert link.is_symlink() and target.is_file() and not target.is_symlink()
    assert isinstance(prunus.load(link, net), nn.Linear)
    assert [p.name for p in target.parent.iterdir()] == ["m.safetensors"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_is_no_file_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "folder", "null"):
        with pytest.raises(WriteError, match="a folder, a device or a pipe"):
            prunus.save(net(), tmp_path / name)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "null", "pipe"]


KILLED = """
import os, signal, sys
from pathlib import Path
from prunus.core.writing import replacing
with replacing(sys.argv[1]) as new:
    Path(new).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "m.txt"
    write_text(path, "old")
    (tmp_path / ".m.txt.other.part").write_text("of somebody else")
    subprocess.run([sys.executable, "-c", KILLED, str(path)])
    left = set(tmp_path.iterdir()) - {path, tmp_path / ".m.txt.other.part"}
    assert len(left) == 1 and path.read_text() == "old"
    with replacing(path) as new:  # what a process that is alive writes is not touched
        write_text(path, "new")
        assert len(list(tmp_path.iterdir())) == 3 and new.parent in tmp_path.iterdir()
        new.write_text("newer")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".m.txt.other.part", "m.txt"]
    assert path.read_text() == "newer"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a file's size is set as on Linux")
def test_a_full_disk_is_a_clear_error_and_the_old_file_stays(tmp_path):
    path = tmp_path / "m.safetensors"
    prunus.save(net(), path)
    before = path.read_bytes()
    code = (
        "import resource, signal, sys, torch, prunus; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: prunus.save(torch.nn.Linear(512, 512), sys.argv[1])\n"
        "except OSError as error: print(type(error).__name__, error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert run.stdout.startswith("WriteError") and "What was there before is still whole" in run.stdout, run.stderr
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert torch.equal(prunus.load(path, net).weight, prunus.load(path, net).weight)


def test_who_reads_the_old_file_meanwhile_reads_all_of_it(tmp_path: Path) -> None:
    """The new file takes the old one's place at once: it is another file, not the old one written over."""
    target = tmp_path / "result.json"
    target.write_text("the old one")
    with open(target) as reader:
        with replacing(target) as new:
            new.write_text("new")
            assert target.read_text() == "the old one"
        assert reader.read() == "the old one"
    assert target.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["result.json"]
