"""A network with gates under torchrun; every rank writes what it ended with.  ``torchrun ... two_ranks.py FOLDER``."""

import os
import sys
from pathlib import Path

import torch

from prunus.dynamic import dynamic_, gates
from prunus.train import fit
from tests.dynamic.problem import Basic, example, problem


def main() -> None:
    """Two epochs in one process group."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(0)
    net = Basic()
    dynamic_(net, example(), keep=0.5, init="ones")
    fit(net, problem(), preprocess=None, epochs=2, lr=0.02, batch=16, precision="32", quiet=True, periods=3)
    out = {"thresholds": [float(g.threshold) for g in gates(net)], "model": net.state_dict()}
    torch.save(out, Path(sys.argv[1]) / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
