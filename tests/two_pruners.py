"""Prunes in training under torchrun; every rank writes what it ended with: ``torchrun ... two_pruners.py FOLDER``."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import prunus
from prunus.schedules import gradual

STEPS, MORE = 6, 3
X = torch.zeros(1, 6).double()


def network() -> nn.Module:
    """Always with the same weights; silent units emit one half."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.Sigmoid(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int = 0, world: int = 1) -> None:
    """Whole batches, or this rank's share of them."""
    for step in steps:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).double()
        share = x[rank * 8 // world : (rank + 1) * 8 // world]
        optimizer.zero_grad()
        (model(share) - share[:, :3]).square().mean().backward()
        optimizer.step()


def pruner_of(model: nn.Module, seed: int = 0) -> prunus.Pruner:
    """Random scores: ranks that chose by themselves, with their own seed, would differ."""
    schedule = gradual(0, 4, every=2, shape="linear")
    return prunus.Pruner(
        model,
        X,
        budget=prunus.Budget(params=0.6),
        criterion="random",
        schedule=schedule,
        seed=seed,
        allocator="uniform",
    )


def main() -> None:
    """DDP through a cut and on, with and without the old wrapper alive; and what was cut, sharded."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    folder, rank = Path(sys.argv[1]), distributed.get_rank()
    out = {}
    for case in ("dropped", "alive"):
        model = network()
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        pruner = pruner_of(wrapped, seed=rank)
        pruner.attach(optimizer)
        train(wrapped, optimizer, range(STEPS), rank, 2)
        report = pruner.finish_()
        old = wrapped if case == "alive" else None
        wrapped = DistributedDataParallel(report.model)
        train(wrapped, optimizer, range(STEPS, STEPS + MORE), rank, 2)
        out[case] = {"plan": report.plan.to_json(), "model": model.state_dict(), "alive": old is not None}

    cut = network()
    prunus.prune_(cut, X, budget=prunus.Budget(params=0.6))
    whole = {n: t.clone() for n, t in cut.state_dict().items()}
    sharded = fully_shard(cut, mesh=distributed.init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(sharded.parameters(), lr=0.01)
    train(sharded, optimizer, range(MORE), rank, 2)
    gathered = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in sharded.state_dict().items()}
    out["sharded"] = {"before": whole, "model": {n: t.detach() for n, t in gathered.items()}}
    torch.save(out, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
