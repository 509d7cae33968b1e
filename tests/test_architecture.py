"""The rooms import only from rooms above them, the base import is light, and what is public is documented."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

import prunus

ROOT = Path(prunus.__file__).parent
MODELS = {"data", "zoo"}
BELOW = {
    "version": set(),
    "core": set(),
    "tracing": {"core"},
    "observe": {"core"},
    "measure": {"core"},
    "surgery": {"core", "tracing"},
    "criteria": {"core", "observe"},
    "allocators": {"core", "measure", "surgery"},  # sensitivity silences units
    "schedules": {"core"},
    "regularizers": {"core", "criteria"},  # the clusters of k-means
    "recovery": {"core", "observe", "measure"},
    "masks": {"core", "tracing", "observe", "criteria", "allocators", "schedules", "recovery"},
    "runtime": {"core"},
    "dynamic": {"core", "tracing", "surgery", "runtime"},
    "export": {"core", "runtime"},
    "data": {"core"},
    "bases": {"core", "masks"},
    "zoo": {"core", "data"},
    "report": {"core"},
}
LIBRARY = set(BELOW) - {"report"}
BELOW["pruner"] = BELOW["prune"] = BELOW["depth"] = LIBRARY - MODELS
BELOW["integrations"] = {"core", "tracing", "surgery", "pruner"}
BELOW["train"] = LIBRARY | {"prune", "pruner"}
BELOW["recipes"] = BELOW["train"] | {"train", "report", "depth"}
BELOW["cli"] = BELOW["recipes"] | {"recipes"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"prunus.{a.name}" for a in node.names] if node.module == "prunus" else [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("prunus.")}
    return found


FILES = [p for p in sorted(ROOT.rglob("*.py")) if room(p) not in ("__init__", "__main__")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_up_the_table_only(path: Path) -> None:
    own = room(path)
    assert own in BELOW, f"{path}: room '{own}' is not in the table of docs/architecture.md"
    against = imported(path) - BELOW[own] - {own, "version"}
    assert not against, f"{path} imports from {sorted(against)}; {own} may import from {sorted(BELOW[own])}"


def test_every_room_is_described() -> None:
    table = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [r for r in {room(p) for p in FILES} - {"version"} if f"`{r}" not in table] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_answers_one_question(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 320


# what a thread that puts back what it found would take from another one
OF_THE_PROCESS = {"catch_warnings", "fork_rng", "set_fastpath_enabled", "_set_mkldnn_enabled", "set_default_dtype"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_settings_of_the_process_are_made_in_one_file(path: Path) -> None:
    named = {n.attr for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)}
    assert path == ROOT / "core" / "process.py" or not named & OF_THE_PROCESS, "core/process.py has them for threads"


def test_the_base_import_needs_torch_numpy_and_safetensors_alone() -> None:
    code = (
        "import sys, torch, numpy, safetensors.torch; before = {m.split('.')[0] for m in sys.modules}; import prunus;"
        "print(*sorted({m.split('.')[0] for m in sys.modules} - before - sys.stdlib_module_names - {'prunus'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert run.stdout.split() == []


def public() -> list[tuple[str, object]]:
    """Everything a room exports by ``__all__``, and the public methods of its classes."""
    found: dict[str, object] = {}
    for module in walk_packages([str(ROOT)], "prunus."):
        if not module.ispkg:
            continue
        package = import_module(module.name)
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            found[f"{module.name}.{name}"] = value
            if inspect.isclass(value) and value.__module__.startswith("prunus"):
                methods = {k: v for k, v in vars(value).items() if inspect.isfunction(v) or isinstance(v, property)}
                found |= {f"{module.name}.{name}.{k}": v for k, v in methods.items() if not k.startswith("_")}
    return sorted(found.items())


def test_what_is_public_is_documented() -> None:
    items = public()
    assert len(items) > 80
    bare = [name for name, value in items if not (getattr(value, "__doc__", "") or "").strip()]
    forward = [name for name in bare if name.endswith(".forward")]  # a network's forward needs no sentence
    assert sorted(set(bare) - set(forward)) == []


def test_all_names_of_the_package_exist() -> None:
    assert sorted(prunus.__all__) == sorted(set(prunus.__all__))
    assert all(hasattr(prunus, name) for name in prunus.__all__)
