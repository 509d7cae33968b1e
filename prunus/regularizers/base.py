"""What a regularizer is, and the one optimizer hook that applies it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunus.core import FileError, Fixed, Groups, InputError, Registry
from prunus.core.callbacks import own
from prunus.core.checks import check_arguments, instance
from prunus.core.stepping import after_gradients, skipped
from prunus.core.words import a_regularizer
from prunus.regularizers.targets import Target, targets

Gradient = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Proximal = Callable[[Sequence[Tensor], float], Sequence[Tensor]]
State = Mapping[str, Tensor]
Start = Callable[[Sequence[Tensor]], State]
Rules = Callable[[State], tuple[Gradient, Gradient]]


class Regularizer(NamedTuple):
    """Pressure while training: a penalty gradient, a proximal map, or both; pure functions of weights.

    Attributes:
        roles: which slices of the groups are under pressure.
        gradient: weights -> penalty gradients, list in, list of the same shapes out, added to ``.grad`` before a step.
        proximal: (weights, learning rate) -> new weights, applied after the step.
        kind: ``"element"``: the functions act element by element and get all weights at once, in any shape;
            ``"group"``: they get the slices of one group, each as ``(units, fan)``.
        start: for kind ``"group"``: called once per group with its weights, when it is attached; gives a state by name,
            which a checkpoint keeps.
        rules: beside `start`, in place of `gradient`: of a state a linear map of the loss's gradients, whose values
            take their place, and the penalty gradient.
    """

    roles: frozenset[str]
    gradient: Gradient | None = None
    proximal: Proximal | None = None
    kind: str = "element"
    start: Start | None = None
    rules: Rules | None = None


regularizers: Registry[Callable[..., Regularizer]] = Registry("regularizer")


def regularizer_of(given: Regularizer | str | Mapping[str, Any]) -> Regularizer:
    """The regularizer that is `given`: from itself, from a name, or from ``{"name": ..., **arguments}``.

    Raises: `UnknownNameError` for a name that is not registered.

    >>> sorted(regularizer_of({"name": "bn-gamma", "strength": 1e-3}).roles)
    ['norm_scale']
    """
    check_arguments(locals(), given=a_regularizer)
    if isinstance(given, Regularizer):
        return given
    options = {"name": given} if isinstance(given, str) else dict(given)
    return regularizers[options.pop("name", "")].call(**options)


class Attached:
    """A regularizer at work in an optimizer; `remove()` ends it.  `left_alone`: weights it does not touch, and why.

    Args:
        regularizer: what pulls.
        aims: the slices that it pulls at together, one sequence a group.
        optimizer: whose steps it is part of, by two hooks.
    """

    def __init__(self, regularizer: Regularizer, aims: Sequence[Sequence[Target]], optimizer: Optimizer) -> None:
        self._regularizer = regularizer
        self._targets = aims
        self._states = [regularizer.start([t.read() for t in joint]) if regularizer.start else {} for joint in aims]
        self._rules = self._made()
        self._handles = [optimizer.register_step_pre_hook(self._before)]
        if regularizer.proximal is not None:
            self._handles.append(optimizer.register_step_post_hook(self._after))
        stepped = _learning_rates(optimizer)
        absent = (t for joint in aims for t in joint if id(t.tensor) not in stepped)
        self.left_alone = tuple(Fixed(t.name, "not in the optimizer") for t in absent)

    def remove(self) -> None:
        """Take the hooks out of the optimizer."""
        for handle in self._handles:
            handle.remove()

    def _made(self) -> list[tuple[Gradient | None, Gradient | None]]:
        rules = self._regularizer.rules
        return [rules(state) if rules is not None else (None, self._regularizer.gradient) for state in self._states]

    def state_dict(self) -> list[dict[str, Any]]:
        """What `start` chose for each group, in numbers and text; empty for a regularizer without a state."""
        return [{name: _told(t) for name, t in state.items()} for state in self._states if state]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on with `states` of `state_dict`; raises `FileError` when they are of another network or regularizer."""
        now = self.state_dict()
        if [{n: (t["dtype"], t["shape"]) for n, t in state.items()} for state in now] != [
            {n: (t.get("dtype"), t.get("shape")) for n, t in state.items()} for state in states
        ]:
            raise FileError("the state of the regularizer is of another one, or of another network, than it is here.")
        if now:
            self._states = [{name: _read(t) for name, t in state.items()} for state in states]
            self._rules = self._made()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Add the penalty gradient once: now, or, when the step calls a closure, each time the closure has returned."""
        return after_gradients(args, kwargs, lambda: self._add_gradient(optimizer))

    @torch.no_grad()
    def _add_gradient(self, optimizer: Optimizer) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # set by GradScaler for fused optimizers: gradients still scaled
        for joint, (merge, gradient) in self._live(_learning_rates(optimizer)):
            if merge is not None:
                for t, merged in zip(joint, merge([t.read_grad() for t in joint]), strict=True):
                    t.write_grad(merged)
            if gradient is None:
                continue
            shaped = [t.shape_like_grad(p) for t, p in zip(joint, gradient([t.read() for t in joint]), strict=True)]
            if scale is not None:
                shaped = list(torch._foreach_mul(shaped, scale.to(shaped[0].device)))
            torch._foreach_add_([t.grad for t in joint], shaped)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Apply the proximal map, with the learning rate of each weight's parameter group."""
        if self._regularizer.proximal is None or skipped(optimizer):
            return
        rates = _learning_rates(optimizer)
        for joint, _ in self._live(rates):
            for rate in dict.fromkeys(rates[id(t.tensor)] for t in joint):
                same = [t for t in joint if rates[id(t.tensor)] == rate]
                new = self._regularizer.proximal([t.read() for t in same], rate)
                for t, values in zip(same, new, strict=True):
                    t.write(values)

    def _live(
        self, stepped: dict[int, float]
    ) -> Iterable[tuple[list[Target], tuple[Gradient | None, Gradient | None]]]:
        """The weights that this step moves: in the optimizer, not frozen, with a gradient; and their rule."""
        for joint, rule in zip(self._targets, self._rules, strict=True):
            moved = (t for t in joint if id(t.tensor) in stepped)
            live = [t for t in moved if t.tensor.requires_grad and t.tensor.grad is not None]
            if live:
                yield live, rule


