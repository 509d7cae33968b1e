"""The recorded forward as an ordinary module, for networks whose own code cannot follow a cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import FileError, InputError, TraceError
from prunus.surgery.graph import Program
from prunus.surgery.interpret import Runner

CONSTANTS = "recorded_constants"  # the container of tensors that the original made in forward or kept in attributes


class RewrittenModule(nn.Module):
    """A network that runs a list of ATen operators; `rewrite` makes it, `prunus.load` reads it from a file.

    Parameters and buffers have the names of the original.  It takes any number of samples, trains, can be
    copied, moved, exported, saved with `prunus.save`, traced and cut again.  Other sizes than the number of samples
    are those of the recording.  Branches of the original's code are those that the example took, code under
    `torch.no_grad` is differentiated like all other, and a custom `autograd.Function` has the gradient of its forward.

    Args:
        program: the operators, in evaluation and in training mode.
        tensors: parameters and buffers by qualified name; one tensor under two names stays tied.
        transient: buffers that are not part of the ``state_dict``.

    Attributes:
        program: ``program.notes`` says what to know; ``program.why_no_train`` why `train` refuses, if it does.

    Raises: `FileError` for a program that calls an operator outside ATen, or that does not fit the tensors.

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> groups = prunus.trace(net, torch.zeros(1, 3))
    >>> small = prunus.rewrite(net, groups, prunus.Plan({"0": prunus.GroupPlan(4, (0, 2))}))
    >>> small(torch.zeros(7, 3)).shape, sorted(small.state_dict())
    (torch.Size([7, 2]), ['0.bias', '0.weight', '2.bias', '2.weight'])
    """

    def __init__(
        self, program: Program, tensors: Mapping[str, Tensor], transient: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        self.program = program
        graphs = {False: program.eval, True: program.train}
        self._runners = {
            mode: Runner(graph, program.order, program.unit) for mode, graph in graphs.items() if graph is not None
        }
        for name, tensor in tensors.items():
            _put(self, name, tensor, name not in transient)
        needed = {name for r in self._runners.values() for name in r.graph.state.values()}
        needed |= {program.anchor} if program.anchor is not None else set()
        if missing := sorted(needed - set(tensors)):
            raise FileError(f"the list of operators reads '{missing[0]}', which is no parameter or buffer of the file.")
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._runners[self.training](args, kwargs, self, self._anchor())

    def _anchor(self) -> tuple[torch.dtype, torch.device] | None:
        """The present precision and device of the module."""
        if self.program.anchor is None:
            return None
        path, _, leaf = self.program.anchor.rpartition(".")
        tensor = getattr(self.get_submodule(path), leaf)
        return tensor.dtype, tensor.device

    def train(self, mode: bool = True) -> RewrittenModule:
        """Training or evaluation mode.

        Raises: `TraceError` when the original could not be recorded in training mode; left in evaluation mode the
        network can still be trained, with the statistics of its norms as they are and without dropout.
        """
        if mode and True not in self._runners:
            raise TraceError(
                f"this rewritten network has no training mode: {self.program.why_no_train} It can be trained in "
                "evaluation mode: leave it in eval(); norms then keep their statistics and dropout is off."
            )
        super().train(mode)
        return self

    def extra_repr(self) -> str:
        """How many operators there are, and the batch sizes they take."""
        steps = {"eval": self.program.eval, "train": self.program.train}
        counts = ", ".join(f"{len(g.steps)} operators in {mode}" for mode, g in steps.items() if g is not None)
        size = "any batch size" if self.program.any_batch else "the recorded batch size only"
        return f"{counts}; {size}"


def _put(root: nn.Module, name: str, tensor: Tensor, persistent: bool) -> None:
    """Register a parameter or buffer under its qualified name, in plain containers."""
    *path, leaf = name.split(".")
    try:
        for part in path:
            if part not in root._modules:
                root.add_module(part, nn.Module())
            root = root._modules[part]  # type: ignore[assignment]
        if isinstance(tensor, nn.Parameter):
            root.register_parameter(leaf, tensor)
        else:
            root.register_buffer(leaf, tensor, persistent=persistent)
    except (KeyError, TypeError) as error:
        raise InputError(f"'{name}' cannot be the name of a parameter or buffer ({error}).") from None
