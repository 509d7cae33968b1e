"""Allocation beside a `kthvalue` of all scores, rounds of SynFlow beside their forward, and `obs`, on ResNet-18.

    python benchmarks/allocate.py [--rounds 10] [--repeats 3]

Needs torchvision.  One thread; seconds of processor, medians of the repeats, in turn with what they are beside.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch


def processor(function: Callable[[], object]) -> float:
    """Seconds of processor that a call takes."""
    start = time.process_time()
    function()
    return time.process_time() - start


def beside(function: Callable[[], object], reference: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The median seconds of the two, in turn."""
    pairs = [(processor(function), processor(reference)) for _ in range(repeats)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    import prunus
    from prunus.core.torchvision_ops import declare_torchvision_operators

    declare_torchvision_operators()
    import torchvision

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(weights=None), torch.randn(1, 3, 224, 224)
    weights = prunus.tensors(model)
    scores = prunus.score(weights, "l1")
    flat = torch.cat(list(scores.values()))
    for allocator in ("global", "uniform", "erk"):
        for density in (0.1, 0.5):
            ours, kth = beside(
                lambda a=allocator, d=density: prunus.allocate(weights, scores, prunus.Budget(density=d), allocator=a),
                lambda d=density: flat.kthvalue(int((1 - d) * len(flat))),
                options.repeats,
            )
            print(
                f"{allocator:<8} {len(flat):,} weights to {density}: {ours:.2f} s, "
                f"{ours / kth:.1f} x kthvalue's {kth:.2f} s"
            )
    from prunus.masks.at_init import at_init

    double = torchvision.models.resnet18(weights=None).double()
    ours, forward = beside(
        lambda: at_init(model, weights, "synflow", density=0.1, rounds=options.rounds, data=[torch.ones_like(x)]),
        lambda: double(x.double()).sum().backward(),
        1,
    )
    each = ours / options.rounds
    print(f"SynFlow: {each:.2f} s a round, {each / forward:.1f} x a forward and backward in float64")
    groups = prunus.trace(model, x)
    data = [torch.randn(8, 3, 224, 224) for _ in range(2)]
    stats = prunus.collect(model, groups, data, prunus.criteria.needs("obs"))
    print(f"obs: {processor(lambda: prunus.score(groups, 'obs', stats)):.1f} s to score {groups.units} units")


if __name__ == "__main__":
    main()
