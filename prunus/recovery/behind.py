"""What stands behind a layer: the sum that it is a part of, the norm that alone reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.core import Operator


@dataclass(frozen=True)
class Sum:
    """A residual sum that a layer feeds as its last part: numbers of the adding operator, of the other tensor, and of
    the batch norm between layer and sum, if there is one."""

    number: int
    other: int
    norm: int | None


def residual(operators: Sequence[Operator], number: int) -> Sum | None:
    """The residual sum that the output of operator `number` is the last part of, through a batch norm or none."""
    at, tensor, norm = number, operators[number].writes[0], None
    while True:
        users = readers(operators, at, tensor)
        if len(users) != 1:
            return None
        at, op = users[0], operators[users[0]]
        if "batch_norm" in op.name and norm is None:
            norm, tensor = at, op.writes[0]
        elif op.name in ("view", "_unsafe_view") and op.shapes[0][-1] == operators[number].shapes[0][-1]:
            tensor = op.writes[0]
        elif op.name in ("add", "add_") and len(op.reads) == 2 and not op.parameters:
            other = op.reads[0] if op.reads[1] == tensor else op.reads[1]
            made = [i for i, o in enumerate(operators[:at]) if other in o.writes]
            return Sum(at, other, norm) if made and made[-1] < number else None
        else:
            return None


def readers(operators: Sequence[Operator], number: int, tensor: int) -> list[int]:
    """The operators that read what operator `number` wrote, up to where it is written again."""
    users = []
    for i in range(number + 1, len(operators)):
        if tensor in operators[i].reads:
            users.append(i)
        if tensor in operators[i].writes:
            break
    return users


def affine(model: nn.Module, op: Operator) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, in float64."""
    norm: Any = model.get_submodule(op.module)
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.double())
    return scale, (0 if norm.bias is None else norm.bias.double()) - scale * norm.running_mean.double()


def mean_after(model: nn.Module, operators: Sequence[Operator], number: int) -> Tensor | None:
    """The running mean of the batch norm that alone reads an operator's output, used nowhere else."""
    users = readers(operators, number, operators[number].writes[0])
    if len(users) != 1 or "batch_norm" not in operators[users[0]].name:
        return None
    means = [p for p in operators[users[0]].parameters if p.endswith("running_mean")]
    once = means and sum(means[0] in op.parameters for op in operators) == 1
    return dict(model.named_buffers())[means[0]] if once else None
