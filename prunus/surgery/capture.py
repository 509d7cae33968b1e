"""Record one forward at one batch size as a graph whose sizes are those after a cut."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from prunus.core import Groups, Inputs, Operator, TensorPlan, TraceError
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.process import same_random, without_cudnn, without_onednn, without_warnings
from prunus.surgery.graph import Follow, Given, Graph, Step, mapped
from prunus.surgery.operators import name_of
from prunus.surgery.rewritten import CONSTANTS, RewrittenModule
from prunus.surgery.sizes import Sizes, follow
from prunus.surgery.structure import by_name, describe
from prunus.tracing import rules
from prunus.tracing.apply import unchanged
from prunus.tracing.build import build
from prunus.tracing.tracer import Call, Dims, Ref, Rule, Tracer

Cuts = Mapping[str, TensorPlan]
_FILLED = ("bernoulli_", "uniform_", "normal_", "exponential_", "random_", "rand_like", "randn_like", "bernoulli")


@dataclass(eq=False)
class Captured:
    """A graph at one batch size, and the constants that it reads."""

    graph: Graph
    constants: dict[str, Tensor]
    anchor: str | None
    order: tuple[str, ...]
    notes: tuple[str, ...] = ()


def order_of(model: nn.Module) -> tuple[str, ...]:
    """The names of forward's positional parameters."""
    if isinstance(model, RewrittenModule):
        return model.program.order
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds)


def capture(model: nn.Module, inputs: Inputs, cuts: Cuts, training: bool) -> Captured:
    """Record `model` on `inputs`, with every size as it is after the tensors are narrowed by `cuts`.

    Random states, buffers, attributes and modes are put back.

    Raises: `TraceError` when forward fails, or when the cut does not fit the labels of this recording.
    """
    tracer = Tracer(model, _find, keep_arguments=True)
    buffers = dict(model.named_buffers())
    first = _FirstValues([*model.parameters(), *model.buffers(), *inputs.tensors])
    with unchanged(model), _undisturbed(model, training), tracer.recording(), first:
        try:
            out = inputs(model)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # the model's own code may raise anything
            mode = "training" if training else "evaluation"
            raise TraceError(f"forward failed in {mode} mode: {type(error).__name__}: {error}.") from error
        replaced = {n: b for n, b in model.named_buffers() if n in buffers and b is not buffers[n]}
    outputs = describe(out, lambda v: v)
    for tensor in inputs.outputs_in(out):
        for dim in tracer.of(tensor):
            tracer.fix(dim, "it is an output of the model")
    visited = {name for call in tracer.calls for name in call.parameters}
    for name in set(tracer.initial) - visited:
        for dim in tracer.initial[name]:
            tracer.fix(dim, "the example does not visit it")
    groups = build(tracer, inputs).groups
    return _Writer(model, tracer, groups, inputs, first, _keep(groups, cuts)).graph(outputs, replaced)


def _find(func: Any) -> Rule | None:
    """The rule of an operator; what draws random numbers of a given shape keeps that shape."""
    return rules.find(func) or (_same if func._schema.name.removeprefix("aten::") in _FILLED else None)


