"""Draws small changes of the code, runs the tests that reach each, and lists the changes that no test notices.

    python tools/mutate.py map  --out mutants criteria masks    # which test runs which line, and for how long
    python tools/mutate.py run  --out mutants --draw 300        # one fork a change; a change that is done is skipped
    python tools/mutate.py list --out mutants                   # noticed by room, and every survivor

Changes are read off the syntax tree: a number, a truth value, a sign, an operator, a comparison, a term, a root, a
least for a largest.  A change is noticed when a test fails, does not end, or the module does not import.  Of the tests
that reach the line the quick ones run first, until one fails or --seconds of them have run.  The working tree is never
written: a fork compiles the changed source in place of the file's.
"""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OPERATORS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.Pow: ("**", "*")}
COMPARISONS = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
}
PAIRS = (("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("sum", "mean"))
OPPOSITES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
DROPPED = {"sqrt", "abs", "square", "log", "exp", "pow", "clamp", "clamp_min", "clamp_max", "neg", "reciprocal"}
NOTICED, SURVIVED = "noticed", "survived"
# pytest rewrites the asserts of every file named to it, also of one with doctests, from the file itself
PLAIN = ("-q", "--assert=plain", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Change:
    """``old`` at bytes start to end of a file becomes ``new``."""

    file: str
    line: int
    start: int
    end: int
    kind: str
    old: str
    new: str
    scope: tuple[int, int]  # first and last line of the function around it; of the file, outside of functions

    @property
    def key(self) -> str:
        return f"{self.file}:{self.line}:{self.start}:{self.kind}:{self.old}:{self.new}"


def changes(source: str, file: str) -> list[Change]:
    """Every change of one file, in the order of its text."""
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: Any) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def visit(node: ast.AST, scope: tuple[int, int]) -> Iterator[Change]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            scope = (node.lineno, node.end_lineno or node.lineno)
        for kind, start, end, new in _changes_of(node, span, data):
            old = data[start:end].decode()
            yield Change(file, data.count(b"\n", 0, start) + 1, start, end, kind, old, new, scope)
        for child in _children(node):
            yield from visit(child, scope)

    found = visit(ast.parse(source), (1, len(starts)))
    return sorted(found, key=lambda c: (c.start, c.end, c.kind, c.new))


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """What computes: no message of an error, no annotation, no docstring, no text."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert)):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _changes_of(node: ast.AST, span: Any, data: bytes) -> Iterator[tuple[str, int, int, str]]:
    """Kind, span and new text of the changes at one node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield ("constant", *span(node), _other(node.value))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        kind = "sign" if isinstance(node.op, ast.USub) else "not"
        yield (kind, *span(node), f"({_text(node.operand, span, data)})")
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
        old, new = OPERATORS[type(node.op)]
        yield ("operator", *_between(node.left, node.right, old, span, data), new)
        yield ("term", *span(node), f"({_text(node.left, span, data)})")
    elif isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield ("bool", *_between(node.values[0], node.values[1], old, span, data), new)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        old, others = COMPARISONS[type(node.ops[0])]
        for new in others:
            yield ("comparison", *_between(node.left, node.comparators[0], old, span, data), new)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        end = span(node.func)[1]
        if (name := node.func.attr) in OPPOSITES:
            yield ("opposite", end - len(name.encode()), end, OPPOSITES[name])
        elif name in DROPPED and not _is_module(node.func.value):
            yield ("root", *span(node), f"({_text(node.func.value, span, data)})")


def _other(value: bool | int | float) -> str:
    if isinstance(value, bool):
        return str(not value)
    return str(value + 1) if isinstance(value, int) else str(value * 2 or 1.0)


def _is_text(node: ast.BinOp) -> bool:
    texts = (n for n in ast.walk(node) if isinstance(n, (ast.JoinedStr, ast.Constant)))
    return any(isinstance(n, ast.JoinedStr) or isinstance(n.value, str) for n in texts)


def _is_module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "math", "np", "functional")


def _text(node: ast.AST, span: Any, data: bytes) -> str:
    start, end = span(node)
    return data[start:end].decode()


def _between(left: ast.AST, right: ast.AST, token: str, span: Any, data: bytes) -> tuple[int, int]:
    """Where the operator stands between its two operands (only brackets, blanks and comments stand there beside it)."""
    start = data.index(token.encode(), span(left)[1], span(right)[0])
    return start, start + len(token.encode())


# -- which test runs which line --------------------------------------------------------------------------------------


def record(root: Path, package: str, rooms: list[str], tests: list[str]) -> dict[str, Any]:
    """Runs the tests once: the seconds of each, and by file and line the tests that ran it."""
    import coverage
    import pytest

    cover = coverage.Coverage(data_file=None, source=[str(root / package / room) for room in rooms])
    seconds: dict[str, float] = defaultdict(float)
    failed: set[str] = set()

    class Recorder:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: Any) -> Any:
            cover.switch_context(item.nodeid)
            return (yield)

        def pytest_runtest_logreport(self, report: Any) -> None:
            seconds[report.nodeid] += report.duration
            if not report.passed:
                failed.add(report.nodeid)

    cover.start()
    pytest.main([*PLAIN, *tests], plugins=[Recorder()])
    cover.stop()
    lines: dict[str, dict[str, list[str]]] = {}
    for name in cover.get_data().measured_files():
        reached = cover.get_data().contexts_by_lineno(name)
        kept = {str(line): sorted(set(ids) - failed - {""}) for line, ids in reached.items()}
        lines[str(Path(name).relative_to(root))] = {line: ids for line, ids in kept.items() if ids}
    return {"rooms": rooms, "seconds": {t: s for t, s in seconds.items() if t not in failed}, "lines": lines}


