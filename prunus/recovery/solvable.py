"""Which layers of a network are solved again, and how many of their rows are kept for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from prunus.core import Groups, Operator, Plan
from prunus.observe.layers import INPUTS, input_axis
from prunus.recovery.behind import residual

PER_UNKNOWN = 20  # rows of a least-squares system for every unknown, where there are so many
LEAST_ROWS = 8192
VIEWS = ("t", "transpose", "permute", "view", "_unsafe_view", "expand", "unsqueeze", "squeeze", "select", "slice")
ENOUGH = 5  # rows for every unknown; where there are fewer, a note says so


@dataclass(frozen=True)
class Solvable:
    """Which layers are solved again.

    Attributes:
        rows: how many rows are kept of a layer, by the number of its operator.
        left: names of weights that stay, because they are shared or the head of a vocabulary.
        last: the number of the operator with which everything has been seen; None where forward runs to its end.
        notes: layers that there is no memory for; () by default.
    """

    rows: Mapping[int, int]
    left: tuple[str, ...]
    last: int | None
    notes: tuple[str, ...] = ()


def solvable(
    model: nn.Module,
    groups: Groups,
    times: float,
    memory: int,
    plan: Plan | None = None,
    numbers: Sequence[int] | None = None,
) -> Solvable:
    """The layers whose outputs are kept of `times` the example that was traced, in at most `memory` bytes together.

    `numbers` are those of the operators that run, where it is not all of them.

    Left alone are weights that several operators share (tied embeddings) and the head of a vocabulary: a few thousand
    rows say nothing of words that they do not hold.  Every layer is asked for 20 rows an unknown.  Where that is more
    than there is memory for, layers come first that read what `plan` removes, and the others get what is left if that
    is `ENOUGH`.
    """
    ops, read = groups.operators, parameters_read(model, groups.operators)
    ran = range(len(ops)) if numbers is None else numbers
    uses = Counter(p for i in ran for p in {p.data_ptr() for p in read[i].values()})
    alive = groups.alive(groups.mask(plan)) if plan is not None else []
    first, rest, left = dict[int, tuple[int, int, int]](), dict[int, tuple[int, int, int]](), list[str]()
    heads = False
    for number in ran:
        op, named = ops[number], read[number]
        if op.name not in INPUTS or op.macs is None or not named:
            continue
        head = head_of_a_vocabulary(ops, read, number)
        if head or any(uses[p.data_ptr()] > 1 for p in named.values()):
            left.append(max(named, key=lambda name: named[name].numel()))
            heads |= head
            continue
        out = op.shapes[0][1]
        fan = max(p.numel() for p in named.values()) // out
        there = int(times * (torch.Size(op.shapes[0]).numel() // out))
        axis = input_axis(groups, number)
        reads = bool(alive) and axis is not None and not bool(alive[axis].all())
        (first if reads else rest)[number] = (fan, out, min(there, max(PER_UNKNOWN * (fan + 1), LEAST_ROWS)))
    rows, notes = _share_out(first, rest, memory)
    ends = [joined.number if (joined := residual(ops, i)) else i for i in rows]
    last = max(ends, default=None) if heads and len(groups.inputs.calls) == 1 else None
    return Solvable(rows, tuple(left), last, notes)


def parameters_read(model: nn.Module, operators: Sequence[Operator]) -> list[dict[str, nn.Parameter]]:
    """Per operator, the parameters by name that it computes with, itself or through a view of them; none of a view."""
    parameters, shown = dict(model.named_parameters()), dict[int, str]()  # tensors that are views of a parameter
    found = []
    for op in operators:
        names = [name for name in op.parameters if name in parameters]
        names += [shown[tensor] for tensor in op.reads if tensor in shown]
        if op.name in VIEWS and len(names) == 1:
            shown.update(dict.fromkeys(op.writes, names[0]))
            names = []
        found.append({name: parameters[name] for name in names})
    return found


def head_of_a_vocabulary(
    operators: Sequence[Operator], read: Sequence[Mapping[str, nn.Parameter]], number: int
) -> bool:
    """Whether a linear layer is the last one, and gives a number for every row of an embedding.

    `read` is what `parameters_read` returned.
    """
    tables = (p for op, named in zip(operators, read) if op.name == "embedding" for p in named.values())
    if operators[number].name == "convolution" or operators[number].shapes[0][1] not in {p.shape[0] for p in tables}:
        return False
    reached = set(operators[number].writes)
    for later, named in zip(operators[number + 1 :], read[number + 1 :]):
        if reached.intersection(later.reads):
            if later.macs is not None and named:
                return False
            reached.update(later.writes)
    return True


def _share_out(
    first: Mapping[int, tuple[int, int, int]], rest: Mapping[int, tuple[int, int, int]], memory: int
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Rows of each layer ``(fan, out, rows)`` of two classes, all together of at most `memory` bytes in float32."""
    rows, left = dict[int, int](), memory
    for layers in (first, rest):
        bytes_ = sum(4 * out * wanted for _, out, wanted in layers.values())
        part = min(1.0, left / max(bytes_, 1))
        if rows and any(part * wanted < min(wanted, ENOUGH * fan) for fan, _, wanted in layers.values()):
            return rows, (
                f"{len(rest)} layers that read nothing that was removed stay as they were: with all of them, rows of "
                f"their outputs take over {memory / 2**30:.3g} GB (half of memory=)",
            )
        rows |= {i: max(int(part * wanted), 1) for i, (_, _, wanted) in layers.items()}
        left -= int(part * bytes_)
    return rows, ()