def _told(tensor: Tensor) -> dict[str, Any]:
    """A tensor in numbers and text, for checkpoints of any kind."""
    flat = tensor.detach().cpu().flatten().tolist()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "values": flat}


def _read(told: Mapping[str, Any]) -> Tensor:
    return torch.tensor(told["values"], dtype=getattr(torch, told["dtype"])).reshape(told["shape"])


def attach(regularizer: Regularizer, groups: Groups, optimizer: Optimizer) -> Attached:
    """Apply `regularizer` to the weights of `groups` in every step of `optimizer`, whoever writes the loop.

    The order of a step is unscale, clip, penalty gradient, step, proximal map.  The penalty is added once per optimizer
    step, however many backward passes were accumulated; a step that a ``GradScaler`` skips has none.  Weights that are
    frozen, unused, or not in the optimizer are left alone.  The groups must be those of the network being trained, and
    not cut since.

    Returns a handle with `remove()`.
    Raises: `InputError` when no group has a slice of the regularizer's roles, or none of these is in the optimizer.
    """
    check_arguments(
        locals(), regularizer=instance("a Regularizer, as prunus.regularizers.regularizer_of makes it", Regularizer)
    )
    if regularizer.gradient is None and regularizer.proximal is None and regularizer.start is None:
        raise InputError("this regularizer has neither a gradient nor a proximal map: it does nothing.")
    aims = targets(groups, regularizer.roles, joint=regularizer.kind == "group")
    roles = " or ".join(sorted(regularizer.roles))
    if not aims:
        raise InputError(f"no group of the network has a slice of role {roles}: there is nothing to regularise.")
    stepped = _learning_rates(optimizer)
    if not any(id(t.tensor) in stepped for joint in aims for t in joint):
        raise InputError(
            f"none of the network's weights of role {roles} (first: '{aims[0][0].name}') is in the optimizer. Trace "
            "the very model whose parameters were given to the optimizer, and attach after moving or cutting it."
        )
    parts = {part: getattr(regularizer, part) for part in ("gradient", "proximal", "start")}
    named: dict[str, Any] = {part: own(f, f"regularizer= ({part})") for part, f in parts.items() if f is not None}
    return Attached(regularizer._replace(**named), aims, optimizer)


def attach_where(regularizer: Regularizer, groups: Groups, optimizers: Sequence[Optimizer]) -> list[Attached]:
    """`attach` a `regularizer` to those `optimizers` that hold weights it presses; raises as it does when none does."""
    check_arguments(locals(), regularizer=instance("a prunus.regularizers.Regularizer", Regularizer))
    pressed = {id(s.tensor) for group in groups for s in group.with_role(*regularizer.roles)}
    able = [o for o in optimizers if pressed & set(_learning_rates(o))]
    return [attach(regularizer, groups, optimizer) for optimizer in able or optimizers]


def _learning_rates(optimizer: Optimizer) -> dict[int, float]:
    """The current learning rate of every parameter of the optimizer, by identity."""
    return {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
