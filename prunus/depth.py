"""Depth pruning: whole residual blocks are removed, those that change least what flows through them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import InputError, Inputs, NothingToPruneError, Plan, Report
from prunus.core.checks import MOST, a_positive_int, a_word, above_zero, check_arguments, ints, optional, some_batches
from prunus.core.undo import all_or_nothing
from prunus.core.wrappers import unwrapped
from prunus.observe.stream import angles, influence
from prunus.surgery.depth import drop_, drop_proven_
from prunus.surgery.memory import memory_format, remember_
from prunus.tracing.blocks import Block, residual_blocks
from prunus.version import __version__

METHODS = ("shortgpt", "contiguous")


def drop_blocks_(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any],
    n: int | None = None,
    keep: int | float | None = None,
    method: str = "shortgpt",
    token: int | None = None,
    verify: bool = True,
) -> Report:
    r"""Remove `n` residual blocks for good, in place: each becomes a module that passes its input on.

    ``shortgpt`` removes the blocks of least influence, :math:`\mathrm{BI}_l = 1 - E\cos(h_l, h_{l+1})`; ``contiguous``
    the `n` blocks in a row over which :math:`E \arccos \cos(h_l, h_{l+n}) / \pi` is least.  The cut is proven as
    `shrink_` proves its own; ``exact`` is False where a norm or a rectifier of the block goes with it.  It is part of
    the network's plan, so that `prunus.save` and `prunus.load_` know it, and other cuts may come before and after.

    Args:
        example_inputs: what forward takes: a tensor, a tuple of positional inputs, or `Inputs`.
        data: batches of what forward takes, or ``(x, y)``; no labels are needed.
        n, keep: how many blocks go, or how many stay (a whole number, or a share of them below 1): one of the two.
        method: ``shortgpt`` or ``contiguous``.
        token: the only position that ``contiguous`` looks at (-1: the last one, for language models); None: all.

    Returns: a `Report`; its notes name the blocks that went, with their influence.

    Raises: `InputError` for a number or a method that is not possible, `NothingToPruneError` when there is no residual
    block, `VerificationError` when the code around a block does not do without; the model is then as it was.

    Source: Men et al., "ShortGPT", 2024, eq. 1; Gromov et al., "The Unreasonable Ineffectiveness of the Deeper
    Layers", ICLR 2025, eq. 7.

    >>> import prunus, torch
    >>> net, x = prunus.zoo.resnet20(), torch.randn(4, 3, 32, 32)
    >>> report = prunus.drop_blocks_(net, x, data=[x], n=2)
    >>> len(report.plan.dropped), len(prunus.blocks(net, x))
    (2, 5)
    """
    check_arguments(
        locals(),
        data=some_batches,
        n=optional(a_positive_int),
        keep=optional(above_zero),
        method=a_word,
        token=optional(ints(-MOST)),
    )
    model, inputs = unwrapped(model), Inputs.of(example_inputs)
    if method not in METHODS:
        raise InputError(f"method='{method}': expected one of {', '.join(METHODS)}.")
    found = residual_blocks(model, inputs)
    if not found.blocks:
        raise NothingToPruneError(
            f"{type(model).__name__} has no residual block: no module is called once and gives its input, plus what it "
            "computes from it. Prune units instead: prunus.prune_."
        )
    n = _count(len(found.blocks), n, keep)
    if method == "shortgpt":
        values = influence(model, found.blocks, data)
        gone = [found.blocks[i] for i in sorted(values.argsort(stable=True)[:n].tolist())]
        told = [f"{b.name} (influence {values[found.blocks.index(b)]:.4f})" for b in gone]
    else:
        gone, distance = _row(found.blocks, angles(model, found.blocks, data, n, token), n)
        told = [f"{b.name}" for b in gone[:-1]] + [f"{gone[-1].name} (angle over all {distance:.4f} of half a turn)"]
    plan = Plan(
        dropped=tuple(b.dropped for b in gone),
        inputs=tuple(inputs.signature()),
        memory_format=memory_format(model),
        version=__version__,
    )
    with all_or_nothing(model):
        verified = drop_proven_(model, inputs, found, gone) if verify else None
        if not verify:
            drop_(model, plan.dropped)
        remember_(model, plan)
        after = residual_blocks(model, inputs).costs
        notes = (f"{n} of {len(found.blocks)} residual blocks dropped: {', '.join(told)}",)
        return Report(model, True, found.costs, after, plan, verified, notes=notes)


def _count(blocks: int, n: int | None, keep: int | float | None) -> int:
    """How many blocks go."""
    if (n is None) == (keep is None):
        raise InputError("say either n= (how many blocks go) or keep= (how many stay, or a share of them below 1).")
    if keep is not None:
        n = blocks - (max(int(keep * blocks), 1) if isinstance(keep, float) and keep < 1 else int(keep))
    if n is None or not 1 <= n <= blocks:
        raise InputError(f"{n} of the {blocks} residual blocks cannot go: at least 1, at most {blocks}.")
    return n


def _row(blocks: Sequence[Block], distances: Tensor, n: int) -> tuple[list[Block], float]:
    """The `n` blocks in a row, each reading what the one before it gives, that change least; and how much."""
    rows = [blocks[i : i + n] for i in range(len(distances))]
    joined = torch.tensor([all(a.writes == b.reads for a, b in zip(row, row[1:])) for row in rows])
    if not joined.any():
        raise InputError(
            f"no {n} residual blocks follow each other directly. Give a smaller n=, or method='shortgpt', which takes "
            "blocks from anywhere."
        )
    best = int(torch.where(joined, distances, torch.inf).argmin())
    return list(rows[best]), float(distances[best])
