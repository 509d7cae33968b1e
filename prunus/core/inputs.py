"""What a model's forward takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from prunus.core.callbacks import own
from prunus.core.errors import InputError
from prunus.core.nested import tensors_in, with_tensors_changed

Outputs = Callable[[Any], Any]


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword inputs of a model, in any nesting; and which tensors of what it returns are its outputs.

    `outputs` takes what forward returns and gives the tensors that must keep their shapes and values, in any nesting;
    by default those are all that it holds.  A network that is called in several ways has `more` inputs, one for every
    other way: what is traced, compared and counted is then all of the calls, one after the other.

    >>> Inputs.of(torch.zeros(2, 3)).batch
    2
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Outputs | None = None
    more: tuple[Inputs, ...] = ()

    @classmethod
    def of(cls, example: Any, outputs: Outputs | None = None) -> Inputs:
        """From an `example`: a tensor, a tuple of positional inputs, `Inputs`, or a list of them, one a call.

        A list of anything but `Inputs` holds positional inputs, as a tuple does.  `outputs`: as of the class.
        """
        if outputs is not None:
            return replace(cls.of(example), outputs=outputs)
        if isinstance(example, list) and example and all(isinstance(one, Inputs) for one in example):
            return replace(example[0], more=tuple(example[1:]))
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Mapping):
            return cls((), dict(example))
        if isinstance(example, (tuple, list)):
            return cls(tuple(example))
        return cls((example,))

    def __call__(self, model: nn.Module) -> Any:
        """Run `model` on these inputs: what it returns, or of several calls a tuple of that."""
        return self.each(lambda one: model(*one.args, **one.kwargs))

    @property
    def calls(self) -> tuple[Inputs, ...]:
        """The inputs of every call."""
        return (replace(self, more=()), *self.more)

    def each(self, call: Callable[[Inputs], Any]) -> Any:
        """`call` of these inputs, or of the inputs of every call, as a tuple."""
        return (call(self), *map(call, self.more)) if self.more else call(self)

    def map(self, change: Any) -> Inputs:
        """The same inputs with `change` applied to every tensor."""
        args, kwargs = with_tensors_changed((self.args, dict(self.kwargs)), change)
        return replace(self, args=args, kwargs=kwargs, more=tuple(one.map(change) for one in self.more))

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating-point tensors in the precision of `dtype`; integer tensors stay."""
        return self.map(
            lambda t: t.to(dtype) if t.is_floating_point() else t.to(dtype.to_complex()) if t.is_complex() else t
        )

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor, in order."""
        return [t for one in (self, *self.more) for t in tensors_in((one.args, dict(one.kwargs)))]

    def outputs_in(self, returned: Any) -> list[Tensor]:
        """The tensors of what forward returned: those that `outputs` names, else all, without those of `is_cache`.

        Raises: `TraceError` where it holds something that cannot be walked, `InputError` where `outputs` names none.
        """
        if self.more:
            every = (replace(self, more=()), *(replace(one, outputs=one.outputs or self.outputs) for one in self.more))
            return [t for one, value in zip(every, returned, strict=True) for t in one.outputs_in(value)]
        if self.outputs is None:
            return tensors_in(returned, "what the model returns", is_cache)
        found = tensors_in(own(self.outputs, "outputs=")(returned), "what outputs= gives")
        if not found:
            raise InputError(
                f"outputs= gave no tensor for what the model returns, a {type(returned).__name__}: it takes what "
                "forward returns and gives the tensors that must stay, e.g. outputs=lambda returned: [returned.logits]."
            )
        return found

    @property
    def batch(self) -> int:
        """The number of samples: the first dimension of the first tensor."""
        tensors = self.tensors
        if not tensors or tensors[0].dim() == 0:
            raise InputError("example_inputs holds no tensor with a batch dimension; give what forward takes.")
        return tensors[0].shape[0]

    def signature(self) -> list[dict[str, Any]]:
        """Shape and type of every tensor: what a plan file keeps of the example."""
        return [{"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for t in self.tensors]


def _parts(inputs: Inputs) -> tuple[list[Any], Any]:
    return [inputs.args, dict(inputs.kwargs), inputs.more], inputs.outputs


def _of_parts(parts: Iterable[Any], outputs: Any) -> Inputs:
    args, kwargs, more = parts
    return Inputs(args, kwargs, outputs, more)


# so that batches may hold `Inputs` beside their labels
register_pytree_node(Inputs, _parts, _of_parts)


def is_cache(value: Any) -> bool:
    """Whether an object is the memory of a forward of transformers, which that forward alone reads again."""
    return any(c.__module__.startswith("transformers.") and c.__name__.endswith("Cache") for c in type(value).__mro__)
