"""Run forward once and follow the labels through every ATen call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from prunus.core.counting import multiply_adds
from prunus.core.effective import Expressions, Numbering, leaves_of
from prunus.core.inference import makes_weights
from prunus.tracing.calls import ALIGNED, Call, Dim, Dims, Equation, Fact, Ref, numbers_of
from prunus.tracing.decisions import decision
from prunus.tracing.effective import Uses
from prunus.tracing.functions import Functions
from prunus.tracing.labels import Labels
from prunus.tracing.probe import unknown_operator
from prunus.tracing.symbols import Expression, Size, Watch, open_functions, traced_attributes, traced_roots

__all__ = ["Call", "Dim", "Dims", "Equation", "Fact", "Ref", "Rule", "Tracer"]

Rule = Callable[["Tracer", tuple[Any, ...], dict[str, Any], list[Tensor]], list[Dims]]


class Tracer(TorchDispatchMode):
    """Records every operator of a forward and moves the labels through it by the rule of its family."""

    def __init__(self, model: nn.Module, rules: Callable[[Any], Rule | None], *, keep_arguments: bool = False) -> None:
        super().__init__()
        self.model = model
        self.labels = Labels()
        self.rules = rules
        self.keep_arguments = keep_arguments
        self.constants: dict[int, Tensor] = {}  # tensors that no call made: inputs, parameters, buffers, constants
        self.made: set[int] = set()
        self.calls: list[Call] = []
        self.starts: list[int] = []  # the first of them of every call of the network
        self.equations: list[Equation] = []
        self.aligned = dict(ALIGNED)  # operator -> what the sizes that it is given are multiples of
        self.plain: set[int] = set()  # numbers of tensors made of constants that forward writes down
        self.explained: set[int] = set()  # calls whose numbers are known to come from expressions
        self.several: list[Expression] = []  # what forward asks whether it is one, and it is not
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
        self.uses = Uses(Numbering(Expressions(), leaves := leaves_of(model), grow=True), leaves)
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
            leaf = self.uses.numbering.of(tensor)
            self.initial[name] = [self.fresh(n, (name, d)) for d, n in enumerate(tensor.shape)]
            for d, dim in enumerate(self.initial[name]):
                dim.origin = None if leaf is None else (leaf, d)
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

    def unify_all(self, a: Dim, others: Sequence[Dim]) -> None:
        """Each of the others is cut as `a` is."""
        others = [b for b in others if b is not a and b.labels is not a.labels]
        if a.labels is None or len(others) < 2 or any(b.labels is None for b in others):
            for b in others:
                self.unify(a, b)
        else:
            self.labels.unify_all(a.labels, [b.labels for b in others if b.labels is not None])

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
        self.uses.role(dim, role, len(self.calls))

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
        number: int | None = self.numbers.get(tensor)
        if number is None:
            number = self.numbers[tensor] = next(self._fresh_numbers)
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        reads = [self.number(t) for t in inputs]
        if self.keep_arguments:
            self._keep(inputs)
            kept = tree_map_only(Tensor, lambda t: Ref(self.number(t)), (args, kwargs))
        for tensor in inputs if len(self.pending) else ():
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
            [held for t in inputs if (held := self.names.get(t)) is not None],
            [tuple(t.shape) for t in outs],
            integers=list(_integers(args, ())),
            numbers=list(numbers_of(name, func._schema, args, kwargs, self._plain)),
        )
        if name == "lift_fresh" or self.plain.issuperset(reads):
            self.plain.update(self.call.writes)
        self.call.macs = 0 if self.modules.makes_weights else multiply_adds(func, args, kwargs, out)
        self.call.decided = decision(func, args, out)
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random[name] = self.modules.current
        self.call.computed = self.uses.computing = self.uses.numbering.see(func, args, kwargs, inputs, outs)
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
        dims = self.uses.computed(outs, dims) if self.uses.computing else dims
        for tensor, of in zip(outs, dims):
            self.dims[tensor] = of
        self.call.weights = self.uses.read(inputs, self.call.module)
        self.call.dims = dims
        if self.call.over or self.call.contracted:
            self.call.operands = operands
        self.calls.append(self.call)
        return out

    def _plain(self, tensor: Tensor) -> bool:
        return tensor in self.numbers and self.numbers[tensor] in self.plain

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
            Watch.equal, Watch.several = [], []
            try:
                with functions, self:
                    yield
            finally:
                found, Watch.equal = Watch.equal, None
        self.equations += [Equation(a, b, len(self.calls) - 1) for a, b in found]
        self.several += Watch.several


class ModuleStack:
    """The qualified name of the module whose forward is running."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stack = [""]
        self.makers = {name for name, module in model.named_modules() if makes_weights(module)}

    @property
    def current(self) -> str:
        return self.stack[-1]

    @property
    def makes_weights(self) -> bool:
        """Whether it is part of one that computes weights."""
        return not self.makers.isdisjoint(self.stack)

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