def _same(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    return [t.of(args[0])]


@contextmanager
def _undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """The mode, with plain kernels; modes and random states are put back."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    with without_warnings(), same_random():  # torch warns about its own flags
        try:
            model.train(training)
            torch.manual_seed(0)
            with without_onednn(), without_cudnn():  # their recurrent layers hide what happens inside
                yield
            if states[0] != random.getstate() or str(states[1]) != str(np.random.get_state()):
                raise TraceError("forward draws random numbers outside torch, which a recording would repeat for ever.")
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for module, mode in modes:
                module.training = mode


class _FirstValues(TorchDispatchMode):
    """Copies of tensors that no operator made, as they were when an operator first read them."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.values: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for tensor in known:
            self.known[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf not in self.known:
                self.known[leaf], self.values[leaf] = True, leaf.detach().clone()
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.known[leaf] = True
        return out


def _keep(groups: Groups, cuts: Cuts) -> Tensor:
    """The units of this recording that survive when the tensors are narrowed by `cuts`."""
    keep = torch.zeros(groups.units + 1, dtype=torch.bool)
    for name, tensor in groups.tensors.items():
        for d, axis in enumerate(tensor.axes):
            if axis is not None:
                kept = cuts[name].kept.get(d) if name in cuts else None
                rows = groups.axes[axis] if kept is None else groups.axes[axis][list(kept)]
                keep[rows.flatten()] = True  # -1 marks the last place, which is cut off
    keep = keep[:-1]
    for group in (g for g in groups if g.parts > 1):  # a part that is gone whole (a head) still counts like the others
        rows = keep[group.offset : group.offset + group.units].view(group.parts, -1)
        most = rows[rows.sum(1).argmax()].clone()
        rows[rows.sum(1) != most.sum()] = most
    found = {n: (t.shape, dict(t.kept)) for n, t in groups.plan(keep).tensors.items()}
    wanted = {n: (t.shape, dict(t.kept)) for n, t in cuts.items()}
    if found != wanted:
        odd = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        raise TraceError(
            f"the recording couples units otherwise than the groups that the plan was made on: '{odd[0]}' cannot be "
            "cut so. Does forward change from call to call?"
        )
    return keep


class _Writer:
    """Turns the recorded calls into steps: tensors are numbered in order, sizes are those after the cut."""

    def __init__(
        self, model: nn.Module, tracer: Tracer, groups: Groups, inputs: Inputs, first: _FirstValues, keep: Tensor
    ) -> None:
        self.tracer, self.groups, self.inputs, self.values = tracer, groups, inputs, first.values
        self.numbers: dict[int, int] = {}
        self.state: dict[int, str] = {}
        self.constants: dict[str, Tensor] = {}
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        self.home = {(t.data_ptr(), t.shape, t.stride()): n for n, t in named.items() if t.numel()}
        self.first = sum(1 for name in named if name.startswith(CONSTANTS + "."))
        floating = (n for n, t in named.items() if t.is_floating_point())
        self.anchor = next(floating, None)
        self.follows = (named[self.anchor].dtype, named[self.anchor].device) if self.anchor else (None, None)
        self.order = order_of(model)
        self.notes: set[str] = set()
        self.sizes = Sizes(groups, groups.alive(keep), {}, {})

    def graph(self, outputs: Any, replaced: Mapping[str, Tensor]) -> Captured:
        named = by_name(self.order, self.inputs.args, self.inputs.kwargs)
        given: list[Given] = []

        def take(value: Any) -> Any:
            if isinstance(value, Tensor):
                traced = self.tracer.number(value)
                number = self._number(traced)
                self.sizes.of[traced] = self.sizes.recorded[traced] = tuple(value.shape)
                given.append(Given(number, tuple(value.shape), self._argument(value.dtype)))
                return Ref(number)
            return value

        inputs = describe(named, take)
        for number, tensor in self.tracer.constants.items():
            if number not in self.numbers:
                self._source(number, tensor)
        steps = [step for call, op in zip(self.tracer.calls, self.groups.operators) if (step := self._step(call, op))]
        outs = mapped(outputs, self._leaf)
        for name, tensor in replaced.items():
            step = self._write_back(name, tensor)
            steps += [step] if step else []
        return Captured(
            Graph(inputs, tuple(given), self.state, tuple(steps), outs),
            self.constants,
            self.anchor,
            self.order,
            tuple(sorted(self.notes)),
        )

    def _number(self, traced: int) -> int:
        return self.numbers.setdefault(traced, len(self.numbers))

    def _source(self, traced: int, tensor: Tensor) -> int:
        """A tensor that no operator made: a parameter, a buffer, or a constant, which becomes a buffer."""
        number = self._number(traced)
        name = self.tracer.names.get(tensor) or self.home.get((tensor.data_ptr(), tensor.shape, tensor.stride()))
        if name is None:
            name = f"{CONSTANTS}.{self.first + len(self.constants)}"
            self.constants[name] = self.values.get(tensor, tensor)
        self.state[number] = name
        entry, self.sizes.recorded[traced] = self.groups.tensors.get(name), tuple(tensor.shape)
        self.sizes.of[traced] = tuple(tensor.shape) if entry is None else self.sizes.left(entry.shape, entry.axes)
        return number

    def _step(self, call: Call, op: Operator) -> Step | None:
        if call.name in ("lift_fresh", "detach_", "alias") and call.reads[:1] == call.writes:
            return None  # the same tensor again
        if call.name in ("_local_scalar_dense", "equal"):
            self.notes.add("forward reads values of tensors into Python; the recording goes on as with the example.")
        if not call.writes and not call.func._schema.is_mutable:
            return None  # an assertion, or a value that Python read: numbers are in the arguments already
        if call.func.namespace not in ("aten", "torchvision"):
            raise TraceError(
                f"forward calls the operator {call.func} in '{call.module or 'the model itself'}', and a rewritten "
                "network holds ATen operators only."
            )
        args, kwargs, shapes = follow(call, op, self.sizes)
        return Step(
            name_of(call.func),
            tuple(mapped(args, self._argument)),
            {name: mapped(value, self._argument) for name, value in kwargs.items()},
            tuple(self._number(n) for n in call.writes),
            call.module,
            shapes,
        )

    def _argument(self, value: Any) -> Any:
        """One argument as plain data."""
        if isinstance(value, Ref):
            return Ref(self._number(value.number))
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int):
            return int(value)  # attributes were read as ints that know their origin
        if isinstance(value, torch.Generator):
            raise TraceError("forward draws from a random generator of its own, which a recording cannot hold.")
        if isinstance(value, torch.dtype) and value == self.follows[0]:
            return Follow("dtype")
        if isinstance(value, torch.device) and value == self.follows[1]:
            return Follow("device")
        return value

    def _leaf(self, value: Any) -> Any:
        """A leaf of the outputs."""
        if isinstance(value, Tensor):
            number = self.tracer.number(value)
            if number not in self.numbers:
                self.tracer.constants[number] = value
                self._source(number, value)
            return Ref(self._number(number))
        if value is None or isinstance(value, (bool, int, float, complex, str)):
            return value
        kind = type(value).__name__
        self.notes.add(f"forward returns a {kind}, which holds more than tensors; the rewritten one returns None.")
        return None

    def _write_back(self, name: str, tensor: Tensor) -> Step | None:
        """A buffer that forward replaced by a new tensor: its value is written to the buffer."""
        buffer = self.groups.tensors.get(name)
        if buffer is None or tuple(tensor.shape) != buffer.shape or self.tracer.number(tensor) not in self.numbers:
            return None
        number = next((k for k, v in self.state.items() if v == name), None)
        if number is None:
            number = self.numbers[-1 - len(self.state)] = len(self.numbers)
            self.state[number] = name
        value = Ref(self._number(self.tracer.number(tensor)))
        return Step("aten.copy_.default", (Ref(number), value), {}, (number,))
