"""Running a network once, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunus.core.inputs import Inputs


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every submodule and the random state are put back afterwards.

    >>> model = nn.Dropout()
    >>> with undisturbed(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = {module: module.training for module in model.modules()}
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def with_batch(inputs: Inputs, batch: int) -> Inputs:
    """The inputs with `batch` samples: tensors whose first dimension is the batch are repeated or cut.

    >>> with_batch(Inputs.of(torch.arange(2.)), 5).tensors
    [tensor([0., 1., 0., 1., 0.])]
    """
    old = inputs.batch
    rows = torch.arange(batch) % max(old, 1)

    def resize(t: Tensor) -> Tensor:
        if t.dim() == 0 or t.shape[0] != old:
            return t
        channels_last = t.dim() == 4 and not t.is_contiguous()
        out = t[rows.to(t.device)]
        return out.contiguous(memory_format=torch.channels_last) if channels_last else out.contiguous()

    return inputs.map(resize)