def chosen(change: Change, known: dict[str, Any], most: float) -> list[str]:
    """The tests that reach the change, the quick first: those of its line, else of its function, else its file."""
    lines = known["lines"].get(change.file, {})
    ids = set(lines.get(str(change.line), ()))
    if not ids:
        first, last = change.scope
        ids = {test for line, tests in lines.items() if first <= int(line) <= last for test in tests}
    if not ids:
        ids = {test for tests in lines.values() for test in tests}
    order = sorted(ids, key=lambda t: (known["seconds"].get(t, 0.0), t))
    total, kept = 0.0, []
    for test in order:
        total += known["seconds"].get(test, 0.0)
        if kept and total > most:
            break
        kept.append(test)
    return kept


# -- one change ------------------------------------------------------------------------------------------------------


def compile_instead(path: Path, source: bytes) -> None:
    """From now on this process imports ``path`` as ``source``."""
    loader = importlib.machinery.SourceFileLoader
    get_code = loader.get_code

    def changed(self: Any, fullname: str) -> Any:
        if Path(self.path) == path:
            return compile(source, str(path), "exec", dont_inherit=True)
        return get_code(self, fullname)

    loader.get_code = changed  # type: ignore[method-assign, assignment]


def run_in_child(root: Path, change: Change, tests: list[str], told: Path) -> None:
    """Runs the tests on the changed code and ends the process: 0 when they all pass."""
    import pytest

    class First:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                told.write_text(report.nodeid)

    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    data = (root / change.file).read_bytes()
    compile_instead(root / change.file, data[: change.start] + change.new.encode() + data[change.end :])
    code = pytest.main([*PLAIN, "-x", *tests], plugins=[First()])
    os._exit(int(code))


def run(root: Path, drawn: list[Change], known: dict[str, Any], out: Path, jobs: int, most: float) -> None:
    """Runs each change that ``results.jsonl`` does not hold yet, ``jobs`` at a time, and adds a line for each."""
    import hypothesis  # noqa: F401 - imported once here, so that no fork pays for it
    import torch  # noqa: F401

    results = out / "results.jsonl"
    done = {json.loads(line)["key"] for line in results.read_text().splitlines()} if results.exists() else set()
    waiting = [c for c in drawn if c.key not in done]
    running: dict[int, tuple[Change, float, list[str], Path]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            change = waiting.pop(0)
            tests = chosen(change, known, most)
            told = out / f"first-{zlib.crc32(change.key.encode())}.txt"
            pid = os.fork() if tests else 0
            if tests and pid == 0:
                expected = sum(known["seconds"].get(t, 0.0) for t in tests)
                signal.alarm(int(120 + 5 * expected))
                run_in_child(root, change, tests, told)
            if tests:
                running[pid] = (change, time.monotonic(), tests, told)
            else:
                _add(results, change, SURVIVED, "no test reaches it", 0.0)
        if running:
            pid, status = os.wait()
            change, began, tests, told = running.pop(pid)
            by = told.read_text() if told.exists() else f"exit status {status}"
            told.unlink(missing_ok=True)
            verdict = SURVIVED if status == 0 else NOTICED
            _add(results, change, verdict, by if status else f"{len(tests)} tests pass", time.monotonic() - began)


def _add(results: Path, change: Change, verdict: str, by: str, seconds: float) -> None:
    row = {"key": change.key, "verdict": verdict, "by": by, "seconds": round(seconds, 1), **asdict(change)}
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{verdict:9} {change.file}:{change.line} {change.kind}: {change.old!r} -> {change.new!r}  ({by})", flush=True
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: noticed of drawn by room, then the survivors."""
    rooms: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        rooms[Path(row["file"]).parts[1]].append(row["verdict"] == NOTICED)
    text = ["| room | drawn | noticed | share |", "|---|---|---|---|"]
    every = [noticed for seen in rooms.values() for noticed in seen]
    for room, seen in [*sorted(rooms.items()), ("all", every)]:
        text.append(f"| {room} | {len(seen)} | {sum(seen)} | {sum(seen) / max(1, len(seen)):.1%} |")
    text += ["", "| survivor | change | by |", "|---|---|---|"]
    for row in sorted(rows, key=lambda r: (r["file"], r["line"])):
        if row["verdict"] == SURVIVED:
            text.append(f"| {row['file']}:{row['line']} | `{row['old']}` -> `{row['new']}` | {row['by']} |")
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("map", "run", "list"))
    parser.add_argument("rooms", nargs="*", help="map: folders of the package whose code is changed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path.cwd())
    parser.add_argument("--package", default="prunus")
    parser.add_argument("--also", nargs="*", default=["tests/contract"], help="map: tests beside the rooms' own")
    parser.add_argument("--draw", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="run: the most that the tests of one change take")
    options = parser.parse_args(arguments)
    root, out = options.root.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(root)
    if options.verb == "map":
        folders = [f for room in options.rooms for f in (f"tests/{room}", f"{options.package}/{room}")]
        tests = [f for f in [*folders, *options.also] if (root / f).exists()]
        (out / "map.json").write_text(json.dumps(record(root, options.package, options.rooms, tests)))
    elif options.verb == "run":
        known = json.loads((out / "map.json").read_text())
        files = sorted(f for room in known["rooms"] for f in (root / options.package / room).rglob("*.py"))
        every = [c for f in files for c in changes(f.read_text(), str(f.relative_to(root)))]
        drawn = random.Random(options.seed).sample(every, min(options.draw, len(every)))
        run(root, drawn, known, out, options.jobs, options.seconds)
    if options.verb != "map":
        print(summary([json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
