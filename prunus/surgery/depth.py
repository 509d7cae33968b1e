"""How are residual blocks removed?  A module that passes its input on takes the place of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.core import Dropped, Inputs, VerificationError, Verified
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.replay import Replay
from prunus.core.undo import all_or_nothing
from prunus.surgery.prove import prove
from prunus.surgery.reference import Reference, runs_of
from prunus.tracing.blocks import Block, Residual


class PassThrough(nn.Module):
    """Gives on what it gets, in the form in which the block that it stands for gave its output.

    Numbers and texts that the block held in attributes stay: code around it may read them.

    >>> PassThrough(nn.Identity(), Dropped("a", "", 2))(torch.ones(1), mask=None)
    (tensor([1.]), None)
    """

    def __init__(self, block: nn.Module, entry: Dropped) -> None:
        super().__init__()
        self._given, self._length = entry.given, entry.length
        plain = {k: v for k, v in vars(block).items() if isinstance(v, (str, int, float)) and not k.startswith("_")}
        vars(self).update(plain)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The input that the block would have changed."""
        x = kwargs[self._given] if self._given else args[0]
        return (x, *[None] * (self._length - 1)) if self._length else x


def drop_(model: nn.Module, entries: Iterable[Dropped]) -> None:
    """Put a `PassThrough` in the place of every block."""
    for entry in entries:
        path, _, leaf = entry.module.rpartition(".")
        parent = model.get_submodule(path)
        parent._modules[leaf] = PassThrough(parent.get_submodule(leaf), entry)


def drop_proven_(model: nn.Module, inputs: Inputs, found: Residual, gone: Sequence[Block]) -> Verified:
    """Drop the blocks `gone`, and prove it: the network gives what the original gives with them silenced, in float64.

    What is silenced is operators of the original, not modules: of every sum on the way through a block, the other
    operand is left out.  Where a norm or a rectifier lies on the way, and it matters, the block's last operator gives
    the block's input instead, and ``exact`` is False.

    Raises: `VerificationError` when the proof fails; the model is then as it was.
    """
    references = [_silenced(model, inputs, found, gone, whole) for whole in (False, True)]
    try:
        with all_or_nothing(model):
            drop_(model, [block.dropped for block in gone])
            try:
                return prove(model, references[0])
            except VerificationError:
                return replace(prove(model, references[1]), exact=False)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # the code around the blocks may raise anything
        raise VerificationError(
            f"without {', '.join(b.name for b in gone)} the network does not give what the original gives with these "
            f"blocks silenced ({error}): the code around them does something else without them. Choose other blocks "
            "(prunus.blocks lists them); the model is as it was."
        ) from error


DTYPE = torch.float64


def _silenced(model: nn.Module, inputs: Inputs, found: Residual, gone: Sequence[Block], whole: bool) -> Reference:
    """The original with silenced blocks: their sums without the branch, or (`whole`) their input for their output."""
    kept = {number: operand for block in gone for number, operand in block.sums}  # of every sum, what stays
    lasts = {_last_write(found, block): block for block in gone}
    held: dict[int, Tensor] = {}

    def before(number: int, args: Any, kwargs: Any) -> None:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not whole and number in kept:
            held[number] = tensors[kept[number]].clone()
        for last, block in lasts.items() if whole else ():
            reads = found.calls[number].reads
            if block.span[0] <= number <= last and block.reads in reads and last not in held:
                held[last] = tensors[reads.index(block.reads)].clone()

    def after(number: int, args: Any, kwargs: Any, out: Any) -> Any:
        if number not in held:
            return None
        value = held.pop(number)
        if not isinstance(out, Tensor):
            return (value.reshape(out[0].shape), *out[1:])
        return out.copy_(value) if found.calls[number].name.endswith("_") else value.reshape(out.shape)

    def watch() -> Replay:
        held.clear()
        return Replay(found.calls, before=before, after=after)

    return Reference(runs_of(model, inputs, DTYPE, watch), DTYPE)


def _last_write(found: Residual, block: Block) -> int:
    """The number of the operator that gives the block's output."""
    return max(i for i in range(*block.span) if block.writes in found.calls[i].writes)
