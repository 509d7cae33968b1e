"""A failure put into the middle of a verb, and everything that must then be as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import prunus
from prunus.core.held import _HELD

HOME = Path(prunus.__file__).parent
Place = tuple[Any, tuple[tuple[str, int], ...]]  # an operator or None, and lines of prunus
PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size, type)


class Strike(TorchDispatchMode):
    """Raises at the operator of number `at`, before or after it has run; notes the places of all of them."""

    def __init__(self, at: int = -1, error: type[BaseException] = MemoryError, after: bool = False) -> None:
        super().__init__()
        self.at, self.error, self.after = at, error, after
        self.places: list[Place] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        hit = len(self.places) == self.at
        self.places.append((func, _lines(sys._getframe(1)) if self.at < 0 else ()))
        if hit and not self.after:
            raise self.error("put here by a test")
        out = func(*args, **(kwargs or {}))
        if hit:
            raise self.error("put here by a test")
        return out


class StrikeCall:
    """As `Strike`, at the calls of functions of prunus: what happens between operators."""

    def __init__(self, at: int = -1, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.at, self.error = at, error
        self.places: list[Place] = []

    def _called(self, frame: FrameType, event: str, arg: Any) -> None:
        if not _ours(frame.f_code.co_filename):
            return
        hit = len(self.places) == self.at
        self.places.append((None, _lines(frame) if self.at < 0 else ()))
        if hit:
            raise self.error("put here by a test")

    def __enter__(self) -> StrikeCall:
        sys.settrace(self._called)  # asks nothing but calls as long as it returns None
        return self

    def __exit__(self, *told: Any) -> None:
        sys.settrace(None)


@cache
def _ours(file: str) -> bool:
    """Whether code is of prunus, and not of what puts things back."""
    return HOME in Path(file).parents and Path(file) != HOME / "core" / "undo.py"


def _lines(frame: FrameType | None, deep: int = 4) -> tuple[tuple[str, int], ...]:
    """The innermost lines of prunus that are being run."""
    found: list[tuple[str, int]] = []
    while frame is not None and len(found) < deep:
        if _ours(frame.f_code.co_filename):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def first_and_last(places: Sequence[Place], known: set[Place]) -> list[int]:
    """Where every place that is not `known` is met for the first and for the last time; they are known then."""
    new = [(i, place) for i, place in enumerate(places) if place not in known]
    known.update(place for _, place in new)
    first = {place: i for i, place in reversed(new)}
    last = {place: i for i, place in new}
    return sorted({*first.values(), *last.values()})


@dataclass(eq=False)
class Picture:
    """Everything that is to stay: what was seen, and the objects, so that none gives its identity to another."""

    seen: list[Any]
    held: list[Any]

    def differences(self, other: Picture) -> list[str]:
        return list(_differences(self.seen, other.seen, ""))[:5]


def picture(subjects: Mapping[str, Any]) -> Picture:
    """Of models, optimizers and what else has attributes, of their masks, and of the process."""
    held: list[Any] = []
    known: dict[int, int] = {}
    seen = [(name, _look(value, held, known)) for name, value in subjects.items()]
    tensors = [p for m in subjects.values() if isinstance(m, nn.Module) for p in m.parameters()]
    seen.append(("held", [_look(_HELD.get(p), held, known) for p in tensors]))
    seen.append(("process", world()))
    return Picture(seen, held)


def world() -> list[Any]:
    """The settings of the process, and its random states."""
    return [
        ("torch's random state", torch.get_rng_state().numpy().tobytes()),
        ("numpy's random state", [np.asarray(part).tobytes() for part in np.random.get_state(legacy=True)]),
        ("python's random state", repr(random.getstate())),
        ("default dtype", torch.get_default_dtype()),
        ("gradients", torch.is_grad_enabled()),
        ("fast attention", torch.backends.mha.get_fastpath_enabled()),
        ("onednn", torch.backends.mkldnn.enabled),
        ("threads", torch.get_num_threads()),
        ("deterministic", torch.are_deterministic_algorithms_enabled()),
    ]


def _look(value: Any, held: list[Any], known: dict[int, int]) -> Any:
    if isinstance(value, PLAIN):
        return repr(value)
    if id(value) in known:
        return ("again", known[id(value)])
    known[id(value)] = len(known)
    held.append(value)
    if isinstance(value, Tensor):
        return _tensor(value, held, known)
    if isinstance(value, Mapping):
        return ("items", id(value), [(_look(k, held, known), _look(v, held, known)) for k, v in value.items()])
    if isinstance(value, (list, tuple, set, frozenset)):
        own = 0 if isinstance(value, (tuple, frozenset)) else id(value)
        return ("items", own, [_look(v, held, known) for v in value])
    if isinstance(value, MethodType):
        return ("method", id(value.__self__), id(value.__func__))
    if isinstance(value, (FunctionType, ModuleType)) or not hasattr(value, "__dict__"):
        return ("object", type(value).__name__, id(value))
    return ("object", type(value).__name__, id(type(value)), id(value), _look(dict(vars(value)), held, known)[2])


def _tensor(value: Tensor, held: list[Any], known: dict[int, int]) -> Any:
    facts = (id(value), value.dtype, tuple(value.shape), value.stride(), value.requires_grad)
    bits = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    hooks = [len(h or ()) for h in (value._backward_hooks, value._post_accumulate_grad_hooks)]  # type: ignore[attr-defined]
    grad = _look(value.grad, held, known) if value.is_leaf else None
    return ("tensor", facts, hooks, grad, _look(dict(vars(value)), held, known)[2], bits)


def _differences(a: Any, b: Any, where: str) -> Iterator[str]:
    if a == b:
        return
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        name = f"{where}/{a[0]}" if a and isinstance(a[0], str) and len(a[0]) < 40 else where
        for x, y in zip(a, b):
            yield from _differences(x, y, name)
    else:
        yield f"{where}: {str(a)[:80]} -> {str(b)[:80]}"


def contents(subjects: Mapping[str, Any]) -> list[Any]:
    """The numbers that a verb leaves: tensors of networks and of optimizers, without identities."""
    out: list[Any] = []
    for value in subjects.values():
        if isinstance(value, nn.Module):
            out += [(n, t.detach().clone()) for n, t in value.state_dict().items()]
        if isinstance(value, torch.optim.Optimizer):
            out += [(k, t.clone()) for s in value.state.values() for k, t in s.items() if isinstance(t, Tensor)]
    return out


def points(count: int, many: int) -> list[int]:
    """Numbers of `many` of `count` events, denser towards the end; all of them when there are no more."""
    if count <= many:
        return list(range(count))
    return sorted({round((count - 1) * (1 - (1 - i / (many - 1)) ** 2)) for i in range(many)})


@dataclass(eq=False)
class Case:
    """A verb that is called, and what it may have touched."""

    subjects: Mapping[str, Any]
    call: Callable[[], Any]


@dataclass(eq=False)
class Outcome:
    """Failures that were put in, those that reached the caller, and what they damaged."""

    struck: int
    raised: int
    damage: list[str]


def strike(
    make: Callable[[], Case], operators: int | None, calls: int | None, known: set[Place] | None = None
) -> Outcome:
    """Put failures into a verb, one at a time: at so many operators and so many calls of functions.

    None is the first and the last time that each place is met, but for places that are `known`, which grows.
    """
    seen = set() if known is None else known
    make().call()  # what the first call alone does, and then remembers, is no part of the others
    case = make()
    with Strike() as every, StrikeCall() as each:
        case.call()

    def chosen(places: Sequence[Place], many: int | None) -> list[int]:
        return first_and_last(places, seen) if many is None else points(len(places), many)

    plans: list[Any] = []
    for i, at in enumerate(chosen(every.places, operators)):
        error = (MemoryError, KeyboardInterrupt)[i % 2]
        plans.append((f"operator {at} of {len(every.places)}", Strike(at, error, after=i % 4 > 1)))
    plans += [(f"call {at} of {len(each.places)}", StrikeCall(at)) for at in chosen(each.places, calls)]
    whole, raised, damage = False, 0, list[str]()
    for told, mode in plans:
        if not whole:
            case = make()
            before, whole = picture(case.subjects), True
        try:
            with mode:
                case.call()
        except BaseException as error:
            raised += 1
            found = before.differences(picture(case.subjects))
            if not isinstance(error, (mode.error, prunus.FileError)):  # safetensors makes an error of its own of any
                found.append(f"came out as {error!r}"[:200])
            damage += [f"{told} ({type(error).__name__}): {'; '.join(found)}"] * bool(found)
            whole = not found
        else:
            whole = False  # the failure was taken for one of the network's own, and the verb went on
    return Outcome(len(plans), raised, damage)
