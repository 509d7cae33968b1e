"""The ways in which a cut network is repaired without training, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from prunus.core import Groups, InputError, Plan
from prunus.core.checks import a_word, check_arguments
from prunus.recovery.bias import compensate_, lost
from prunus.recovery.blocks import block_targets, rebuild_
from prunus.recovery.repair import Repaired, repair_
from prunus.recovery.targets import targets

METHODS = ("least-squares", "blocks", "bias")

Repair = Callable[[nn.Module, Groups], tuple[str, ...]]


def method_of(repair: bool | str) -> str | None:
    """One of `METHODS`, or None for no repair; raises `InputError` for anything else.

    >>> method_of(True), method_of("bias"), method_of(False)
    ('least-squares', 'bias', None)
    """
    check_arguments(locals())
    if isinstance(repair, bool):
        return METHODS[0] if repair else None
    if repair not in METHODS:
        raise InputError(f"repair={repair!r}: expected True, False, or one of {', '.join(METHODS)}.")
    return repair


def prepare(method: str, model: nn.Module, groups: Groups, plan: Plan, data: Iterable[Any]) -> Repair:
    """Look at the network before it is cut; what is returned repairs the cut one, and tells what it did.

    ``least-squares`` solves every layer again (`repair_`), ``bias`` adds what each layer lost on average to its bias
    (`compensate_`), and ``blocks`` solves every layer, then trains every block that was cut to give what it gave
    (`rebuild_`), and solves again what lies between them: nearer, and slower.

    Args:
        method: one of these three names.
        model, groups, plan: the network before the cut, what `prunus.trace` returned of it, and what will be cut.
        data: batches, ``x`` or ``(x, ...)``, as for `targets`.

    Raises: what `targets`, `lost` and `block_targets` raise.
    """
    check_arguments(locals(), method=a_word)
    if method == "bias":
        means = lost(model, groups, data, plan)
        return lambda cut, after: _said(compensate_(cut, after, means), "were given a bias for what they lost")
    before = targets(model, groups, data, plan=plan)
    blocks = block_targets(model, groups, plan, before.inputs) if method == "blocks" else None
    if blocks is not None and blocks.inputs.batch < before.inputs.batch:
        before = targets(model, groups, data, plan=plan, limit=blocks.inputs.batch)

    def repair(cut: nn.Module, after: Groups) -> tuple[str, ...]:
        said = _said(repair_(cut, after, plan, before), "were solved again by least squares")
        if blocks is None:
            return said

        def inside(name: str) -> bool:
            return any(block.holds(name) for block in blocks.outputs)

        rebuilt = rebuild_(cut, blocks, forward=lambda: repair_(cut, after, plan, before, skip=inside))
        whole = "; the network is one block" if not rebuilt.errors else ""
        then = f"{rebuilt.better} of {len(rebuilt.errors)} blocks were rebuilt on {rebuilt.samples} samples{whole}"
        return (*said, then, *rebuilt.notes)

    return repair


def _said(done: Repaired, what: str) -> tuple[str, ...]:
    return (f"{done.layers} layers {what} on {done.samples} samples, after the proof", *done.notes)
