"""How good is it?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.callbacks import forward
from prunus.core.checks import a_flag, check_arguments
from prunus.core.errors import InputError
from prunus.core.inputs import Inputs
from prunus.core.words import a_preprocess, a_split
from prunus.recovery.batchnorm import memory_format


def evaluate(model: nn.Module, split: Any, preprocess: Any, *, batch: int = 256, progress: bool = True) -> float:
    """Top-1 in [0, 1] of `model` on a split, in eval mode and the network's own precision.

    The split is read `batch` samples at a time, through `preprocess` (`prunus.data.Preprocess`).
    Runs on the device the network is on; a bar is shown on a terminal when `progress`.  Raises `InputError` when the
    split is empty.
    """
    check_arguments(locals(), split=a_split, preprocess=a_preprocess, progress=a_flag)
    from prunus.train.display import track

    batches = split.batches(batch, preprocess)
    correct, total = count_correct(model, track(batches, "evaluating", show=progress))
    if not total:
        raise InputError("evaluate: the split holds no sample; there is nothing to measure the accuracy on.")
    return correct / total


def count_correct(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], rank: int = 0, world: int = 1) -> Any:
    """``(correct, total)`` over every `world`-th batch from `rank`; the training flags stay as they were."""
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))
    training = {module: module.training for module in model.modules()}
    model.eval()
    correct, total = torch.zeros((), dtype=torch.long, device=device), 0
    try:
        with torch.no_grad():
            for x, y in itertools.islice(batches, rank, None, world):
                x = x.to(device, memory_format=memory_format(model, x))
                answer = logits(forward(model, Inputs((x,)), "the images"))  # (N, C)
                correct += (answer.argmax(1) == y.to(device)).sum()
                total += len(y)
    finally:
        for module, flag in training.items():
            module.training = flag
    return int(correct), total


def logits(output: Any) -> Tensor:
    """The ``(N, C)`` scores in what a classifier returned: a tensor, or an object with `logits`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    raise InputError(
        f"the network returned a {type(output).__name__}; training and accuracy need class scores, a tensor (N, C) or "
        f"an object with .logits."
    )
