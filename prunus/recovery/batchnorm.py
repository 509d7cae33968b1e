"""Batch-norm statistics of a network that was cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.core.callbacks import each, forward
from prunus.core.checks import check_arguments
from prunus.core.errors import InputError
from prunus.core.inputs import Inputs
from prunus.core.undo import all_or_nothing

TOO_SMALL = "Where a batch is too small for a batch norm (one value a channel), give larger ones."


@dataclass(frozen=True)
class Recalibrated:
    """What `recalibrate_` did: how many batch-norm layers got new statistics, from how many batches."""

    layers: int
    batches: int


def recalibrate_(model: nn.Module, batches: Iterable[Any], limit: int | None = 200) -> Recalibrated:
    r"""Set every batch norm's running statistics to their exact average over batches of data.

    .. math:: \mu = \frac1B \sum_b \mathrm{mean}_b, \qquad \sigma^2 = \frac1B \sum_b \mathrm{var}_b
       \quad \text{(unbiased)}

    Only batch norms run in training mode: dropout is frozen, no parameter changes, and flags and momenta are as before
    afterwards.  Every batch counts alike.  In a distributed process group the averages of all ranks are averaged.

    Args:
        model: changed in place; layers with ``track_running_stats=False`` have nothing to set and are left alone.
        batches: of training data as in deployment (no augmentation): ``x`` or ``(x, ...)`` with `x` what forward takes.
        limit: at most so many batches; None takes all.

    Raises:
        InputError: there is no batch, a batch is too small, or the statistics come out infinite or NaN; the old
            statistics are put back.

    Source: Li, Wang, Shi, Liu, Hou, "Revisiting Batch Normalization For Practical Domain Adaptation", 2016; for pruned
    networks: Li et al., "EagleEye", ECCV 2020, section 3.3.

    >>> bn = nn.BatchNorm1d(1)
    >>> recalibrate_(bn, [torch.tensor([[0.], [2.]]), torch.tensor([[4.], [8.]])])
    Recalibrated(layers=1, batches=2)
    >>> bn.running_mean, bn.running_var        # (1 + 6) / 2, (2 + 8) / 2
    (tensor([3.5000]), tensor([5.]))
    """
    check_arguments(locals())
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return Recalibrated(0, 0)
    with all_or_nothing(model):
        seen = _accumulate(model, layers, itertools.islice(each(batches), limit))
        _average_over_ranks(layers)
        _check(layers, seen)
        return Recalibrated(len(layers), seen)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """While it is open, batch norms normalise every batch by its own statistics, in evaluation mode too.

    Gradients go through those; the running statistics are as before afterwards, and dropout stays as the mode says.

    >>> bn = nn.BatchNorm1d(1, affine=False).eval()
    >>> with batch_statistics(bn):
    ...     bn(torch.tensor([[0.], [4.]])).flatten().round()
    tensor([-1.,  1.])
    >>> bn.running_mean
    tensor([0.])
    """
    check_arguments(locals())
    kept = [(m, m.running_mean, m.running_var) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        for layer, *_ in kept:
            layer.running_mean = layer.running_var = None
        yield
    finally:
        for layer, mean, variance in kept:
            layer.running_mean, layer.running_var = mean, variance


def _accumulate(model: nn.Module, layers: list[_BatchNorm], batches: Iterable[Any]) -> int:
    """Run `batches` through the network with fresh cumulative statistics; how many there were."""
    seen = 0
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    with _only_batchnorm_trains(model, layers), torch.no_grad():
        for batch in batches:
            given = Inputs.of(batch[0] if isinstance(batch, (tuple, list)) else batch)
            x = given.map(lambda t: t.to(device, memory_format=memory_format(model, t)))
            forward(model, x, f"batch {seen} of the data", TOO_SMALL)
            seen += 1
    return seen


@contextmanager
def _only_batchnorm_trains(model: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    """Eval mode, but `layers` in training mode with cumulative statistics; flags and momenta as before on leaving."""
    training = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.momentum = None  # cumulative average
            layer.reset_running_stats()
            layer.training = True
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _average_over_ranks(layers: list[_BatchNorm]) -> None:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    for layer in layers:
        for buffer in (layer.running_mean, layer.running_var):
            assert buffer is not None
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def _check(layers: list[_BatchNorm], seen: int) -> None:
    if not seen:
        raise InputError("recalibrate: there was no batch; give at least one batch of training data.")
    for layer in layers:
        mean, var = layer.running_mean, layer.running_var
        assert mean is not None and var is not None
        if not bool(torch.isfinite(mean).all() and torch.isfinite(var).all()):
            raise InputError(
                f"recalibrate: a batch norm of {layer.num_features} channels got infinite or NaN statistics; look for "
                f"NaN in the data or in the network's weights. The old statistics were put back."
            )


def memory_format(model: nn.Module, x: Tensor) -> torch.memory_format:
    """The memory format that inputs `x` should have: channels last when the network's convolutions are."""
    if x.dim() != 4:
        return torch.preserve_format
    kernels = (p for p in model.parameters() if p.dim() == 4)
    last = any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in kernels)
    return torch.channels_last if last else torch.preserve_format
