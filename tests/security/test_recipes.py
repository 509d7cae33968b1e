"""Recipes that somebody else wrote: small files stay small, names stay inside of runs/, errors are messages."""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path

import pytest

from prunus.core import InputError, PrunusError
from prunus.recipes import builtin, load
from prunus.recipes.folder import choose
from prunus.recipes.text import parse

PLAIN = "recipe: mine\nmodel: prunus:digits_net\nstages:\n- {do: prune, budget: {macs: 0.5}}\n"


def bomb(levels: int) -> str:
    """The classic: every line names ten of the line before, so that 400 bytes stand for 10^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join(['*a' + str(i - 1)] * 10)}]" for i in range(1, levels)]
    return "\n".join([*lines, PLAIN])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb(9), "no anchors and aliases"),
        ("recipe: &a [*a]\n", "no anchors and aliases"),
        ("base: &b {x: 1}\nmore: {<<: *b}\n", "no anchors and aliases"),
        ("recipe: " + "[" * 5000 + "]" * 5000, "levels"),
        ("recipe: [" + "a, " * 30_000 + "a]", "values"),
        ("# " + "x" * 1_100_000, "characters"),
        ("seed: " + "9" * 5000, "100 characters"),
        ("seed: 1" + ":59" * 100_000, "100 characters"),
        ("seed: 0x" + "f" * 5000, "100 characters"),
        ("recipe: !!python/object/apply:os.system [id]", "not YAML"),
        ("recipe: \x00", "not YAML"),
    ],
)
def test_a_small_file_stays_small(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError, match=says):
        load(tmp_path / "r.yaml")
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", ".", "a/b", "", "a\\b", ".hidden", "x" * 300, "a b", "a\nb"])
def test_a_name_stays_inside_of_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(PLAIN.replace("mine", repr(name)[1:-1] if "\\" in repr(name) else f"'{name}'"))
    with pytest.raises(InputError, match="recipe"):
        load("r.yaml")
    with pytest.raises(InputError):
        load("quickstart", [f"stages.0.name={name}" if name else "stages.0.name="])
    (tmp_path / "r.yaml").write_text(PLAIN)
    assert choose(load("r.yaml"), None, resume=False).resolve().parent == tmp_path / "runs"


@pytest.mark.parametrize(
    "override",
    [
        "classes=0", "classes=-5", "classes=1000000000000", "seed=-1", "seed=99999999999999999999",
        "epochs=99999999999",
        "measure.threads=100000", "measure.batches=[0]", "measure.batches=[99999999]", "measure.seconds=.inf",
        "lr=.nan", "measure.seconds=1e300", "stages=3", "stages=[]", "model=", "nothing=1", "budget.macs=.nan",
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(override: str) -> None:
    with pytest.raises(InputError):
        load("quickstart", [override])


def changed(text: str, draw: random.Random) -> str:
    """A recipe with a few places changed: characters, lines, values."""
    values = [
        "-1",
        "0",
        "1e400",
        ".nan",
        "[]",
        "{}",
        "null",
        "true",
        "'\\udc80'",
        "9" * 30,
        "../x",
        "2001-01-01",
        "!!set {a}",
    ]
    for _ in range(draw.randint(1, 4)):
        lines = text.split("\n")
        at, kind = draw.randrange(len(lines)), draw.randrange(5)
        if kind == 0:
            lines[at] = lines[at].partition(":")[0] + ": " + draw.choice(values)
        elif kind == 1:
            lines.insert(at, draw.choice(lines))
        elif kind == 2:
            del lines[at]
        text = "\n".join(lines) or "x"
        if kind > 2:
            i = draw.randrange(len(text))
            text = text[:i] + draw.choice("{}[]:&*!|>-?'\"%@`\t\n é0") + text[i + kind - 3 :]
    return text


def test_changed_recipes_are_read_or_refused_in_a_message() -> None:
    draw, refused = random.Random(0), 0
    sources = [path.read_text() for path in builtin().values()]
    seconds = float(os.environ.get("PRUNUS_FUZZ_SECONDS", "6"))
    started = time.perf_counter()
    from prunus.recipes import check

    count = 0
    while time.perf_counter() - started < seconds and count < 400 * max(seconds / 6, 1):
        text = changed(draw.choice(sources), draw)
        count += 1
        try:
            check(*parse(text, "fuzzed"), "fuzzed")
        except PrunusError as error:
            refused += 1
            assert str(error).strip() and "Traceback" not in str(error), text
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\n{text}") from error
    assert count > 20 and refused > count // 4
