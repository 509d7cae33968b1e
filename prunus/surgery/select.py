r"""Channel selection: let a normalisation that reads a shared stream read a part of it only.

In pre-activation ResNets and DenseNets a batch norm stands at the *entrance* of a block and normalises a stream that
others read too.  Its scale says which channels *this* block needs, not which channels the stream needs.  A selection
in front of it,

.. math:: y_{j} = x_{\mathrm{select}[j]},

starts as the identity; `trace` then sees units that belong to this block alone (batch norm and the columns of the
following convolution), and cutting them narrows the selection.  Selecting before a narrow batch norm equals the full
batch norm followed by a selection, at less cost (Liu et al. 2017, section 3.4, and the authors' code).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Added, Inputs, Plan
from prunus.core.checks import check_arguments
from prunus.core.undo import all_or_nothing
from prunus.surgery.memory import plan_of, remember_, replace_
from prunus.tracing.recording import record

BUFFER = "select"
NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "batch_norm")


def select_(model: nn.Module, example_inputs: Any) -> tuple[str, ...]:
    """Put an identity channel selection in front of every batch norm that reads a shared stream.

    A batch norm reads a shared stream unless its input is the output of a convolution or matrix product that nothing
    else reads.  Returns the names of those batch norms (empty for networks that normalise right after every
    convolution).  The function of the network does not change; selections that a cut leaves whole are taken out again
    by `shrink_`.

    Args: example_inputs: what forward takes.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem, self.bn, self.conv = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
    ...     def forward(self, x):
    ...         x = self.stem(x)
    ...         return x + self.conv(self.bn(x).relu())
    >>> select_(Block(), torch.zeros(1, 3, 4, 4))
    ('bn',)
    """
    check_arguments(locals())
    calls = record(model, Inputs.of(example_inputs)).calls
    names = []
    for call in calls:
        if call.name in NORMS and call.parameters and _shared(call, calls):
            name = call.parameters[0].rpartition(".")[0]
            module = model.get_submodule(name)
            if BUFFER not in dict(module.named_buffers(recurse=False)) and name not in names:
                names.append(name)
    with all_or_nothing(model):
        for name in names:
            insert_(model, name)
        return tuple(names)


def _shared(norm: Any, calls: list[Any]) -> bool:
    """Whether the norm's input is anything but the output of one contraction that nothing else reads."""
    source = norm.reads[0]
    writer = [call for call in calls if source in call.writes]
    readers = [call for call in calls if source in call.reads]
    return not (writer and writer[0].macs > 0) or len(readers) > 1


def insert_(model: nn.Module, name: str) -> None:
    """Put an identity selection in front of the batch norm `name`, and let the network remember it."""
    module = model.get_submodule(name)
    n = len(module.get_buffer("running_mean"))
    attach_(module, n)
    remember_(model, Plan(added=(Added(f"{name}.{BUFFER}", "select", (n,), "int64"),)))


def attach_(module: nn.Module, n: int) -> None:
    """The buffer of an identity selection of `n` channels, and the hook that applies it."""
    device = module.get_buffer("running_mean").device
    module.register_buffer(BUFFER, torch.arange(n, device=device))
    if _apply not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_apply)


def _apply(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    select = getattr(module, BUFFER, None)
    return None if select is None else (args[0].index_select(1, select), *args[1:])


def drop_identities_(model: nn.Module) -> None:
    """Take out every selection that still selects everything: it would cost time for nothing."""
    plan = plan_of(model)
    if plan is None or not plan.added:
        return
    whole = [a for a in plan.added if a.kind == "select" and a.name not in plan.tensors]
    for added in whole:
        delattr(model.get_submodule(added.name.rpartition(".")[0]), BUFFER)
    replace_(model, replace(plan, added=tuple(a for a in plan.added if a not in whole)))
