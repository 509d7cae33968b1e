"""Recipes: YAML that says what a run does.  They are read, checked and written out again; none is run."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from prunus import recipes
from prunus.recipes import text
from tests.security.fuzz import Format
from tests.security.mutate import DEEPEST, dumped, mangled, mutated

PLAIN = "recipe: mine\nmodel: prunus:digits_net\nstages:\n- {do: prune, budget: {macs: 0.5}}\n"
ODD = (
    "&a",
    "*a",
    "<<",
    "!!python/object/apply:os.system [id]",
    "!!binary",
    "!!set {a}",
    "{}[]:",
    "|",
    "- - -",
    "\t",
    "%",
)


def write(folder: Path) -> list[Path]:
    paths = [folder / f"{name}.yaml" for name in recipes.builtin()]
    for path in paths:
        path.write_text(recipes.builtin()[path.stem].read_text())
    return paths


@cache
def words() -> tuple[str, ...]:
    """Names that recipes know, and what looks like them."""
    known = [*recipes.schema.STAGES, *recipes.schema.STAGE_KEYS, *recipes.schema.Recipe.model_fields]
    return (*known, "l1", "global", "sgd", "file.py:make", "../x", "2001-01-01", "1e400", ".nan", "$HOME", "~", "no")


def change(rng: random.Random, source: Path) -> bytes:
    """Other values, keys and nesting, as YAML or as JSON, which is YAML; lines and characters of the text."""
    kind = rng.random()
    if kind < 0.1:
        return mangled(rng, source.read_bytes())
    if kind < 0.75:
        prefer = rng.choice(("stages", "data", "budget", "options", "regularizer"))
        data = mutated(rng, yaml.safe_load(source.read_text()), words(), (prefer,))
        if kind < 0.4:
            return dumped(data).encode(errors="surrogatepass")
        try:
            return yaml.safe_dump(data, sort_keys=False).replace(DEEPEST, "[" * 2000).encode(errors="surrogatepass")
        except RecursionError:
            return dumped(data).encode(errors="surrogatepass")
    lines = source.read_text().split("\n")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        kept = lines[at].partition(":")[0]
        lines[at] = rng.choice((f"{kept}: {rng.choice(ODD)}", f"{rng.choice(ODD)} {lines[at]}", f"  {lines[at]}", kept))
    return "\n".join(lines).encode()


def read(path: Path) -> Any:
    """What ``prunus run`` reads before anything runs, and what it writes into the run folder."""
    recipe = recipes.load(path)
    return recipes.check(*text.parse(text.write(recipes.dump(recipe)), "again"), "again")


def of(written: str) -> Callable[[list[Path]], bytes]:
    return lambda honest: written.encode()


def bomb(levels: int) -> str:
    """The classic: every line names ten of the line before, so that 400 bytes stand for 10^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join(['*a' + str(i - 1)] * 10)}]" for i in range(1, levels)]
    return "\n".join([*lines, PLAIN])


CORPUS = {
    "aliases": of(bomb(9)),
    "an alias of itself": of("recipe: &a [*a]\n"),
    "merged keys": of("base: &b {x: 1}\nmore: {<<: *b}\n" + PLAIN),
    "deep": of("recipe: " + "[" * 100_000),
    "deep keys": of("? " * 100_000),
    "wide": of(PLAIN + "about: [" + "a, " * 300_000 + "a]"),
    "long": of("# " + "x" * 2_000_000 + "\n" + PLAIN),
    "a long number": of(PLAIN + "seed: " + "9" * 100_000),
    "a number by base 60": of(PLAIN + "seed: " + "1" + ":59" * 100_000),
    "a command": of(PLAIN + "about: !!python/object/apply:os.system [id]"),
    "a path": of(PLAIN.replace("mine", "../x")),
    "10^12 classes": of(PLAIN + "classes: 1000000000000\n"),
}
FORMAT = Format("recipe", write, change, read, CORPUS)
