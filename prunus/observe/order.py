"""How the rows of linear layers lie: all of a sample one after the other, or samples in turns.

Inside ``nn.MultiheadAttention`` sequences come first, whatever its ``batch_first``: row ``p * samples + n`` there is
position p of sample n.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Groups, Inputs
from prunus.core.callbacks import OUT_OF_MEMORY, forward
from prunus.core.running import undisturbed
from prunus.observe.layers import Calls, Layer, Order, follow_of


def order_of(model: nn.Module, groups: Groups, pair: Inputs, ones: tuple[Inputs, Inputs]) -> Order:
    """By comparison of two samples together with each of them alone; only what is not sample by sample.

    A layer at which samples act on each other, so that no way shows them, counts as sample by sample; so do all layers
    of a network that does not take a sample alone.
    """
    linear = [op for op in groups.operators if op.name in ("mm", "addmm")]
    least = min((call.batch for call in groups.inputs.calls if call.tensors), default=1)  # weights know no calls
    if not any(op.shapes[0][0] > max(least, 1) for op in linear):
        return {}  # a row a sample
    try:
        both, first, second = (_rows(model, groups, inputs) for inputs in (pair, *ones))
    except OUT_OF_MEMORY:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError):
        return {}
    found = {key: _together(both[key], first[key], second[key]) for key in both if key in first and key in second}
    return {key: together for key, together in found.items() if together}


def _rows(model: nn.Module, groups: Groups, inputs: Inputs) -> dict[tuple[str, int], Tensor]:
    """What goes into every call of a linear layer."""
    rows: dict[tuple[str, int], Tensor] = {}

    def before(layer: Layer) -> None:
        rows.update({} if layer.stride else {layer.key: layer.x})

    follow = follow_of(model, groups)
    with undisturbed(model), follow or nullcontext(), Calls(model, before, follow=follow):
        forward(model, inputs, "a batch of the data")
    return rows


def _together(both: Tensor, first: Tensor, second: Tensor) -> int:
    """How many rows of a sample follow each other; 0 for all of them, and where no way fits."""
    many, channels = first.shape
    if not many or second.shape != first.shape or len(both) != 2 * many:
        return 0
    for together in sorted((n for n in range(1, many + 1) if many % n == 0), reverse=True):
        halves = both.reshape(-1, 2, together, channels).unbind(1)
        if all(_close(half.reshape(many, channels), one) for half, one in zip(halves, (first, second))):
            return 0 if together == many else together
    return 0


def _close(a: Tensor, b: Any) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())))
