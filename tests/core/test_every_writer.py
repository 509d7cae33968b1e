"""Every file is written through `prunus.core.writing`, and a full disk is one clear error that leaves the old file."""

from __future__ import annotations

import ast
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import prunus
from prunus.core.errors import WriteError
from prunus.data.cache import read_cache, write_cache
from prunus.recipes.folder import Folder
from prunus.runtime import cache as kernels
from prunus.train.board import Board
from prunus.train.checkpoint import save_checkpoint
from prunus.train.history import Epoch, write_metrics
from tests.report.sample import write
from tests.surgery.rewriting import Fixed

HOME = Path(prunus.__file__).parent
DOORS = ("replacing", "write_atomically", "write_text")  # of core/writing.py
# what writes a file: methods of paths, of os, shutil and tempfile, and functions of libraries
WRITES = {
    "write_text", "write_bytes", "touch", "rename", "replace_file", "symlink_to", "link_to", "hardlink_to", "mkstemp",
    "NamedTemporaryFile", "TemporaryFile", "copyfile", "copytree", "save_file", "save_model", "savefig",
    "tofile", "savez", "savez_compressed", "to_csv", "to_parquet", "serialize_file", "SummaryWriter", "fdopen",
}  # fmt: skip
OF_MODULES = {
    ("os", "replace"),
    ("torch", "save"),
    ("np", "save"),
    ("json", "dump"),
    ("yaml", "dump"),
    ("shutil", "copy"),
}
ELSEWHERE = {
    "train/board.py": "SummaryWriter",  # a log that its library appends to; an OSError of it is caught there
    "export/onnx.py": "save_model",  # in a function that is called with the path that `replacing` gave
}


def writing(node: ast.Call) -> str | None:
    """What a call writes with, where it writes a file."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    owner = getattr(getattr(node.func, "value", None), "id", None)
    if (owner, name) in OF_MODULES or (name in WRITES and isinstance(node.func, ast.Attribute)):
        return name
    if name in WRITES - {"write_text"}:
        return name
    if name == "open" and (owner, name) != ("os", "open"):
        modes = [*node.args[1:2], *node.args[:1], *(k.value for k in node.keywords if k.arg == "mode")]
        texts = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
        return name if any(set(t) <= set("rwaxbt+") and set(t) & set("wax+") for t in texts) else None
    if (owner, name) == ("os", "open"):
        flags = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        return name if flags & {"O_WRONLY", "O_RDWR", "O_CREAT"} else None
    return None


def calls(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Every call that writes a file, and whether it stands inside one of the doors."""
    for node in ast.iter_child_nodes(tree):
        within = inside
        if isinstance(node, ast.With):
            within |= any(getattr(getattr(i.context_expr, "func", None), "id", "") in DOORS for i in node.items)
        if isinstance(node, ast.Call):
            within |= getattr(node.func, "id", "") in DOORS
            if found := writing(node):
                yield found, inside, node.lineno
        yield from calls(node, within)


def test_no_other_place_opens_a_file_for_writing():
    found = []
    for path in sorted(HOME.rglob("*.py")):
        file = path.relative_to(HOME).as_posix()
        if file == "core/writing.py":
            continue
        written = calls(ast.parse(path.read_text(encoding="utf-8")))
        found += [
            f"{file}:{line}: {name}" for name, inside, line in written if not inside and ELSEWHERE.get(file) != name
        ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "open(path, 'w')", "open(path, mode='a')", "path.open('wb')", "Path(p).write_text('')", "p.write_bytes(b'')",
        "os.open(p, os.O_RDWR | os.O_CREAT)", "torch.save(x, p)", "save_file(t, p)", "os.replace(a, b)",
        "tempfile.NamedTemporaryFile()", "figure.savefig(p)", "open(p, 'r+')",
    ],
)  # fmt: skip
def test_what_writes_is_seen(text):
    assert [inside for _, inside, _ in calls(ast.parse(text))] == [False]
    assert [inside for _, inside, _ in calls(ast.parse(f"with replacing(q) as p:\n  {text}"))] == [True]
    assert [inside for _, inside, _ in calls(ast.parse(f"write_atomically(q, lambda file: {text})"))] == [True]


@pytest.mark.parametrize("text", ["open(path)", "open(p, 'rb')", "write_text(p, '')", "os.open(p, os.O_RDONLY)"])
def test_what_reads_is_not(text):
    assert not list(calls(ast.parse(text)))


