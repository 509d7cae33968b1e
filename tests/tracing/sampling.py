"""Sample calls of ATen operators, and what a rule found for one: the ground of the tests of the rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.tracing import rules
from prunus.tracing.labels import Atoms
from prunus.tracing.tracer import Call, Dim, Dims, Tracer

_numbers = count()


def f(*shape: int) -> Tensor:
    """Real numbers between 0.5 and 2.5, all different, some of them negative."""
    g = torch.Generator().manual_seed(next(_numbers))
    x = 0.5 + 2 * torch.rand(shape, generator=g, dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=g) < 0.3, -x, x)


def p(*shape: int) -> Tensor:
    """Positive numbers."""
    return f(*shape).abs()


def i(high: int, *shape: int) -> Tensor:
    """Integers below `high`."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(next(_numbers)))


def b(*shape: int) -> Tensor:
    """Booleans."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(next(_numbers))) < 0.5


@dataclass(eq=False)
class Sample:
    """One call, and what is to be expected of it beside the law.

    `silent` numbers the operands whose removed rows are zero, of an operator that sums over units; `careful` are the
    dimensions (operand, dim) that the rule fixes although running the operator shows an index map; `ordered` says that
    the order of units counts, `composite` that the operator is seen whole in inference mode only,
    `step` that its kernel wants sizes that are multiples of it.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    silent: tuple[int, ...] = ()
    careful: tuple[tuple[int, int], ...] = ()
    ordered: bool = False
    composite: bool = False
    step: int = 1
    id: str = ""

    @property
    def func(self) -> Any:
        space, _, name = self.op.rpartition("::")
        name, _, overload = name.partition(".")
        return getattr(getattr(getattr(torch.ops, space or "aten"), name), overload or "default")

    @property
    def name(self) -> str:
        """The name that a rule is registered under."""
        return str(self.func._schema.name).removeprefix("aten::")

    @property
    def defined(self) -> bool:
        """Whether equal arguments give equal values."""
        random = torch.Tag.nondeterministic_seeded in self.func.tags
        return not random and "empty" not in self.name and "rand" not in self.name


def S(op: str, *args: Any, **keywords: Any) -> Sample:
    """A sample; keywords that are not of `Sample` are the operator's."""
    own = {k: v for k, v in keywords.items() if k in ("silent", "careful", "ordered", "composite", "step")}
    return Sample(op, args, {k: v for k, v in keywords.items() if k not in own}, **own)


@dataclass(eq=False)
class Followed:
    """What the rule found for a sample: the call, the tracer, and the dimensions of operands and results."""

    sample: Sample
    tracer: Tracer
    call: Call
    before: list[Dims]
    after: list[Dims]

    def resolved(self, dim: Dim, n: int) -> Atoms:
        """The free atoms of every row."""
        return np.zeros((n, 0), np.int64) if dim.labels is None else self.tracer.labels.resolve(dim.labels)

    def alive(self, dim: Dim, n: int, keep: np.ndarray) -> Tensor:
        """The rows that survive."""
        rows = self.resolved(dim, n)
        return torch.from_numpy(np.flatnonzero(((rows < 0) | keep[rows]).all(1)))

    def narrowed(self, tensors: list[Tensor], dims: list[Dims], keep: np.ndarray) -> list[Tensor]:
        """Tensors with the surviving rows only."""
        out = []
        for x, of in zip(tensors, dims):
            for d, dim in enumerate(of):
                x = x.index_select(d, self.alive(dim, x.shape[d], keep)) if dim.labels is not None else x
            out.append(x)
        return out

    def silenced(self, tensors: list[Tensor], keep: np.ndarray) -> list[Tensor]:
        """The operands that the sample names with zeros in the rows that do not survive."""
        out = list(tensors)
        for k in self.sample.silent:
            for d, dim in enumerate(self.before[k]):
                dead = torch.ones(out[k].shape[d], dtype=torch.bool)
                dead[self.alive(dim, len(dead), keep)] = False
                out[k] = out[k].index_fill(d, dead.nonzero().flatten(), 0)
        return out

    def balanced(self, keep: np.ndarray) -> bool:
        """Whether sizes that an operator wants equal stay so."""
        pairs = [(e.left.dim, e.right.dim) for e in self.tracer.equations]
        return all(len({len(self.alive(dim, len(dim.labels), keep)) for dim in pair}) == 1 for pair in pairs)

    def facts(self, keep: np.ndarray) -> tuple[Any, ...]:
        """The arguments with integers that follow the cut."""
        args = self.sample.args
        for fact in self.call.facts:
            rows = self.alive(fact.dim, len(fact.dim.labels), keep)  # type: ignore[arg-type]
            low, high = fact.rows or (0, len(fact.dim.labels))  # type: ignore[arg-type]
            args = _put(args, fact.path, int(((rows >= low) & (rows < high)).sum()))
        return args


def operands(sample: Sample) -> list[Tensor]:
    """The tensors among the arguments, in order."""
    return [leaf for leaf in tree_leaves((sample.args, sample.kwargs)) if isinstance(leaf, Tensor)]


def run(sample: Sample, tensors: list[Tensor], args: tuple[Any, ...] | None = None) -> list[Tensor]:
    """The results on other tensors; what is written in place is a copy."""
    left: Iterator[Tensor] = iter(tensors)
    both = (sample.args if args is None else args, sample.kwargs)
    given, kwargs = tree_map_only(Tensor, lambda _: next(left).clone(), both)
    with torch.no_grad():
        out = sample.func(*given, **kwargs)
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def follow(sample: Sample) -> Followed:
    """Run a sample under a tracer that gives every dimension of every operand units of its own."""
    module = nn.Module()
    copies: dict[int, Tensor] = {}
    for k, x in enumerate(operands(sample)):
        if id(x) not in copies:
            copies[id(x)] = x.clone()
            module.register_buffer(f"x{k}", copies[id(x)])
    tracer = Tracer(module, rules.find)
    args, kwargs = tree_map_only(Tensor, lambda a: copies[id(a)], (sample.args, sample.kwargs))
    before = [tracer.of(copies[id(x)]) for x in operands(sample)]
    with torch.inference_mode(sample.composite), torch.no_grad(), tracer:
        out = sample.func(*args, **kwargs)
    results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    for x in results:  # somebody reads them
        if x in tracer.pending:
            tracer.fix(*tracer.pending[x])
    (call,) = (call for call in tracer.calls if call.name == sample.name)
    return Followed(sample, tracer, call, before, [tracer.of(x) for x in results])


def _put(args: Any, path: tuple[int, ...], value: int) -> Any:
    if not path:
        return value
    return type(args)(_put(a, path[1:], value) if k == path[0] else a for k, a in enumerate(args))
