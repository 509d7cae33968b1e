"""The learning rate of every step of a stage, from what a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus import schedules
from prunus.core.callbacks import own
from prunus.core.checks import not_negative, shown
from prunus.core.errors import InputError, UnknownNameError, did_you_mean
from prunus.recovery import protocols

Rate = schedules.Schedule
OPTIONS = {
    "constant": (),
    "cosine": ("end",),
    "linear": ("end",),
    "exponential": ("end",),
    "multi-step": ("milestones", "factor"),
    "last": ("of", "epochs"),
    "rewind": ("of", "epochs"),
}


def learning_rate(schedule: Any, lr: float, epochs: int, steps: int) -> Rate:
    """The learning rate as a function of the step, for `epochs` epochs of `steps` steps that start at `lr`.

    Args:
        schedule: a function step -> learning rate; or a name; or a name with options:
            ``constant``; ``cosine``, ``linear`` (`end`, default 0), ``exponential`` (`end`, default ``lr / 100``);
            ``multi-step`` (`milestones` as fractions of the stage, default 0.5 and 0.75, and `factor`, default 0.1);
            ``last`` and ``rewind``, the fine-tuning protocols, of the schedule `of` (default ``multi-step``) with which
            the network was trained for `epochs` epochs.  Each takes `warmup`, a number of epochs.

    Raises:
        InputError: no such schedule or option, or a value out of range.

    >>> rate = learning_rate({"name": "multi-step", "milestones": [0.5]}, 0.1, epochs=2, steps=5)
    >>> [round(rate(step), 4) for step in (0, 4, 5, 9)]
    [0.1, 0.1, 0.01, 0.01]
    """
    if callable(schedule):
        return _finite(own(schedule, "schedule="))
    options = {"name": schedule} if isinstance(schedule, str) else dict(schedule)
    name, warm = str(options.pop("name", "")), options.pop("warmup", 0)
    _check(name, options)
    warm_steps = round(float(warm) * steps)
    if not 0 <= warm_steps < epochs * steps:
        raise InputError(f"warmup={warm} epochs does not fit into a stage of {epochs} epochs.")
    rate = _named(name, options, lr, epochs * steps - warm_steps, steps)
    return schedules.warmup(rate, warm_steps) if warm_steps else rate


def _finite(rate: Rate) -> Rate:
    """The user's own function, whose values are looked at."""

    def checked(step: float) -> float:
        value = rate(step)
        if not not_negative.holds(value):
            raise InputError(f"schedule= gave {shown(value)} at step {step}; expected a learning rate of at least 0.")
        return value

    return checked


def _named(name: str, options: Mapping[str, Any], lr: float, total: int, steps: int) -> Rate:
    """The schedule `name` over `total` steps, `steps` of them an epoch."""
    if name == "constant":
        return schedules.constant(lr)
    if name == "multi-step":
        milestones = [round(float(m) * total) for m in options.get("milestones", (0.5, 0.75))]
        return schedules.multi_step(lr, milestones, float(options.get("factor", 0.1)))
    if name in ("last", "rewind"):
        if "epochs" not in options:
            raise InputError(f"schedule '{name}' needs epochs: for how many epochs was the network trained?")
        trained_epochs = int(options["epochs"])
        trained = learning_rate(options.get("of", "multi-step"), lr, trained_epochs, steps)
        whole = trained_epochs * steps
        return protocols.last(trained, whole) if name == "last" else protocols.rewind(trained, whole, total)
    end = float(options.get("end", lr / 100 if name == "exponential" else 0.0))
    return schedules.SCHEDULES[name](lr, end, total)


def _check(name: str, options: Mapping[str, Any]) -> None:
    if name not in OPTIONS:
        known = ", ".join(OPTIONS)
        raise UnknownNameError(
            f"there is no learning-rate schedule '{name}'.{did_you_mean(name, OPTIONS)} Known: {known}."
        )
    for option in options:
        if option not in OPTIONS[name]:
            known = ", ".join((*OPTIONS[name], "warmup"))
            raise InputError(f"schedule '{name}' has no option '{option}'. Known: {known}.")
