"""The door: what it takes, what it says, and that no public verb has an argument without a word."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.core import InputError, PrunusError, WriteError
from prunus.core.callbacks import Ended, each, noted, own, users
from prunus.core.checks import a_path, a_positive_int, check_arguments, is_int, is_number, optional, shown
from prunus.core.words import WORDS
from prunus.core.writing import replacing, write_text

ROOT = Path(prunus.__file__).parent


def verbs() -> dict[str, set[str]]:
    """The functions that begin at the door, and their arguments that have neither a word nor a kind of their own."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for call in ast.walk(node):
                if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "check_arguments"):
                    continue
                first = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
                assert call.lineno <= first[1].lineno if len(first) > 1 else True, f"{path}: {node.name} looks too late"
                a = node.args
                given = {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))}
                known = {k.arg for k in call.keywords} | set(WORDS)
                assert {k.arg for k in call.keywords} <= given, f"{path}: {node.name} has no such argument"
                found[f"{path.relative_to(ROOT)}:{node.name}"] = given - known
    return found


def test_every_argument_at_the_door_has_a_word() -> None:
    found = verbs()
    assert len(found) > 80
    assert {verb: names for verb, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: prunus.Budget(macs=float("nan")), "fraction must lie in"),
        (lambda: prunus.prune_(nn.Linear(2, 2), torch.zeros(1, 2), budget=0.5), "Budget(macs=0.5)"),  # type: ignore[arg-type]
        (lambda: prunus.prune_(nn.Linear, torch.zeros(1, 2), budget=prunus.Budget(macs=0.5)), "not its class"),  # type: ignore[arg-type]
        (lambda: prunus.trace(nn.Linear(2, 2), torch.zeros(1, 2), freeze=3), "freeze=3"),  # type: ignore[arg-type]
        (lambda: prunus.trace(nn.Linear(2, 2), torch.zeros(1, 2), freeze=(n for n in "a")), "no generator"),
        (lambda: prunus.trace(None, torch.zeros(1, 2)), "trace(model=None): expected an nn.Module"),  # type: ignore[arg-type]
    ],
)
def test_what_was_given_what_was_expected_and_what_to_do(call, says: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert says in str(error.value)


def test_a_budget_of_shares_by_name_is_told_how_to_write_it() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    for given in (0.5, {"macs": 0.5}, "macs=0.5", None):
        with pytest.raises(InputError, match=r"write budget=prunus\.Budget\(macs=0\.5\)"):
            prunus.prune_(net, torch.zeros(1, 4), budget=given)  # type: ignore[arg-type]


def test_whole_numbers_are_whole_and_numbers_finite() -> None:
    import numpy as np

    assert is_int(3) and is_int(np.int64(3)) and not is_int(True) and not is_int(3.0)
    assert is_number(3) and is_number(np.float32(0.5)) and not is_number(float("nan")) and not is_number(True)
    assert not is_number(float("-inf")) and not is_number("3") and not is_number(1e300)
    assert a_path.holds(Path("a")) and not a_path.holds("") and not a_path.holds("\udcff") and not a_path.holds("a\0b")
    assert optional(a_positive_int).holds(None) and not a_positive_int.holds(2**40)


def test_a_value_whose_own_code_fails_is_refused_not_raised() -> None:
    class Odd:
        def __len__(self) -> int:
            raise RuntimeError("odd")

        __repr__ = __len__  # type: ignore[assignment]

    def verb(names: object) -> None:
        check_arguments(locals())

    with pytest.raises(InputError, match="a Odd"):
        verb(Odd())
    assert shown(Odd()) == "a Odd"


def fails(*args: object) -> None:
    raise LookupError("mine")


@pytest.mark.parametrize("argument", ["criterion=", "loss=", "evaluate="])
def test_the_users_own_error_comes_out_with_a_line(argument: str) -> None:
    with pytest.raises(LookupError, match="mine") as error:
        own(fails, argument)()
    assert any(argument in line and "test_checks.py line" in line for line in noted(error.value))
    with pytest.raises(LookupError), users("loss="):  # a note is not given twice
        own(fails, "loss=")()


def test_a_function_that_ends_the_program_is_an_error_but_not_where_it_is_told_to_end() -> None:
    with pytest.raises(PrunusError, match=r"evaluate= ended the program \(sys.exit\(0\)\)"), users("evaluate="):
        raise SystemExit(0)
    with pytest.raises(Ended), users("evaluate="):
        raise Ended(143)
    with pytest.raises(KeyboardInterrupt), users("evaluate="):
        raise KeyboardInterrupt


def test_batches_that_fail_say_whose_they_are() -> None:
    def batches():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError) as error:
        list(each(batches()))
    assert any("data=" in line for line in noted(error.value))


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_text(path, "old")
    for error in (OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")):
        with pytest.raises(WriteError, match="could not be written") as seen, replacing(path) as new:
            new.write_text("half")
            raise error
        assert isinstance(seen.value, OSError)
    with pytest.raises(RuntimeError, match="mine"), replacing(path):
        raise RuntimeError("mine")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("what", ["folder", "device", "under a file"])
def test_what_is_no_file_is_not_replaced(what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = {"folder": tmp_path, "device": Path("/dev/null"), "under a file": tmp_path / "file" / "x"}[what]
    with pytest.raises(WriteError), replacing(place) as new:
        new.write_text("new")
    assert Path("/dev/null").is_char_device() and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
