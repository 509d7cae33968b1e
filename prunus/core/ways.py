"""Which of the calls that a network was traced with a batch of data is like."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from prunus.core.errors import InputError
from prunus.core.groups import Groups
from prunus.core.inputs import Inputs

Leaves = Mapping[str, Any]  # place in the signature of forward, e.g. "x", "masks[0]" -> tensor, number, text


def call_of(model: nn.Module, groups: Groups, given: Inputs, what: str) -> int:
    """The number of the call of `groups.inputs` whose signature `given` fits: 0 of a network that is called in one way.

    A batch fits a call that has no tensor which the batch lacks, where tensors have as many dimensions, and where words
    and truth values are the same; it may bring more, such as labels.  Of several that fit, the one with no more and no
    less than the batch is taken, then the one with the same numbers, then that of the same types, then that of the same
    sizes of a sample; and the first of several that run the same operators.

    Args: what: what errors call the batch, e.g. "batch 0 of the data".

    Raises: `InputError` where it fits none, or several alike.
    """
    if not groups.inputs.more:
        return 0
    calls = [_leaves(model, call) for call in groups.inputs.calls]
    batch = _leaves(model, given)
    fitting = [number for number, call in enumerate(calls) if _fits(call, batch)]
    best = max((_likeness(calls[number], batch) for number in fitting), default=())
    found = [number for number in fitting if _likeness(calls[number], batch) == best]
    if not found or len({_operators(groups, number) for number in found}) > 1:
        fits = f"{len(found)} of them alike" if found else "none of them"
        each = "; ".join(f"{number + 1}. forward({_shown(call)})" for number, call in enumerate(calls))
        raise InputError(
            f"the network was traced with {len(calls)} calls, and {what}, forward({_shown(batch)}), fits {fits}: "
            f"{each}. Names, dimensions and words say which call a batch is of: give batches as the calls are, e.g. "
            "prunus.Inputs(args, kwargs)."
        )
    return found[0]


def _leaves(model: nn.Module, inputs: Inputs) -> Leaves:
    """What forward is given by the names of its signature, with its defaults; None is left out."""
    try:
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
        bound.apply_defaults()
        arguments: Mapping[str, Any] = bound.arguments
    except (TypeError, ValueError):  # no signature, or one that is given something else: positions, and names
        arguments = {**{str(i): value for i, value in enumerate(inputs.args)}, **inputs.kwargs}
    return dict(leaf for name, value in arguments.items() for leaf in _walk(name, value))


def _walk(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            yield from _walk(f"{place}[{key!r}]", part)
    elif value is not None:
        yield place, value


def _fits(call: Leaves, batch: Leaves) -> bool:
    def fits(place: str, mine: Any) -> bool:
        given = batch.get(place)
        if isinstance(mine, Tensor):
            return isinstance(given, Tensor) and given.dim() == mine.dim()
        return not isinstance(mine, (str, bool)) or (type(given) is type(mine) and given == mine)

    return all(fits(place, mine) for place, mine in call.items())


def _likeness(call: Leaves, batch: Leaves) -> tuple[bool, ...]:
    """How a batch that fits a call is like it, the most telling first."""
    pairs = [(t, batch[place]) for place, t in call.items() if isinstance(t, Tensor)]
    numbers = [(n, batch.get(place)) for place, n in call.items() if isinstance(n, (int, float))]
    return (
        call.keys() == batch.keys(),
        all(n == given for n, given in numbers),
        all(_kind(a) == _kind(b) for a, b in pairs),
        all(a.shape[1:] == b.shape[1:] for a, b in pairs),
    )


def _kind(t: Tensor) -> tuple[bool, bool]:
    return t.is_floating_point(), t.is_complex()


def _operators(groups: Groups, call: int) -> tuple[str, ...]:
    return tuple(groups.operators[number].name for number in groups.of_calls((call,)))


def _shown(leaves: Leaves) -> str:
    def shown(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else repr(value)[:40]

    shown_here: Sequence[str] = [f"{place}: {shown(value)}" for place, value in leaves.items()]
    return ", ".join(shown_here)
