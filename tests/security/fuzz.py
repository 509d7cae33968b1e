"""A fuzzer of everything that prunus reads: crafted files must load, or be one clear error of prunus.

No crash, no hang, no exception that is not a `PrunusError`, and no memory beyond twice what the file honestly needs.
Every case runs in a child process with limited memory; it is drawn from the format's name, a seed and its number, so
that it can be run again alone:

    python -m tests.security.fuzz                                  # every format, a few hundred cases each
    python -m tests.security.fuzz rewritten --cases 20000 --seed 7
    python -m tests.security.fuzz rewritten --seed 7 --case 1234   # one case, here, with its traceback

**To add a format**: put a file with a ``FORMAT = Format(...)`` into ``tests/security/formats/``.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import pkgutil
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SLACK = 160 << 20  # bytes that reading may take whatever the file is: libraries' buffers, caches, JSON
SECONDS = 30  # a case may take, on a busy machine
OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "MemoryError", "Cannot allocate", "not enough memory")


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: of the module in ``tests/security/formats``.
        write: writes honest files into a folder; their paths, always the same for the same folder.
        change: a generator and an honest file to the bytes of a crafted one (with its checksum right, or not).
        read: what a user does with such a file.  Errors of prunus are fine, and those of `also`.
        corpus: crafted files that were found by hand, and must be refused: names to functions from honest files to
            bytes.
        use: uses what `read` gave: any exception is fine then, a crash is not.
        theirs: another library reads the file, and what it raises without a line of prunus is its own affair.
        need: bytes that reading an honest file of this size may take.
    """

    name: str
    write: Callable[[Path], list[Path]]
    change: Callable[[random.Random, Path], bytes]
    read: Callable[[Path], object]
    corpus: dict[str, Callable[[list[Path]], bytes]]
    use: Callable[[object], object] | None = None
    theirs: bool = False
    need: Callable[[int], int] = lambda size: 4 * size


def formats() -> dict[str, str]:
    """Every format's name and module."""
    folder = Path(__file__).parent / "formats"
    return {m.name: f"tests.security.formats.{m.name}" for m in pkgutil.iter_modules([str(folder)])}


def find(name: str) -> Format:
    found: Format = importlib.import_module(formats()[name]).FORMAT
    return found


@dataclass(frozen=True)
class Failure:
    """A case that did what no file may do."""

    format: str
    seed: int
    case: str
    why: str

    def __str__(self) -> str:
        again = f"python -m tests.security.fuzz {self.format} --seed {self.seed} --case {self.case}"
        return f"{self.why}\n  again: {again}"


# ---- in the parent ---------------------------------------------------------------------------------------------------


def fuzz(name: str, cases: int, seed: int, corpus: bool = True) -> list[Failure]:
    """Run the corpus and so many random cases of a format in child processes; what went wrong."""
    todo = [*(f":{key}" for key in (find(name).corpus if corpus else ())), *map(str, range(cases))]
    failures: list[Failure] = []
    with tempfile.TemporaryDirectory() as folder:
        while todo and len(failures) < 20:
            done, failure = _child(name, seed, todo, Path(folder))
            failures += failure
            todo = todo[done:]
    return failures


