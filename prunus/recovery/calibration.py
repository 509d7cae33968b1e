"""Calibration data as one batch, and how much of it fits in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from prunus.core import Groups, InputError, Inputs
from prunus.core.callbacks import each
from prunus.core.ways import call_of
from prunus.observe.base import check_finite, inputs_of


def gather(batches: Iterable[Any], limit: int | None = None, calls: int = 1) -> Inputs:
    """The inputs of all batches as one, of at most `limit` samples.

    Of a network that is called in so many `calls`, batches of one form are of one call, and of each at most `limit`.
    """
    forms: dict[Any, list[list[Any]]] = {}
    seen: Counter[Any] = Counter()
    for number, batch in enumerate(each(batches)):
        inputs = inputs_of(batch)
        leaves, spec = tree_flatten((inputs.args, dict(inputs.kwargs)))
        check_finite(leaves, number)
        form = repr(spec), tuple(leaf.dim() if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)
        if limit is None or seen[form] < limit:
            forms.setdefault(form, []).append([*leaves, spec])
            seen[form] += inputs.batch
        if limit is not None and len(seen) >= calls and min(seen.values()) >= limit:
            break
    if not forms:
        raise InputError("there is no calibration batch; give data= at least one.")
    if len(forms) > calls:
        raise InputError(
            f"calibration batches are of {len(forms)} forms (their inputs differ in structure, number, dimensions or "
            f"in what is no tensor), and the network was traced with {calls} call{'s' * (calls > 1)}: give batches "
            "like the example inputs."
        )
    joined = Inputs.of([_joined(parts) for parts in forms.values()])
    return joined if limit is None else first(joined, limit)


def _joined(parts: list[list[Any]]) -> Inputs:
    """Batches of one form as one; each is its leaves and, last, their structure."""
    *columns, specs = zip(*parts)
    try:
        leaves = [torch.cat(same) if isinstance(same[0], Tensor) and same[0].dim() else same[0] for same in columns]
    except RuntimeError as error:
        sizes = sorted({tuple(t.shape[1:]) for same in columns for t in same if isinstance(t, Tensor)})
        raise InputError(
            f"calibration batches are joined, and their samples have different sizes, {sizes[:4]}: crop or pad them to "
            "one size."
        ) from error
    return Inputs(*tree_unflatten(leaves, specs[0]))


def operators_of(model: nn.Module, groups: Groups, inputs: Inputs) -> list[int]:
    """The numbers of the operators that a forward of `inputs`, as `gather` gives them, runs."""
    return groups.of_calls([call_of(model, groups, one, "the calibration data") for one in inputs.calls])


def times_the_example(model: nn.Module, groups: Groups, inputs: Inputs) -> float:
    """How many times as many numbers there are in `inputs` as in the example that was traced: more, or longer ones.

    Of a network that is called in several ways, the most of any call.
    """

    def numbers(one: Inputs) -> int:
        return sum(t.numel() for t in one.tensors)

    examples = [groups.inputs.calls[call_of(model, groups, one, "the calibration data")] for one in inputs.calls]
    return max(numbers(one) / max(numbers(example), 1) for one, example in zip(inputs.calls, examples))


def bytes_of_a_sample(groups: Groups, until: int | None = None) -> int:
    """The most bytes of activations that are alive at once in a forward of one sample, in float32.

    Of the operators up to the number `until`, where one is given.
    """
    last = {tensor: i for i, op in enumerate(groups.operators) for tensor in op.reads}
    sizes: dict[int, int] = {}
    most = 0
    for i, op in enumerate(groups.operators[: None if until is None else until + 1]):
        for tensor, shape in zip(op.writes, op.shapes):
            sizes[tensor] = 4 * torch.Size(shape).numel()
        most = max(most, sum(sizes.values()))
        sizes = {tensor: size for tensor, size in sizes.items() if last.get(tensor, -1) > i}
    return most // max(groups.inputs.batch, 1)


def first(inputs: Inputs, most: int) -> Inputs:
    """The first `most` samples of every call."""

    def cut(one: Inputs) -> Inputs:
        batch = one.batch
        return one.map(lambda t: t[:most] if t.dim() and t.shape[0] == batch else t)

    return Inputs.of([cut(one) for one in inputs.calls])
