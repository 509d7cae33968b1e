"""What training in the interspace costs beside plain training: ratios of step times, interleaved in one process.

    python benchmarks/interspace.py [--networks vgg16:64 resnet56:128] [--rounds 7] [--threads 1]

A step is forward, backward and SGD with momentum on random images of CIFAR's size.  In every round each network takes
one step, in turn; a ratio is the median, over the rounds, of a step in the interspace over the plain step of its round.
"dense mix" runs the basis' answers and then the mix with dense kernels: what a sparse engine has to beat.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.bases import interspaced, mixing, parameter_groups
from prunus.zoo import build

WAYS = {  # name: settings of interspace_
    "plain": None,
    "fine": {},
    "fine, free norms": {"unit": False},
    "coarse": {"sharing": "coarse"},
    "dense mix": {},
}


def stepper(net: nn.Module, batch: int, mix: bool) -> Callable[[], None]:
    """One step of training, to be called."""
    optimizer = torch.optim.SGD(parameter_groups(net), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        with mixing(net) if mix else nullcontext():
            F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def recomposed(net: nn.Module) -> Callable[[], None]:
    """Putting every filter together, forward and backward, without the rest of a step."""
    layers = [(module, leaf, basis) for _, module, leaf, basis in interspaced(net)]
    slopes = [torch.randn_like(getattr(module, leaf)) for module, leaf, _ in layers]

    def work() -> None:
        torch.autograd.backward([getattr(module, leaf) for module, leaf, _ in layers], slopes)

    return work


def seconds(work: Callable[[], None]) -> float:
    """The processor's time of one call, over all threads: other work on the machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """A table for every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16:64", "resnet56:128"], help="name:batch")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if way != "dense mix"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, _, batch in (network.partition(":") for network in args.networks):
        torch.manual_seed(0)
        plain = build(f"prunus:{name}", seed=0).module.train()
        works: dict[str, Callable[[], None]] = {}
        for way in dict.fromkeys(["plain", *args.ways]):
            net, settings = copy.deepcopy(plain), WAYS[way]
            if settings is not None:
                prunus.interspace_(net, **settings)
            works[way] = stepper(net, int(batch), way == "dense mix")
            if way == "fine":
                works["recomposition alone"] = recomposed(copy.deepcopy(net))
        for work in works.values():
            work()
        times = [{way: seconds(work) for way, work in works.items()} for _ in range(args.rounds)]
        print(f"{name}, batch {batch}, {args.threads} thread(s), {args.rounds} rounds")
        for way in works:
            ratios = sorted(row[way] / row["plain"] for row in times)
            spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            median = statistics.median(row[way] for row in times) * 1e3
            print(f"  {way:<20}{statistics.median(ratios):7.3f} x   ({spread}; median {median:,.0f} ms)")


if __name__ == "__main__":
    main()