# ---- a full disk ----------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


X = torch.zeros(1, 3, 8, 8)
EPOCH = Epoch(stage="a", epoch=1, step=1, loss=1.0, accuracy=0.5, lr=0.1, seconds=1.0)


def engine(path: Path) -> Callable[[], Any]:
    network = prunus.runtime.compile(net(), X)
    return lambda: prunus.runtime.save(network, path)


def rewritten(path: Path) -> Callable[[], Any]:
    report = prunus.prune_(Fixed().eval(), torch.randn(2, 3, 6, 6), budget=prunus.Budget(macs=0.5))
    assert not report.in_place
    return lambda: prunus.save(report.model, path)


def command(*arguments: str) -> Callable[[], Any]:
    from prunus.cli import app

    def call() -> Any:
        run = CliRunner().invoke(app, [*arguments])
        if run.exception is not None:
            raise run.exception

    return call


# by the file that writes: what makes a call that writes to a path
WRITERS: dict[str, list[Callable[[Path], Callable[[], Any]]]] = {
    "surgery/files.py": [
        lambda path: lambda: prunus.save(net(), path),
        lambda path: lambda: prunus.save(net(), path, compress=True),
        rewritten,
    ],
    "runtime/files.py": [engine],
    "export/onnx.py": [lambda path: lambda: prunus.export.to_onnx(net(), X, path, verify=False)],
    "export/sparse.py": [lambda path: lambda: prunus.export.to_sparse(net(), X, path, verify=False)],
    "report/page.py": [lambda path: partial(prunus.report.html, write(path.parent))],
    "report/drawing.py": [lambda path: partial(prunus.report.picture, write(path.parent), path)],
    "recipes/folder.py": [lambda path: lambda: Folder(path.parent).write_json(path.name, {"a": "b" * 99})],
    "train/history.py": [lambda path: lambda: write_metrics(path, "a", (EPOCH,))],
    "train/checkpoint.py": [lambda path: lambda: save_checkpoint(path, {"w": torch.zeros(99)})],
    "cli/cp.py": [lambda path: command("cp", "quickstart", str(path))],
    "cli/groups.py": [lambda path: command("groups", "prunus:digits_net", "--html", str(path))],
    "data/cache.py": [],  # below: a disk that is full costs time, nothing else
    "runtime/cache.py": [],
}
NAMES = {"report/page.py": "report.html"}
NEW = ("cli/cp.py", "cli/groups.py")  # they refuse to write where something is


@contextmanager
def full_disk(most: int = 16) -> Iterator[None]:
    """The system itself refuses to make any file longer than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_file_that_writes_is_here():
    tells = {
        path.relative_to(HOME).as_posix()
        for path in HOME.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in DOORS
    }
    assert tells - {"core/writing.py"} == set(WRITERS)


@pytest.mark.parametrize(("file", "number"), [(file, i) for file, made in WRITERS.items() for i in range(len(made))])
def test_a_full_disk_is_one_error_and_the_old_file_stays(file, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / NAMES.get(file, "it.safetensors")
    call = WRITERS[file][number](path)
    call()
    assert path.stat().st_size > 16
    if file in NEW:
        path.unlink()
    before = files(tmp_path)
    with full_disk(), pytest.raises(WriteError, match="What was there before is still whole") as told:
        call()
    assert isinstance(told.value, OSError) and path.name in str(told.value)
    assert files(tmp_path) == before and not list(tmp_path.rglob("*.part"))


def test_kernels_and_images_that_the_disk_does_not_take_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path))
    write_cache("a", {"x": torch.ones(9)}, {})
    kernels.store("k", b"code" * 9)
    before = files(tmp_path)
    with full_disk(), pytest.warns(UserWarning, match="decoded images are not kept"):
        write_cache("a", {"x": torch.zeros(9)}, {})
        write_cache("b", {"x": torch.zeros(9)}, {})
        kernels.store("k", b"more" * 9)
        kernels.store("l", b"more" * 9)
    assert files(tmp_path) == before and not [p for p in tmp_path.rglob("*") if ".part" in p.name or "tmp" in p.name]
    assert read_cache("b") is None and kernels.stored("l") is None and kernels.stored("k") == b"code" * 9


def test_curves_end_where_the_disk_is_full(tmp_path):
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.warns(RuntimeWarning, match="curves end here"):
        board = Board(tmp_path, "a", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        board.add(EPOCH)
        board.close()
