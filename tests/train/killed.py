"""Trains in child processes that are killed with SIGKILL, resumes them, and prints what came out as JSON.

Run as ``python killed.py FOLDER``.  Every training is a fork made before any computation.
"""

import hashlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import prunus.core.writing
import prunus.train.checkpoint
import prunus.train.keeper as keeper
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.data.split import Batches

declare_torchvision_operators()
import lightning.fabric  # noqa: E402, F401  (once, before the forks)

from prunus.train import fit  # noqa: E402

HERE = Path(__file__).parent
TINY = runpy.run_path(str(HERE / "conftest.py"))


def train(folder: Path, resume: bool, precision: str) -> None:
    """Two epochs of six steps, with dropout and batch norm, saving whenever a step is over."""
    torch.set_num_threads(1)
    keeper.SHARE = float("inf")
    model = TINY["network"](dropout=0.3)
    history = fit(
        model,
        TINY["problem"](),
        preprocess=TINY["PREPROCESS"],
        epochs=2,
        lr=0.05,
        batch=16,
        precision=precision,
        folder=folder,
        resume=resume,
        every=1e-9,
        quiet=True,
    )
    weights = hashlib.sha256(b"".join(v.contiguous().numpy().tobytes() for v in model.state_dict().values()))
    rows = [(row.epoch, row.loss, row.accuracy) for row in history]
    metrics = (folder / "metrics.csv").read_text().splitlines()
    result = {"weights": weights.hexdigest(), "rows": rows, "csv": [line.rsplit(",", 1)[0] for line in metrics]}
    (folder / "result.json").write_text(json.dumps(result))


def kill() -> None:
    """The end, without a chance to tidy up."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_step(epoch: int, step: int) -> None:
    """Die when the batch of this step is asked for."""
    plain = Batches.__iter__

    def dying(self: Batches) -> Any:
        for i, batch in enumerate(plain(self)):
            if (self.epoch, i) == (epoch, step) and len(self.split) > 40:
                kill()
            yield batch

    Batches.__iter__ = dying  # type: ignore[method-assign]


def at_call(module: Any, name: str, count: int) -> None:
    """Die in the `count`-th call of a function."""
    plain, left = getattr(module, name), [count]

    def dying(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            kill()
        return plain(*args, **kwargs)

    setattr(module, name, dying)


DEATHS: dict[str, Callable[[], None]] = {
    "before the first checkpoint": lambda: in_step(0, 0),
    "in the middle of an epoch": lambda: in_step(1, 3),
    "while a checkpoint is written": lambda: at_call(torch, "save", 9),
    "before a checkpoint is put in place": lambda: at_call(prunus.core.writing.os, "replace", 18),
    "between metrics and checkpoint": lambda: at_call(keeper, "save_checkpoint", 7),
}


def child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def scenario(folder: Path, die: Callable[[], None] | None, precision: str) -> dict[str, Any]:
    """Train, killed by `die` and resumed, or unbroken for None."""
    folder.mkdir()
    killed = None
    if die is not None:
        status = child(lambda: (die(), train(folder, False, precision))[0])  # type: ignore[func-returns-value]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    status = child(lambda: train(folder, die is not None, precision))
    assert status == 0, f"{folder.name}: {status}"
    return {"killed": killed, "left": [p.name for p in folder.rglob("*.part")]} | json.loads(
        (folder / "result.json").read_text()
    )


def main() -> None:
    """All deaths in float32, one in bfloat16."""
    out = Path(sys.argv[1])
    results = {"unbroken": scenario(out / "unbroken", None, "32"), "bf16": scenario(out / "bf16", None, "bf16-mixed")}
    for i, (name, die) in enumerate(DEATHS.items()):
        results[name] = scenario(out / str(i), die, "32")
    results["bf16, killed"] = scenario(out / "k", DEATHS["in the middle of an epoch"], "bf16-mixed")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
