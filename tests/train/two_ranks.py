"""Trains under torchrun; every rank writes what it ended with.  Run as ``torchrun ... two_ranks.py FOLDER``."""

import atexit
import os
import runpy
import sys
from pathlib import Path

import torch

from prunus.train import fit

TINY = runpy.run_path(str(Path(__file__).parent / "conftest.py"))


def main() -> None:
    """Stages in one process group: without batch norm, with it, that from its checkpoint, and two special ones."""
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ.get("RANK", "0"))
    settings = {
        "preprocess": TINY["PREPROCESS"],
        "epochs": 2,
        "lr": 0.05,
        "batch": 16,
        "precision": "32",
        "quiet": True,
    }
    atexit.register(left, folder / f"left{rank}")  # what is registered first runs last
    out = {}
    for stage, norm, resume in (("plain", False, False), ("norm", True, False), ("norm", True, True)):
        model = TINY["network"](norm=norm, dropout=0.2 if norm else 0.0)
        if rank and not resume:
            for parameter in model.parameters():
                parameter.data.zero_()  # the ranks must start from the first one's weights
        history = fit(model, TINY["problem"](), **settings, folder=folder, stage=stage, resume=resume, every=1e-9)
        name = stage + ("-resumed" if resume else "")
        out[name] = {"model": model.state_dict(), "rows": [(r.loss, r.accuracy) for r in history]}
    model = TINY["network"]()
    fit(model, TINY["problem"](), **settings | {"lr": 1e-12}, folder=folder, stage="still")  # only statistics move
    out["still"] = {"model": model.state_dict()}
    torch.save(out, folder / f"rank{rank}.pt")
    try:
        fit(TINY["network"](norm=False), bad_on(rank), **settings, folder=folder, stage="bad")
    except Exception as error:
        (folder / f"error{rank}.txt").write_text(f"{type(error).__name__}: {error}")


def left(note: Path) -> None:
    """Note that there is no process group any more."""
    if not torch.distributed.is_initialized():
        note.touch()


def bad_on(rank: int) -> object:
    """The problem, with a NaN in what the second rank sees."""
    data = TINY["problem"]()
    if rank == 1:
        object.__setattr__(data, "train", NotANumber(data.train))
    return data


class NotANumber:
    """A split whose images are NaN."""

    def __init__(self, split: object) -> None:
        self.split = split

    def batches(self, *args: object, **kwargs: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The batches, spoilt."""
        return [(x * float("nan"), y) for x, y in self.split.batches(*args, **kwargs)]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
