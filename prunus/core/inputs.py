"""What a model's forward takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from prunus.core.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword inputs of a model, in any nesting.

    >>> Inputs.of(torch.zeros(2, 3)).batch
    2
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """From what a user passes: a tensor, a tuple or list of positional inputs, or `Inputs`."""
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Mapping):
            return cls((), dict(example))
        if isinstance(example, (tuple, list)):
            return cls(tuple(example))
        return cls((example,))

    def __call__(self, model: nn.Module) -> Any:
        """Run `model` on these inputs."""
        return model(*self.args, **self.kwargs)

    def map(self, change: Any) -> Inputs:
        """The same inputs with `change` applied to every tensor."""
        args, kwargs = tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating-point tensors in another precision; integer tensors stay."""
        return self.map(lambda t: t.to(dtype) if t.is_floating_point() else t)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor, in order."""
        return [leaf for leaf in tree_flatten((self.args, dict(self.kwargs)))[0] if isinstance(leaf, Tensor)]

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
