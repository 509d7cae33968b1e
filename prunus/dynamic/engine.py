"""Execution that skips, by the sparse engine's kernels: lists of channels are read, weights are not moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import InputError
from prunus.dynamic.folded import Folded
from prunus.dynamic.skip import Skipping, inputs_of_layers, prepare


class Listed(Skipping):
    """A gated layer whose convolutions read lists of active channels."""

    kernels: list[Any]

    def build(self, shape: tuple[int, ...], threads: int) -> None:
        """Make the kernels for inputs of a shape ``(1, C_in, H, W)``."""
        from prunus.runtime import DynamicConv2d

        plan = [self.head, *self.steps]
        kernels: list[Any] = []
        x = torch.zeros(shape)
        for i, step in enumerate(plan):
            if isinstance(step, Folded):
                after = plan[i + 1] if i + 1 < len(plan) else None
                low, high = _bounds(after)
                kernels.append(DynamicConv2d(step.module(), x, low=low, high=high, threads=threads))
                x = step(x)
            elif not (kernels and i and isinstance(plan[i - 1], Folded) and _bounds(step) != _bounds(None)):
                kernels.append(step)  # what the kernel before does not do by itself
        self.__dict__["kernels"] = kernels

    def run(self, x: Tensor, out: Tensor | None, into: Tensor | None) -> Tensor:
        """The chain on some channels."""
        c_in, c_out = self.channels
        ins = range(c_in) if into is None else into
        outs = range(c_out) if out is None else out
        ins, outs = (v if isinstance(v, Tensor) else torch.arange(len(v)) for v in (ins, outs))
        if len(outs) == 0 or len(ins) == 0:
            return super().run(x, out, into)
        y = self.kernels[0](x, ins, outs, compact=True)
        for step in self.kernels[1:]:
            if isinstance(step, nn.Module):
                y = step(y)
            elif hasattr(step, "conv"):
                y = step(y, outs, outs, compact=True)
            else:
                y = step(y, out)
        return y

    def _several(self, x: Tensor, mask: Tensor) -> Tensor:
        """Inputs with lists of their own, in one call of each kernel."""
        self.on = mask != 0
        before = self.source.on if self.source is not None else None
        ins = [torch.arange(self.channels[0])] * len(x) if before is None else [b.nonzero().flatten() for b in before]
        outs = [o.nonzero().flatten() for o in self.on]
        y = self.kernels[0](x, ins, outs)
        for step in self.kernels[1:]:
            y = step(y, outs, outs) if hasattr(step, "conv") else step(y)
        return y * mask[(..., *[None] * (y.dim() - 2))]


@torch.no_grad()
def by_lists(model: nn.Module, example_inputs: Any, *, threads: int = 1) -> nn.Module:
    """A copy of a network with gates whose gated layers run in the sparse engine, on lists of active channels.

    What is not gated runs in torch.  Outputs are those of the masked network, to rounding, for inputs of the example's
    size and any number of them.

    Args:
        example_inputs: what forward takes.
        threads: of every kernel.

    Raises: `InputError` for a network without gates, in training mode, or with a convolution that the engine cannot
    run; `MissingExtraError` without llvmlite.
    """
    network, layers = prepare(model, Listed)
    wrong = [n for n, layer in layers.items() if not isinstance(layer.head.conv, nn.Conv2d)]
    if wrong:
        raise InputError(f"'{wrong[0]}' is no two-dimensional convolution: use prunus.dynamic.skipping.")
    for name, shape in inputs_of_layers_in_torch(network, layers, example_inputs).items():
        layers[name].build(shape, threads)
    return network


def inputs_of_layers_in_torch(network: nn.Module, layers: dict[str, Any], example_inputs: Any) -> dict[str, Any]:
    """As `inputs_of_layers`, before there are kernels: every layer whole."""
    for layer in layers.values():
        layer.break_even = 0.0
        layer.__dict__["run"] = Skipping.run.__get__(layer)
    shapes = inputs_of_layers(network, layers, example_inputs)
    for layer in layers.values():
        layer.break_even = 1.0
        del layer.__dict__["run"]
    return shapes


def _bounds(step: Any) -> tuple[float, float]:
    """Between which numbers an activation keeps its input, where that is all it does."""
    if isinstance(step, nn.ReLU6):
        return 0.0, 6.0
    if isinstance(step, nn.ReLU):
        return 0.0, float("inf")
    return -float("inf"), float("inf")
