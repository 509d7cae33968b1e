"""Run forward once and follow the labels through every ATen call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from prunus.tracing.labels import Atoms, Labels

SILENT = {"detach", "alias", "lift_fresh", "lift_fresh_copy", "empty", "_to_copy"}  # may differ between two runs


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


@dataclass(frozen=True)
class Origin:
    """A module's integer attribute."""

    module: str
    attribute: str
    value: int


class TracedInt(int):
    """An int that knows which attribute it was read from; arithmetic gives plain ints."""

    origin: Origin


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
    origins: tuple[Origin, ...] = ()
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
        self.keep_arguments = keep_arguments
        self.constants: dict[int, Tensor] = {}  # tensors that no call made: inputs, parameters, buffers, constants
        self.labels = Labels()
        self.rules = rules
        self.calls: list[Call] = []
        self.unknown: dict[str, int] = {}
        self.roles: dict[tuple[str, int], tuple[str, int]] = {}  # (tensor, dim) -> role, number of the call
        self.modules = ModuleStack(model)
        self.origins = Origins(model)
        self.dims: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.names: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.made: set[int] = set()
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
            origins=self.origins.current,
        )
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.call.macs = count(*args, **kwargs, out_val=out) / 2
        if self.keep_arguments:
            self.call.func, (self.call.args, self.call.kwargs) = func, kept
            self.made.update(self.call.writes)
        rule = self.rules(func)
        dims = self._fallback(name, inputs, outs) if rule is None else rule(self, args, kwargs, outs)
        for tensor, of in zip(outs, dims):
            self.dims[tensor] = of
        self.call.dims = dims
        self.calls.append(self.call)
        return out

    def _keep(self, inputs: list[Tensor]) -> None:
        """Hold on to what no recorded call has made."""
        for tensor in inputs:
            number = self.number(tensor)
            if number not in self.made:
                self.constants.setdefault(number, tensor)

    def _fallback(self, name: str, inputs: list[Tensor], outs: list[Tensor]) -> list[Dims]:
        """No rule: nothing that goes in can be cut.  Sound; the report names the operator."""
        for tensor in inputs:
            for dim in self.of(tensor):
                if dim.labels is not None:
                    self.unknown[name] = self.unknown.get(name, 0) + 1
                self.fix(dim, f"the operator {name} has no rule")
        return [[Dim() for _ in t.shape] for t in outs]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything that has to be set up around the forward, and undone."""
        fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), self.modules, self.origins.attributes(), self.origins, self:
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


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


class Origins(TorchFunctionMode):
    """Sees which integer attributes of which modules reach a torch function."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.current: tuple[Origin, ...] = ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.current = tuple(v.origin for v in tree_leaves((args, kwargs)) if isinstance(v, TracedInt))
        try:
            return func(*args, **kwargs)
        finally:
            self.current = ()

    @contextmanager
    def attributes(self) -> Iterator[None]:
        """While this is open, integer attributes of all modules know where they come from."""
        changed: list[tuple[nn.Module, str, int]] = []
        try:
            for name, module in self.model.named_modules():
                for attribute, value in list(vars(module).items()):
                    if type(value) is int and not attribute.startswith("_"):
                        traced = TracedInt(value)
                        traced.origin = Origin(name, attribute, value)
                        changed.append((module, attribute, value))
                        vars(module)[attribute] = traced
            yield
        finally:
            for module, attribute, value in changed:
                if vars(module).get(attribute) == value:
                    vars(module)[attribute] = value
