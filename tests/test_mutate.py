"""The tool that draws changes: what it changes, which tests it runs, and that it tells noticed from survived."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools/mutate.py"
if not TOOL.exists():
    pytest.skip("tools/ is not in this copy", allow_module_level=True)
pytest.importorskip("coverage")
spec = importlib.util.spec_from_file_location("mutate", TOOL)
mutate = importlib.util.module_from_spec(spec)
sys.modules["mutate"] = mutate
spec.loader.exec_module(mutate)

CODE = '''
def half(x: "int" = 3, *, sure=True) -> "int":
    """Not 7."""
    if x < 1 and sure:
        raise ValueError(f"{x + 1} is below 2")
    return -x.sqrt() + (x.sum(dim=0) / 2)
'''


def changed(code):
    return {
        (c.kind, c.old, c.new): (code.encode()[: c.start] + c.new.encode() + code.encode()[c.end :]).decode()
        for c in mutate.changes(code, "file.py")
    }


def test_every_kind_of_change_is_found_and_nothing_but_what_computes():
    assert set(changed(CODE)) == {
        ("constant", "3", "4"),
        ("constant", "True", "False"),
        ("bool", "and", "or"),
        ("comparison", "<", "<="),
        ("comparison", "<", ">"),
        ("constant", "1", "2"),
        ("sign", "-x.sqrt()", "(x.sqrt())"),
        ("root", "x.sqrt()", "(x)"),
        ("operator", "+", "-"),
        ("term", "-x.sqrt() + (x.sum(dim=0) / 2)", "(-x.sqrt())"),
        ("opposite", "sum", "mean"),
        ("constant", "0", "1"),
        ("operator", "/", "*"),
        ("term", "x.sum(dim=0) / 2", "(x.sum(dim=0))"),
        ("constant", "2", "3"),
    }


def test_a_change_is_of_its_place_alone_and_what_results_is_python():
    texts = changed(CODE)
    assert texts["comparison", "<", ">"] == CODE.replace("x < 1", "x > 1")
    assert texts["operator", "/", "*"] == CODE.replace("(x.sum(dim=0) / 2)", "(x.sum(dim=0) * 2)")
    for text in texts.values():
        compile(text, "file.py", "exec")


def test_the_quick_tests_of_the_line_come_first_and_no_longer_than_asked():
    known = {"lines": {"file.py": {"6": ["a", "b", "c"]}}, "seconds": {"a": 3.0, "b": 1.0, "c": 2.0}}
    change = next(c for c in mutate.changes(CODE, "file.py") if c.line == 6)
    assert mutate.chosen(change, known, 10.0) == ["b", "c", "a"]
    assert mutate.chosen(change, known, 4.0) == ["b", "c"]
    default = next(c for c in mutate.changes(CODE, "file.py") if c.old == "3")
    assert mutate.chosen(default, known, 10.0) == ["b", "c", "a"]


def test_from_the_map_to_the_survivors(tmp_path):
    room = tmp_path / "pack/room"
    room.mkdir(parents=True)
    (tmp_path / "pack/__init__.py").touch()
    (room / "__init__.py").touch()
    (room / "code.py").write_text(
        'def double(x):\n    """\n    >>> double(2)\n    4\n    """\n    return x * 2\n\n\n'
        "def untested(x):\n    return -x\n"
    )
    (tmp_path / "tests/room").mkdir(parents=True)
    (tmp_path / "tests/room/test_code.py").write_text(
        "from pack.room.code import double\n\n\ndef test_of_the_sign():\n    assert double(3) > 0\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = "--doctest-modules --import-mode=importlib"\n'
    )

    def tool(*words):
        command = [sys.executable, str(TOOL), *words, "--out", "out", "--package", "pack"]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    before = (room / "code.py").read_text()
    tool("map", "room")
    said = tool("run")
    assert "| room | 4 | 3 | 75.0% |" in said and "`-x` -> `(x)`" in said, said
    rows = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert {r["old"]: r["verdict"] for r in rows}["-x"] == "survived"
    assert (room / "code.py").read_text() == before
    tool("run")  # done changes are not run again
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == len(rows)
