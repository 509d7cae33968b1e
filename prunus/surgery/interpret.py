"""Run a graph: operators resolved once, arguments filled in, tensors freed after their last use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import FileError, InputError
from prunus.core.guards import guard_of
from prunus.surgery.graph import Batch, Follow, Given, Graph, mapped, refs
from prunus.surgery.operators import changed, resolve, viewed
from prunus.surgery.structure import by_name, rebuild, take_apart
from prunus.tracing.tracer import Ref

Env = list[Any]
Slots = list[tuple[Any, Any]]


class _Ready:
    """One operator, ready to be called: everything but the tensors is in its arguments."""

    __slots__ = ("args", "args_from", "free", "func", "guard", "kwargs", "kwargs_from", "outs", "quiet")

    def __init__(self, func: Any, args: Any, kwargs: Any, outs: tuple[int | None, ...], free: list[int], quiet: bool):
        self.func, self.outs, self.free, self.quiet, self.guard = func, outs, free, quiet, guard_of(func)
        self.args, self.kwargs = list(args), dict(kwargs)
        self.args_from = _slots(enumerate(args))
        self.kwargs_from = _slots(kwargs.items())

    def __call__(self, env: Env) -> Any:
        args, kwargs = self.args, self.kwargs
        if self.args_from:
            args = args.copy()
            _fill(args, self.args_from, env)
        if self.kwargs_from:
            kwargs = kwargs.copy()
            _fill(kwargs, self.kwargs_from, env)
        if self.guard is not None:
            self.guard(args, kwargs)
        if self.quiet and torch.is_grad_enabled():
            with torch.no_grad():
                return self.func(*args, **kwargs)
        return self.func(*args, **kwargs)


def _slots(items: Any) -> Slots:
    """Where tensors go: the key and the number, or the numbers of a list."""
    found: Slots = []
    for key, value in items:
        if isinstance(value, Ref):
            found.append((key, value.number))
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Ref) for v in value):
            found.append((key, [v.number if isinstance(v, Ref) else None for v in value]))
    return found


def _fill(into: Any, slots: Slots, env: Env) -> None:
    for key, source in slots:
        if type(source) is int:
            into[key] = env[source]
        else:
            into[key] = [None if n is None else env[n] for n in source]


class Runner:
    """A graph made ready to run; it holds no tensors.

    Raises: `FileError` when the graph calls an operator that is not allowed, or reads what nothing gives.
    """

    def __init__(self, graph: Graph, order: tuple[str, ...], unit: int) -> None:
        self.graph, self.order, self.unit = graph, order, unit
        self.funcs = [resolve(step.op) for step in graph.steps]
        self.size = _check(graph)
        self.frees = _frees(graph)
        self.quiet = _quiet(graph, self.funcs)
        self.batch = next(((g.number, d) for g in graph.given for d, n in enumerate(g.shape) if n == Batch(unit)), None)
        self.state = [(n, tuple(name.split(".")[:-1]), name.split(".")[-1]) for n, name in graph.state.items()]
        self._ready: tuple[Any, list[_Ready]] | None = None

    def __deepcopy__(self, memo: Any) -> Runner:
        return self

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], module: nn.Module, anchor: Any) -> Any:
        """The outputs for these inputs, with the parameters and buffers of `module`."""
        env, n = self.begin(args, kwargs, module)
        for step in self.ready(n, anchor):
            store(env, step.outs, step(env))
            for number in step.free:
                env[number] = None
        return self.end(env, n)

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], module: nn.Module) -> tuple[Env, Any]:
        """The tensors that are there before the first step, and the number of samples in units."""
        env: Env = [None] * self.size
        named = by_name(self.order, args, kwargs)
        wanted = self.graph.inputs.keys
        named = {k: v for k, v in named.items() if v is not None or k in wanted}
        if set(named) != set(wanted):
            raise InputError(f"the network was recorded with the inputs {list(wanted)}; given {list(named)}.")
        for key, item in zip(wanted, self.graph.inputs.items):
            take_apart(item, named[key], key, env.__setitem__)
        n = self._samples(env)
        for given in self.graph.given:
            _fits(env[given.number], given, n, self.unit)
        for number, path, leaf in self.state:
            env[number] = _look_up(module, path, leaf)
        return env, n

    def _samples(self, env: Env) -> Any:
        if self.batch is None:
            return None
        tensor, d = env[self.batch[0]], self.batch[1]
        count = tensor.shape[d] if tensor.dim() > d else 0
        if self.unit == 1:
            return count
        if count % self.unit:
            raise InputError(f"the network takes a multiple of {self.unit} samples; given {count}.")
        return count // self.unit

    def ready(self, n: Any, anchor: Any) -> list[_Ready]:
        """The steps for `n` samples on the precision and device of `anchor`; the last ones are kept."""
        key = (n, anchor) if n is None or type(n) is int else None
        if key is not None and self._ready is not None and self._ready[0] == key:
            return self._ready[1]
        change = _filler(n, anchor)
        steps = []
        for step, func, free, quiet in zip(self.graph.steps, self.funcs, self.frees, self.quiet):
            args = tuple(mapped(a, change) for a in step.args)
            kwargs = {k: mapped(v, change) for k, v in step.kwargs.items()}
            steps.append(_Ready(func, args, kwargs, step.outs, free, quiet))
        if key is not None:
            self._ready = (key, steps)
        return steps

    def end(self, env: Env, n: Any) -> Any:
        """The outputs in their structure."""
        change = _filler(n, None)
        return rebuild(self.graph.outputs, lambda v: env[v.number] if isinstance(v, Ref) else change(v))


def _look_up(module: nn.Module, path: tuple[str, ...], leaf: str) -> Any:
    for part in path:
        module = module._modules[part]  # type: ignore[assignment]
    found = module._parameters.get(leaf)
    return getattr(module, leaf) if found is None else found


def store(env: Env, outs: tuple[int | None, ...], out: Any) -> None:
    """Put what an operator gave where later steps look for it."""
    if isinstance(out, Tensor):
        if outs and outs[0] is not None:
            env[outs[0]] = out
    elif isinstance(out, (list, tuple)):
        for number, tensor in zip(outs, [t for t in _flat(out) if isinstance(t, Tensor)]):
            if number is not None:
                env[number] = tensor


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _filler(n: Any, anchor: Any) -> Callable[[Any], Any]:
    """Batch sizes, precision and device put in place of what stands for them."""

    def change(value: Any) -> Any:
        if isinstance(value, Batch):
            return value.at(n)
        if isinstance(value, Follow):
            return anchor[0 if value.what == "dtype" else 1]
        return value

    return change


def _fits(tensor: Tensor, given: Given, n: Any, unit: int) -> None:
    expected = [s.at(n) if isinstance(s, Batch) else s for s in given.shape]
    if tensor.dim() == len(expected) and all(
        type(a) is not int or type(b) is not int or a == b for a, b in zip(tensor.shape, expected)
    ):
        return
    free = ["any" if isinstance(s, Batch) and n is None else str(e) for s, e in zip(given.shape, expected)]
    raise InputError(
        f"the network was recorded for an input of shape ({', '.join(free)}), and the recording holds for it "
        f"alone; given {tuple(tensor.shape)}. Rewrite the original again with an example of the size you need."
    )


def _check(graph: Graph) -> int:
    """How many tensors there are; raises `FileError` when one is read before anything gives it."""
    known = set(refs(graph.inputs)) | set(graph.state)
    if {given.number for given in graph.given} - known:
        raise FileError("the list of operators names an input that is none.")
    for i, step in enumerate(graph.steps):
        if missing := set(refs([step.args, step.kwargs])) - known:
            raise FileError(f"step {i} ({step.op}) of the list of operators reads tensor {min(missing)}, made by none.")
        known |= {n for n in step.outs if n is not None}
    if missing := set(refs(graph.outputs)) - known:
        raise FileError(f"the list of operators returns tensor {min(missing)}, made by none.")
    if known and min(known) < 0 or len(known) < max(known, default=-1) + 1:
        raise FileError("the tensors of the list of operators are not numbered in order.")
    return len(known)


def _frees(graph: Graph) -> list[list[int]]:
    """After every step, the tensors that nothing reads any more."""
    seen = set(refs(graph.outputs))
    frees: list[list[int]] = []
    for step in reversed(graph.steps):
        used = {*refs([step.args, step.kwargs]), *(n for n in step.outs if n is not None)}
        frees.append(sorted(used - seen))
        seen |= used
    return frees[::-1]


def _quiet(graph: Graph, funcs: Sequence[Any]) -> list[bool]:
    """Which steps write to parameters, buffers or constants: models do so without gradients."""
    state = set(graph.state)
    out = []
    for step, func in zip(graph.steps, funcs):
        at = viewed(func)
        if at is not None and at < len(step.args) and set(refs(step.args[at])) & state:
            state |= {n for n in step.outs if n is not None}
        written = [step.args[i] for i in changed(func) if i < len(step.args)]
        out.append(bool(set(refs(written)) & state))
    return out
