"""The network inside what wraps it for training."""

from __future__ import annotations

import sys

from torch import nn

from prunus.core.errors import InputError


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own network inside `torch.compile`, `DataParallel` and `DistributedDataParallel`.

    It shares its parameters with the wrapper.  A compiled network compiles itself again after a cut; a distributed one
    must be wrapped again, because its buckets have the old shapes.

    Raises: `InputError` when the parameters are sharded (FSDP, tensor parallelism).

    >>> net = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(net)) is net
    True
    """
    while True:
        inner = model
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        elif "_orig_mod" in model._modules:  # OptimizedModule, which is no public class
            inner = model._modules["_orig_mod"]  # type: ignore[assignment]
        if inner is model:
            check_whole(model)
            return model
        model = inner


def check_whole(model: nn.Module) -> None:
    """Raise `InputError` when parameters of `model` are spread over processes."""
    sharded = _sharded(model)
    if sharded is not None:
        raise InputError(
            f"the parameters of the network are sharded over processes (first: '{sharded}'): a cut, and masks, need "
            "them whole. Prune first and shard the smaller network: report = prunus.prune_(model, ...), then "
            "fully_shard(report.model) and a new optimizer; in training, use DistributedDataParallel until finish_()."
        )


def _sharded(model: nn.Module) -> str | None:
    """The first sharded parameter or module; torch's sharding takes half a second to import, so look if it was."""
    fsdp, tensor = sys.modules.get("torch.distributed.fsdp"), sys.modules.get("torch.distributed.tensor")
    if fsdp is not None:
        for name, module in model.named_modules():
            if isinstance(module, fsdp.FullyShardedDataParallel):
                return name
    if tensor is not None:
        return next((name for name, p in model.named_parameters() if isinstance(p, tensor.DTensor)), None)
    return None
