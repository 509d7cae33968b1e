"""Run forward once and follow the labels through every ATen call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from prunus.core.counting import multiply_adds
from prunus.tracing.decisions import decision
from prunus.tracing.labels import Atoms, Labels
from prunus.tracing.probe import unknown_operator
from prunus.tracing.symbols import (
    Computed,
    Expression,
    Size,
    TracedFloat,
    TracedInt,
    Watch,
    evaluated,
    expression,
    leaves,
    open_functions,
    plain,
    stripped,
    traced,
    traced_attributes,
    traced_roots,
)

SILENT = {  # may differ between two runs
    *("detach", "alias", "lift_fresh", "lift_fresh_copy", "empty", "_to_copy", "clone", "contiguous"),
    *("_has_compatible_shallow_copy_type", "is_same_size"),
}


@dataclass(eq=False)
class Dim:
    """One dimension of a tensor: its labels (n, k) or None, and the parameter dimension it is, unchanged, if any."""

    labels: Atoms | None = None
    source: tuple[str, int] | None = None


Dims = list[Dim]


@dataclass(eq=False)
class Fact:
    """The integer at `path` in the arguments, which must become the number of kept rows of `dim` (within `rows`)."""

    path: tuple[int, ...]
    value: int
    dim: Dim
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Equation:
    """What must stay equal for forward to go on as it does: an expression, and a fact, another expression or a number.

    `call` numbers the operator it was found at.  A number that a tensor is multiplied by (`power` 1) or divided by (-1)
    may be made good by the weights that the tensor comes from.
    """

    left: Expression
    right: Fact | Expression
    call: int
    power: int = 0


@dataclass(frozen=True)
class Ref:
    """A tensor among the arguments of a recorded call, by its number."""

    number: int


@dataclass(eq=False)
class Call:
    """One ATen call: what went in, what came out, and what the rule found."""

    name: str
    module: str
    reads: list[int]
    writes: list[int]
    parameters: list[str]
    shapes: list[tuple[int, ...]]
    dims: list[Dims] = field(default_factory=list)
    macs: float = 0.0
    scaled: list[Dim] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    integers: list[tuple[tuple[int, ...], int]] = field(default_factory=list)  # path and value, while functions run
    over: list[Dim] = field(default_factory=list)  # dimensions it computes over: silence does not tell what a cut gives
    contracted: list[Dim] = field(default_factory=list)  # dimensions of two activations over which products are summed
    operands: list[Dims] = field(default_factory=list)  # of every tensor that goes in, of such an operator
    decided: Any = None  # see `decisions`
    func: Any = None  # the overload, and its arguments with tensors replaced by `Ref`: only when they are kept
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


Rule = Callable[["Tracer", tuple[Any, ...], dict[str, Any], list[Tensor]], list[Dims]]


class Tracer(TorchDispatchMode):
    """Records every operator of a forward and moves the labels through it by the rule of its family."""

    def __init__(
        self, model: nn.Module, rules: Callable[[Any], Rule | None], *, keep_arguments: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.labels = Labels()
        self.rules = rules
        self.keep_arguments = keep_arguments
        self.constants: dict[int, Tensor] = {}  # tensors that no call made: inputs, parameters, buffers, constants
        self.made: set[int] = set()
        self.calls: list[Call] = []
        self.equations: list[Equation] = []
        self.unknown: dict[str, str] = {}  # operator without a rule -> what became of it
        self.random: dict[str, str] = {}  # operator that draws numbers -> the module that calls it
        self.unvisited: dict[str, str | None] = {}  # module that the example does not visit -> its visited twin
        self.caches: set[tuple[str, str]] = set()  # module and attribute of what forward caches
        self.roles: dict[tuple[str, int], tuple[str, int]] = {}  # (tensor, dim) -> role, number of the call
        self.modules = ModuleStack(model)
        self.dims: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.names: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.pending: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> what is fixed once its values are read
        self.outputs: list[int] = []
        self.tensors: dict[str, Tensor] = {}
        self.initial: dict[str, Dims] = {}
        self.ties: dict[str, list[str]] = {}
        self._fresh_numbers = iter(range(1 << 62))
        self._register(model)

    def _register(self, model: nn.Module) -> None:
        """Every dimension of every parameter and buffer starts with units of its own; tied tensors share them."""
        named = list(model.named_parameters(remove_duplicate=False)) + list(model.named_buffers(remove_duplicate=False))
        for name, tensor in named:
            if tensor in self.names:
                self.ties.setdefault(self.names[tensor], [self.names[tensor]]).append(name)
                continue
            self.names[tensor] = name
            self.tensors[name] = tensor
            self.initial[name] = [self.fresh(n, (name, d)) for d, n in enumerate(tensor.shape)]
            self.dims[tensor] = self.initial[name]

    # ---- what rules use ----------------------------------------------------------------------------------------

    def fresh(self, n: int, source: tuple[str, int] | None = None) -> Dim:
        """A dimension with units of its own (none if its size is one)."""
        return Dim(self.labels.new(n)[:, None] if n > 1 else None, source)

    def of(self, tensor: Tensor) -> Dims:
        """The dimensions of a tensor; one never seen before cannot be cut."""
        dims = self.dims.get(tensor)
        return dims if dims is not None else [Dim() for _ in tensor.shape]

    def unify(self, a: Dim, b: Dim) -> None:
        """Two dimensions of equal size that must be cut alike; one without labels fixes the other."""
        if a is b or a.labels is b.labels:
            return
        if a.labels is None or b.labels is None:
            self.fix(a if b.labels is None else b, "it meets something that cannot be cut")
        else:
            self.labels.unify(a.labels, b.labels)

    def fix(self, dim: Dim, why: str) -> Dim:
        """Nothing of this dimension can be cut; returns the dimension without labels."""
        if dim.labels is not None:
            self.labels.fix(dim.labels, why)
        return Dim()

    def fix_when_read(self, tensor: Tensor, dim: Dim, why: str) -> None:
        """Nothing of this dimension can be cut if anything ever reads the values of `tensor` (not just its shape)."""
        self.pending[tensor] = (dim, why)

    def over(self, dim: Dim) -> Dim:
        """Values are computed over this dimension together: removing a unit changes the others."""
        if dim.labels is not None:
            self.call.over.append(dim)
        return dim

    def contracted(self, dim: Dim) -> None:
        """Products of two activations are summed over this dimension: exact where the silenced ones are zero."""
        if dim.labels is not None:
            self.call.contracted.append(dim)

    def equal(self, a: Dim, b: Dim) -> None:
        """Two dimensions whose numbers of rows must stay equal, though their units are not the same."""
        if a.labels is not None and b.labels is not None and len(a.labels) == len(b.labels):
            self.equations.append(Equation(Size(a, len(a.labels)), Size(b, len(b.labels)), len(self.calls)))

    def role(self, dim: Dim, role: str) -> None:
        """What a parameter's dimension does, the first time an operator says so."""
        if dim.source is not None:
            self.roles.setdefault(dim.source, (role, len(self.calls)))

    def fact(self, path: tuple[int, ...], value: Any, dim: Dim, rows: tuple[int, int] | None = None) -> None:
        """An integer argument that has to follow the cut of `dim`."""
        if dim.labels is not None and isinstance(value, int) and value >= 0:
            self.call.facts.append(Fact(path, int(value), dim, rows))

    def scales(self, *dims: Dim) -> None:
        """The dimensions whose product the operator's multiply-adds grow with."""
        self.call.scaled.extend(dim for dim in dims if dim.labels is not None)

    # ---- the recording -----------------------------------------------------------------------------------------

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor among those that flow between operators."""
        if tensor not in self.numbers:
            self.numbers[tensor] = next(self._fresh_numbers)
        return self.numbers[tensor]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        reads = [self.number(t) for t in inputs]
        if self.keep_arguments:
            self._keep(inputs)
            kept = tree_map_only(Tensor, lambda t: Ref(self.number(t)), (args, kwargs))
        for tensor in inputs:
            if tensor in self.pending:
                self.fix(*self.pending[tensor])
        operands = [self.of(t) for t in inputs]  # before an operator that works in place changes them
        out = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        self.call = Call(
            name,
            self.modules.current,
            reads,
            [self.number(t) for t in outs],
            [self.names[t] for t in inputs if t in self.names],
            [tuple(t.shape) for t in outs],
            integers=list(_integers(args, ())),
        )
        self.call.macs = multiply_adds(func, args, kwargs, out)
        self.call.decided = decision(func, args, out)
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random[name] = self.modules.current
        if self.keep_arguments:
            self.call.func, (self.call.args, self.call.kwargs) = func, kept
            self.made.update(self.call.writes)
        rule = self.rules(func)
        if rule is not None:
            dims = rule(self, args, kwargs, outs)
        elif any(dim.labels is not None for of in operands for dim in of):
            dims = unknown_operator(self, func, args, kwargs, outs)
        else:
            dims = [[Dim() for _ in t.shape] for t in outs]
        for tensor, of in zip(outs, dims):
            self.dims[tensor] = of
        self.call.dims = dims
        if self.call.over or self.call.contracted:
            self.call.operands = operands
        self.calls.append(self.call)
        return out

    def _keep(self, inputs: list[Tensor]) -> None:
        """Hold on to what no recorded call has made."""
        for tensor in inputs:
            number = self.number(tensor)
            if number not in self.made:
                self.constants.setdefault(number, tensor)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything that has to be set up around the forward, and undone."""
        functions = Functions(self)
        with torch.no_grad(), self.modules, traced_attributes(self.model), traced_roots(), open_functions():
            Watch.equal = []
            try:
                with functions, self:
                    yield
            finally:
                found, Watch.equal = Watch.equal, None
        self.equations += [Equation(a, b, len(self.calls) - 1) for a, b in found]


