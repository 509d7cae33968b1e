"""What happens around the step of an optimizer, whoever writes the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer

from prunus.core.errors import InputError


def plain_optimizers(given: Optimizer | Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    """The optimizers of torch inside whatever wraps them (Accelerate, Lightning): one or several.

    Raises: `InputError` when it is no optimizer, or one whose step calls no hooks.

    >>> import torch
    >>> len(plain_optimizers(torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)))
    1
    """
    several = isinstance(given, Iterable) and not isinstance(given, Optimizer)
    found = tuple(_inner(one) for one in (given if several else [given]))  # type: ignore[union-attr]
    if not found:
        raise InputError("no optimizer was given; give the one that trains the network.")
    return found


def _inner(optimizer: Any) -> Optimizer:
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"expected a torch.optim.Optimizer; given {type(optimizer).__name__}.")
    if not getattr(type(optimizer).step, "hooked", False):
        raise InputError(
            f"the step of {type(optimizer).__name__} calls no hooks of torch.optim.Optimizer; give the optimizer that "
            "it wraps."
        )
    return optimizer


def after_gradients(args: Any, kwargs: Any, act: Callable[[], None]) -> tuple[Any, Any] | None:
    """Act once the gradients of a step are there: what a step pre-hook returns.

    Without a closure they are there now; with one (Lightning, L-BFGS) each time the closure has returned.
    """
    given = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(given):
        act()
        return None

    def closure() -> Any:
        loss = given()
        act()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


def skipped(optimizer: Optimizer) -> bool:
    """Whether the step just over did nothing, because a `GradScaler` found infinities (fused optimizers)."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
