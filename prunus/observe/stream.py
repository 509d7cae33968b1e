r"""How much do residual blocks change what flows through them?

.. math:: \mathrm{BI}_l = 1 - E_{n,t} \cos(h_{l,nt}, h_{l+1,nt})

with :math:`h_{l,nt}` the channels at one position of one sample before block :math:`l`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunus.core import Dropped
from prunus.core.running import removed, undisturbed
from prunus.observe.base import Seen


class Place(Protocol):
    """A residual block, as far as it is seen here: see `prunus.blocks`."""

    @property
    def dropped(self) -> Dropped:
        """Where its input and its output are."""

    @property
    def axis(self) -> int:
        """The dimension of the channels."""


def influence(model: nn.Module, blocks: Sequence[Place], loader: Iterable[Any]) -> Tensor:
    r"""Block influence, ``(blocks,)`` in float64, from 0 (changes nothing) to 2 (turns it round); no unit.

    :math:`\mathrm{BI}_l = 1 - E \cos(h_l, h_{l+1})` over all samples and positions.

    Args:
        blocks: what `prunus.blocks` found.
        loader: batches of what forward takes; no labels are needed.

    Raises: `InputError` when there is no batch, or one holds NaN or infinity.

    Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024, eq. 1.

    >>> import prunus, torch
    >>> net = prunus.zoo.resnet20()
    >>> found = prunus.blocks(net, torch.randn(1, 3, 32, 32))
    >>> influence(net, found, [torch.randn(4, 3, 32, 32)]).shape == (len(found),)
    True
    """
    return _means(model, blocks, loader, lambda flows: [1 - cosine(x, y) for x, y in flows])


def angles(
    model: nn.Module, blocks: Sequence[Place], loader: Iterable[Any], n: int, token: int | None = None
) -> Tensor:
    r"""Angular distance over every `n` blocks in a row, ``(blocks - n + 1,)`` in float64, from 0 to 1 (half a turn).

    :math:`d_l = \frac1\pi E \arccos \cos(h_l, h_{l+n})` at one `token` (-1: the last one, as the source has it for
    language models), or over all positions (None).

    Source: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", ICLR 2025, eq. 7.
    """

    def change(flows: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        pairs = [(flows[i][0], flows[i + n - 1][1]) for i in range(len(flows) - n + 1)]
        return [cosine(x, y).arccos() / math.pi if x.shape == y.shape else x.new_ones(1) for x, y in pairs]

    return _means(model, blocks, loader, change, token)


def _means(
    model: nn.Module,
    blocks: Sequence[Place],
    loader: Iterable[Any],
    change: Callable[[list[tuple[Tensor, Tensor]]], list[Tensor]],
    token: int | None = None,
) -> Tensor:
    """The mean over all rows of what `change` makes of inputs and outputs, each (rows, channels), of all blocks."""
    flows: list[tuple[Tensor, Tensor]] = []

    def rows(x: Tensor, axis: int) -> Tensor:
        x = x.detach().movedim(axis, -1)
        x = x if token is None else x[:, token]
        return x.reshape(-1, x.shape[-1]).double()

    def watch(block: Place) -> Any:
        given = block.dropped.given

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = kwargs[given] if given else args[0]
            flows.append((rows(x, block.axis).clone(), x))  # a block may change its input in place

        def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            flows[-1] = flows[-1][0], rows(out[0] if block.dropped.length else out, block.axis).clone()

        module = model.get_submodule(block.dropped.module)
        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after, with_kwargs=True)

    sums, counts = torch.zeros(0), torch.zeros(0)
    with undisturbed(model), removed(hook for block in blocks for hook in watch(block)):
        for _ in Seen(model, None, loader, None).forwards():  # type: ignore[arg-type]  # no groups are needed
            found = change(flows)
            total = torch.stack([f.sum() for f in found]).cpu()
            many = torch.tensor([len(f) for f in found])
            sums, counts = (sums + total, counts + many) if len(sums) else (total, many)
            flows.clear()
    return sums / counts


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine between rows ``(n, channels)``: ``(n,)``; between two rows of zeros, which are alike, 1.

    >>> cosine(torch.tensor([[1., 0.], [0., 0.]]), torch.tensor([[-2., 0.], [0., 0.]])).tolist()
    [-1.0, 1.0]
    """
    norms = x.norm(dim=1) * y.norm(dim=1)
    zeros = (x == 0).all(1) & (y == 0).all(1)
    return torch.where(zeros, 1.0, ((x * y).sum(1) / norms.clamp(min=1e-300)).clamp(-1, 1))