class ModuleStack:
    """The qualified name of the module whose forward is running."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stack = [""]

    @property
    def current(self) -> str:
        return self.stack[-1]

    def __enter__(self) -> None:
        self.handles = []
        for name, module in self.model.named_modules():

            def push(module: nn.Module, args: Any, name: str = name) -> None:
                self.stack.append(name)

            def pop(module: nn.Module, args: Any, out: Any) -> None:
                self.stack.pop()

            self.handles.append(module.register_forward_pre_hook(push, prepend=True))
            self.handles.append(module.register_forward_hook(pop, always_call=True))

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()


def _integers(value: Any, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
    """The integers among the arguments of an operator, with their paths."""
    if isinstance(value, int):
        if not isinstance(value, bool):
            yield path, value
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from _integers(item, (*path, i))


POWERS = {"mul": 1, "rmul": 1, "imul": 1, "multiply": 1, "div": -1, "truediv": -1, "itruediv": -1, "divide": -1}


class Functions(TorchFunctionMode):
    """Sees torch's functions above the operators: which traced numbers go in, and which operators come of it."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func == torch.Tensor.shape.__get__:  # type: ignore[attr-defined]
            return torch.Size(self._sizes(args[0]))
        if func is torch.Tensor.size:
            which = [*args[1:], *kwargs.values()]
            sizes = self._sizes(args[0])
            return sizes[which[0]] if which and which[0] is not None else torch.Size(sizes)
        if func is torch.Tensor.numel or func is torch.numel:
            return math.prod(self._sizes(args[0]))
        numbers = list(leaves((args, kwargs)))
        first = len(self.tracer.calls)
        if not any(type(v) in (TracedInt, TracedFloat) for v in numbers):
            out = func(*args, **kwargs)
        else:
            out = func(*stripped(args), **stripped(kwargs))
            self._explain(numbers, first, POWERS.get(name.strip("_"), 0))
        if name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            self._number(Computed("pow", (expression(self._sizes(args[0])[-1]), -0.5)), first, 1)
        return out

    def _sizes(self, tensor: Tensor) -> list[int]:
        """The shape; labelled sizes remember their dimension."""
        dims = self.tracer.of(tensor)
        return [n if d.labels is None else traced(n, Size(d, n)) for n, d in zip(tuple(tensor.shape), dims)]

    def _explain(self, numbers: list[Any], first: int, power: int) -> None:
        """Match the numbers that a function was called with to the integers of the operators that came of it."""
        calls = self.tracer.calls[first:]
        found = [(first + i, path, value) for i, call in enumerate(calls) for path, value in call.integers]
        whole = [v for v in numbers if isinstance(v, int)]
        same = len(whole) == len(found) and all(
            plain(a) == c or (type(a) is int and -1 in (a, c)) for a, (_, _, c) in zip(whole, found)
        )
        for number in numbers:
            if type(number) not in (TracedInt, TracedFloat):
                if isinstance(number, int) and not same:
                    _take(found, number)
                elif isinstance(number, int):
                    found.pop(0)
                continue
            at = None
            if isinstance(number, int):
                at = found.pop(0) if same else _take(found, plain(number))
            fact = None if at is None else self._fact(at[0], at[1])
            if fact is not None:
                self.tracer.equations.append(Equation(expression(number), fact, at[0]))
            else:
                self._number(expression(number), first, power)

    def _fact(self, call: int, path: tuple[int, ...]) -> Fact | None:
        return next((fact for fact in self.tracer.calls[call].facts if fact.path == path), None)

    def _number(self, expression: Expression, first: int, power: int = 0) -> None:
        """A number that must not change, whatever is cut."""
        value = evaluated(expression)
        self.tracer.equations.append(Equation(expression, value, max(len(self.tracer.calls) - 1, first), power))


def _take(found: list[Any], value: int) -> Any:
    """Take the first integer of that value off the list."""
    for i, (_, _, other) in enumerate(found):
        if other == value:
            return found.pop(i)
    return None
