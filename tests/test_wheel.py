"""The wheel that is built from this tree installs and runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that nothing is left in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "prunus", source / "prunus", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("prunus-*.whl"))


def test_the_wheel_holds_recipes_templates_types_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"prunus/{p.relative_to(ROOT / 'prunus')}" for p in (ROOT / "prunus").rglob("*") if p.is_file()}
    wanted = {n for n in sources if not n.endswith(".pyc")}
    assert wanted - names == set()
    assert {"prunus/py.typed", "prunus/recipes/builtin/quickstart.yaml"} <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not any(n.startswith(("tests/", "examples/")) for n in names)


def test_the_wheel_installs_and_its_command_answers(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    libraries = [p for p in sys.path if p.endswith("site-packages")]  # the dependencies of this environment
    (site / "dependencies.pth").write_text("\n".join(libraries) + "\n")

    def said(*command: object) -> str:
        arguments = [str(part) for part in command]
        return subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    script = tmp_path / "venv" / "bin" / "prunus"
    assert str(tmp_path) in said(python, "-c", "import prunus; print(prunus.__file__)")
    shown = said(script, "--help")
    assert all(verb in shown for verb in ("run", "prune", "groups", "measure", "export", "report", "validate"))
    assert "quickstart" in said(script, "ls", "recipes")
