"""What a method of sparse training is made of, and what its parts are given."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.core import InputError, Registry
from prunus.masks.rules import RULES, Rule
from prunus.masks.tensors import Tensors


@dataclass(frozen=True, eq=False)
class Moment:
    """Training at one step, as the parts of a method see it: the gradients are there, the optimizer comes next.

    Attributes:
        groups: whose slices hold the weights as the optimizer sees them.
        keep: which units stay now, ``(units,)`` by group, True = keep.
        grads: the gradients, dense, by group, in the parameters' shapes.
        step: how many steps are made.
        limit: how many weights may stay in all.
        memory: tensors that the method keeps from step to step; saved and restored with the pruner.
        seed: of what `draw` gives, 0 or more.
    """

    groups: Tensors
    keep: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]
    step: int
    limit: int
    seed: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)

    def magnitude(self, id: str) -> Tensor:
        """The absolute weights of every unit of the group `id`, summed: ``(units,)``."""
        return self.groups[id].slices[0].weight.abs().sum(1).cpu()

    def slope(self, id: str) -> Tensor:
        """The absolute gradient of every unit of the group `id`, masked or not, summed: ``(units,)``."""
        return self.seen(id, self.grads[id])

    def seen(self, id: str, tensor: Tensor) -> Tensor:
        """The absolute values of a `tensor` shaped like the parameter of `id`, summed by unit: ``(units,)``."""
        return self.groups[id].slices[0].view(tensor).abs().sum(1).cpu()

    def draw(self, id: str) -> Tensor:
        """Random numbers in [0, 1), a function of (seed, step, group `id`): ``(units,)``, the same on all ranks."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{self.step}/{id}".encode()))
        return torch.rand(self.groups[id].units, generator=generator)


LEAST = 5  # steps between updates by default: what has grown is to train before it is judged

Update = Callable[[Moment], Mapping[str, Tensor]]  # which units stay, (units,) by group


def never(step: int) -> bool:
    """At no step."""
    return False


@dataclass(frozen=True, eq=False)
class Method:
    """A way to train under masks.

    Attributes:
        rule: what happens to masked weights.
        start: ``"dense"``, or the allocator that spreads a random mask of the budget's density: ``erk``, ``uniform``.
        when: whether the masks are chosen anew after so many steps.
        update: how.
        watch: called at every step, to keep something in `Moment.memory`.
        skip: whether the step at which masks are chosen changes no weight.
        freeze: after how many steps the masks stay as they are, hard, cut down to the budget where they are above it.
        decay: weight decay of what the rule learns; None: as the optimizer has it.
    """

    rule: Rule = RULES["hard"]
    start: str = "dense"
    when: Callable[[int], bool] = never
    update: Update | None = None
    watch: Callable[[Moment], None] | None = None
    skip: bool = False
    freeze: int | None = None
    decay: float | None = None


# a method is made for a budget: (density, steps, **options) -> Method
methods: Registry[Callable[..., Method]] = Registry("method of sparse training")


def often(every: int | None, steps: int, most: int = 100, least: int = 1) -> int:
    """How many steps lie between updates: `every` if it is given, else `most`, less where training is short.

    >>> often(None, 32000), often(None, 400), often(None, 9), often(7, 400)
    (100, 20, 1, 7)
    """
    return max(min(most, steps // 20), least) if every is None else every


def moving(every: int | None, steps: int, stop: float, *, apart: int = 1) -> Callable[[int], bool]:
    """When masks move at a constant density: every so many steps, until before `stop`, a fraction of the `steps`.

    By default a twentieth of the steps apart, between 5 (what has grown is to train before it is judged) and 100; less
    where no update would come before the end.

    Raises: `InputError` where none does, or updates are fewer than `apart` steps apart.

    >>> [[t for t in range(n) if moving(None, n, 0.75)(t)] for n in (4, 12, 30)]
    [[2], [5], [5, 10, 15, 20]]
    """
    end = int(stop * steps)
    chosen = min(often(every, steps, least=LEAST), max(-(-end // 2), apart) if every is None else every)
    if chosen < apart:
        raise InputError(
            f"every={chosen}: no weight is changed in a step that moves masks, so that none would be in any; give "
            f"every={apart} or more."
        )
    if not any(step % chosen == 0 for step in range(1, end)):
        raise InputError(
            f"masks that move every {chosen} steps, in the first {stop:.0%} of {steps} steps, never move. Give more "
            "steps, or a smaller every=; masks that stay are made by prunus.mask_."
        )
    return periodic(chosen, end)


def periodic(every: int, stop: float, start: int = 1) -> Callable[[int], bool]:
    """Every so many steps, from `start` until before step `stop`.

    >>> [t for t in range(50) if periodic(10, 40)(t)]
    [10, 20, 30]
    """
    return lambda step: start <= step < stop and step % every == 0
