"""What a method of dynamic pruning is made of, and the registry of methods."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from prunus.core import InputError, Registry
from prunus.core.checks import a_positive_int, a_share, check_fields
from prunus.core.errors import did_you_mean
from prunus.dynamic.gate import Gate, Seen


@dataclass(frozen=True)
class Method:
    """The gates of a method, its loss, and how its gates close while training goes on.

    Attributes:
        keep: the share of channels that shall stay on in the end, in (0, 1].
        floor: channels of a layer that are on for every input.
        until: the share of training after which `keep` is reached.
    """

    keep: float = 0.6
    floor: int = 1
    until: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, keep=a_share, floor=a_positive_int, until=a_share)

    def gate(self, inputs: int, outputs: int) -> Gate:
        """A new gate for a convolution from `inputs` to `outputs` channels."""
        raise NotImplementedError

    def loss(self, ce: Tensor, seen: Sequence[Seen], usual: float | None) -> Tensor:
        """The loss of a batch.

        Args:
            ce: ``(N,)``, the cross-entropy of every sample.
            seen: what every gate did, in order.
            usual: the mean cross-entropy over the training data in the period before; None where it is not known, in
                the first period of a training that did not begin with a pass over them.

        Raises: `InputError` where the loss compares with `usual`, and it is None.
        """
        return ce.mean()

    def close_(self, gates: Sequence[Gate], means: Sequence[Tensor], progress: float) -> None:
        """At the end of a period: set the `gates`, given `means`: the mean saliencies ``(C,)`` of each.

        `progress` is the share of the way to `keep`, in (0, 1].
        """


methods: Registry[Any] = Registry("method of dynamic pruning")


def method_of(name: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """A method by name with its options; raises `InputError` for an option it does not have.

    >>> method_of("manidp", {"keep": 0.5}).keep
    0.5
    """
    if isinstance(name, Method):
        return name
    kind = methods[name].call
    known = [f.name for f in fields(kind)]
    for option in options or {}:
        if option not in known:
            hint = did_you_mean(option, known)
            raise InputError(f"method '{name}' has no '{option}'.{hint} Known: {', '.join(known)}.")
    made = kind(**(options or {}))
    assert isinstance(made, Method) and inspect.isclass(kind)
    return made


def kth_largest(values: Tensor, k: int) -> float:
    """The `k`-th largest of a vector.

    >>> import torch
    >>> kth_largest(torch.tensor([.1, .2, .3, .4]), 2) == torch.tensor(.3).item()
    True
    """
    return float(values.topk(k).values[-1])