def _child(name: str, seed: int, todo: list[str], folder: Path) -> tuple[int, list[Failure]]:
    """One child process as far as it comes: how many cases are done with, and their failures."""
    log, errors = folder / "log", folder / "errors"
    (folder / "todo").write_text("\n".join(todo))
    command = [sys.executable, "-m", "tests.security.fuzz", name, "--seed", str(seed), "--child", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    log.write_text("")
    with open(errors, "wb") as err:
        child = subprocess.Popen(command, stdout=err, stderr=err, env=environment, cwd=Path(__file__).parents[2])
        seen, since = 0, time.monotonic()
        while child.poll() is None:
            time.sleep(0.02)
            size = log.stat().st_size
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > SECONDS * (4 if not seen else 1):
                child.kill()
                child.wait()
                break
    lines = [line.split("\t", 2) for line in log.read_text().splitlines()]
    started = [line[1] for line in lines if line[0] == "start"]
    wrong = [(case, why) for kind, case, *rest in lines if kind == "bad" for why in rest]
    failures = [Failure(name, seed, case, why.replace("\\n", "\n")) for case, why in wrong]
    if child.returncode == 0:
        return len(todo), failures
    tail = errors.read_text(errors="replace")[-2000:]
    if not started:
        raise RuntimeError(f"the fuzzer's own child failed before its first case:\n{tail}")
    how = f"it hung for {SECONDS} s" if child.returncode == -9 else f"it ended the process ({child.returncode})"
    return len(started), [*failures, Failure(name, seed, started[-1], f"{how}:\n{tail}")]


# ---- in the child ----------------------------------------------------------------------------------------------------


def crafted(format: Format, seed: int, case: str, honest: list[Path]) -> tuple[bytes, int]:
    """The bytes of a case, and the size of the honest file that it was made from."""
    if case.startswith(":"):
        return format.corpus[case[1:]](honest), max(path.stat().st_size for path in honest)
    rng = random.Random(f"{format.name}/{seed}/{case}")
    source = rng.choice(honest)
    return format.change(rng, source), source.stat().st_size


def try_case(format: Format, path: Path, refused: bool = False) -> str:
    """Read a crafted file as a user would, or one that must be `refused`; what is wrong, "" for nothing."""
    from prunus.core import PrunusError

    try:
        found = format.read(path)
    except PrunusError as error:
        return _memory_ran_out(error)
    except BaseException as error:  # what a user would see as a raw traceback
        if format.theirs and isinstance(error, Exception) and not _passed_prunus(error):
            return _memory_ran_out(error)
        return _memory_ran_out(error) or "".join(traceback.format_exception(error)[-8:])
    if refused:
        return "it was not refused"
    try:
        if format.use is not None:
            format.use(found)
    except BaseException as error:
        return _memory_ran_out(error)
    return ""


def _passed_prunus(error: BaseException) -> bool:
    import prunus

    folder = str(Path(prunus.__file__).parent)
    return any(frame.filename.startswith(folder) for frame in traceback.extract_tb(error.__traceback__))


def _memory_ran_out(error: BaseException | None) -> str:
    """An error that hides, or is, an allocation that failed."""
    while error is not None:
        text = f"{type(error).__name__}: {error}"
        if any(word in text for word in OUT_OF_MEMORY):
            return f"it asked for more memory than there is: {text[:300]}"
        error = error.__cause__ or error.__context__
    return ""


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def _measured(format: Format, path: Path, size: int, refused: bool) -> str:
    """`try_case`, and whether memory stayed within bounds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    wrong = try_case(format, path, refused)
    peak, allowed = _status("VmHWM") - before, 2 * format.need(size) + SLACK
    return wrong or (f"it took {peak >> 20} MiB, allowed are {allowed >> 20}" if peak > allowed else "")


def _as_child(name: str, seed: int, folder: Path) -> None:
    """Run the cases in ``todo`` and note each in ``log``, before and after."""
    format, honest = find(name), folder / "honest"
    honest.mkdir(exist_ok=True)
    files = format.write(honest)
    for path in files:
        wrong = try_case(format, path)  # honest files load; and everything is imported that ever will be
        assert not wrong, f"an honest file does not load: {wrong}"
        format.read(path)
    limit = _status("VmSize") + (3 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(folder / "log", "w", buffering=1) as log:
        for case in (folder / "todo").read_text().splitlines():
            log.write(f"start\t{case}\n")
            data, size = crafted(format, seed, case, files)
            path = folder / f"crafted{files[0].suffix}"
            path.write_bytes(data)
            if wrong := _measured(format, path, max(len(data), size), case.startswith(":")):
                log.write("bad\t" + case + "\t" + wrong.replace("\n", "\\n") + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what prunus reads.")
    parser.add_argument("format", nargs="?", choices=sorted(formats()))
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="run this one here, without a child")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    faulthandler.enable()
    if given.child:
        _as_child(given.format, given.seed, given.child)
        return 0
    if given.case:
        with tempfile.TemporaryDirectory() as folder:
            format = find(given.format)
            files = format.write(Path(folder))
            path = Path(folder) / f"crafted{files[0].suffix}"
            path.write_bytes(crafted(format, given.seed, given.case, files)[0])
            print(try_case(format, path, given.case.startswith(":")) or "as it should be")
        return 0
    failures = []
    for name in [given.format] if given.format else sorted(formats()):
        start = time.monotonic()
        found_here = fuzz(name, given.cases, given.seed)
        failures += found_here
        print(f"{name}: {given.cases} cases, {len(found_here)} failures, {time.monotonic() - start:.0f} s", flush=True)
        for failure in found_here:
            print(failure, flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
