"""Every operator of a graph from a file, on the meta device, before any of them runs: shapes without memory.

What is impossible is refused at load: sizes that do not fit each other, results that are out of all proportion to the
file, views that reach beyond their memory, indices that lie outside.  Of operators whose results have a size that
values decide (``nonzero``), and of what follows from them, numbers alone are bounded; their kernels look at the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from prunus.core import FileError
from prunus.core.guards import guard_of
from prunus.surgery.graph import Batch, Given, Graph, Step, mapped, refs
from prunus.surgery.interpret import Runner, store
from prunus.tracing.tracer import Ref

STEPS = 100_000  # operators of a graph
LEAST = 1 << 30  # bytes that what a graph computes for a few samples may always take
TIMES = 256  # how many times the bytes of inputs and tensors it may take beyond that
SAMPLES = (2, 3)
TRIES = 64  # of the types of inputs, where a file does not tell them
COUNTED = ("arange", "linspace", "logspace", "multinomial", "randperm")  # a number alone says how many
NORMS = ("batch_norm", "instance_norm")
INTEGERS = (torch.int64, torch.int32, torch.uint8)
# the position of the tensor that is read or written at given places, of the dimension, and of the places
_AT_PLACES: dict[str, tuple[int, int | None, int]] = {"embedding": (0, None, 1), "take": (0, None, 1)}
_AT_PLACES |= {f"index_{what}": (0, 1, 2) for what in ("select", "add", "copy", "fill", "add_", "copy_", "fill_")}
_AT_PLACES |= dict.fromkeys(("gather", "scatter", "scatter_", "scatter_add", "scatter_add_"), (0, 1, 2))


def rehearse(graph: Graph, runner: Runner, tensors: Mapping[str, Tensor], anchor: Any) -> None:
    """Run every step without values; `anchor` is the precision and device that recorded constants follow.

    Raises: `FileError` naming the first step that cannot run, or asks for more than it may.
    """
    if len(graph.steps) > STEPS:
        raise FileError(f"the list of operators has {len(graph.steps)} of them, at most {STEPS} may be.")
    wrong = None
    for types in islice(product(*(_types(given, anchor) for given in graph.given)), TRIES):
        try:
            with _disable_current_modes(), torch.no_grad():
                for n in SAMPLES if runner.batch is not None else (None,):
                    _Rehearsal(graph, runner, tensors, anchor, n).run(types)
            return
        except FileError as error:
            wrong = wrong or error
    if wrong is not None:
        raise wrong


def _types(given: Given, anchor: Any) -> tuple[torch.dtype, ...]:
    """The types that an input may have: one, unless the file was written before files told them."""
    if isinstance(given.dtype, torch.dtype):
        return (given.dtype,)
    floating = anchor[0] if anchor is not None else torch.float32
    return (floating,) if given.dtype is not None else (floating, torch.int64, torch.bool)


class _BatchNorms(TorchDispatchMode):
    """Tells the shapes of a batch norm: torch computes its result, without values, by a hundred operators in Python.

    What torch calls it from has compared the sizes with the number of channels before.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.native_batch_norm.default:
            return func(*args, **(kwargs or {}))
        x = args[0]
        return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


class _Rehearsal:
    """One pass over a graph for `n` samples."""

    def __init__(self, graph: Graph, runner: Runner, tensors: Mapping[str, Tensor], anchor: Any, n: int | None) -> None:
        self.graph, self.runner, self.tensors, self.n = graph, runner, tensors, n
        self.anchor = None if anchor is None else (anchor[0], torch.device("meta"))
        self.live: dict[int, list[int]] = {}  # of every storage, how many tensors are on it, and its bytes
        self.env: list[Any] = [None] * runner.size
        self.limit = LEAST

    def run(self, types: tuple[torch.dtype, ...]) -> None:
        """Every step in order."""
        for given, dtype in zip(self.graph.given, types):
            shape = [_size(s.at(self.n) if isinstance(s, Batch) else s) for s in given.shape]
            if math.prod(shape) > 1 << 40:
                raise FileError(f"the list of operators takes an input of shape {shape}.")
            self._put(given.number, torch.empty(shape, dtype=dtype, device="meta"))
        for number, name in self.graph.state.items():
            real = self.tensors[name]
            self._put(number, torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta"))
        self.limit += TIMES * self._bytes()
        for i, (step, ready) in enumerate(zip(self.graph.steps, self.runner.ready(self.n, self.anchor))):
            where = f"step {i} ({step.op}) of the list of operators"
            self._step(step, ready, where)
            for number in ready.free:
                self._take(number)

    def _step(self, step: Step, ready: Any, where: str) -> None:
        if any(self.env[n] is None for n in refs([ready.args, ready.kwargs])):
            return self._bounded(step, ready, where)
        args, kwargs = mapped(ready.args, self._on_meta), {k: mapped(v, self._on_meta) for k, v in ready.kwargs.items()}
        if any(a.name == "device" and a.kwarg_only for a in ready.func._schema.arguments):
            kwargs["device"] = torch.device("meta")  # else what reads no tensor would be made, and at once
        try:
            if (guard := guard_of(ready.func)) is not None:
                guard(args, kwargs)
            self._places(step, args, where)
            with _BatchNorms() if step.op.split(".")[1] in NORMS else nullcontext():
                out = ready.func(*args, **kwargs)
        except NotImplementedError:  # its size is one that values decide
            return self._bounded(step, ready, where)
        except FileError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
            raise FileError(f"{where} cannot run: {type(error).__name__}: {str(error)[:300]}") from None
        found: list[Any] = [None] * self.runner.size
        store(found, step.outs, out)
        for number in {n for n in step.outs if n is not None}:
            if isinstance(found[number], Tensor):
                self._check(found[number], where)
                self._put(number, found[number])
        if self._bytes() > self.limit:
            raise FileError(f"{where} asks for {self._bytes()} bytes in all, at most {self.limit} may be.")
        return None

    def _on_meta(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("meta")
        return self.env[value.number] if isinstance(value, Ref) else value

    def _check(self, tensor: Tensor, where: str) -> None:
        """A result that lies in its memory, and is not out of all proportion also where memory is read many times."""
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1 if tensor.numel() else 0
        inside = (tensor.storage_offset() + reach) * tensor.element_size() <= tensor.untyped_storage().nbytes()
        if not (inside and tensor.storage_offset() >= 0 and all(s >= 0 for s in tensor.stride())):
            raise FileError(f"{where} reaches beyond its memory.")
        if tensor.numel() * tensor.element_size() > self.limit:
            raise FileError(
                f"{where} gives {tuple(tensor.shape)}, which is more than {self.limit} bytes: {LEAST}, and {TIMES} "
                "times the inputs and the tensors of the file."
            )

    def _bounded(self, step: Step, ready: Any, where: str) -> None:
        """Sizes among the numbers of a step that cannot be rehearsed do not ask for too much."""
        loose = [v for v in (*ready.args, *ready.kwargs.values()) if _number(v)]
        counts = [[n] for n in loose] if step.op.split(".")[1] in COUNTED else []
        for numbers in [*counts, *_lists((*ready.args, *ready.kwargs.values()))]:
            if math.prod(max(abs(n), 1) for n in numbers) > self.limit:
                raise FileError(f"{where} asks for sizes of {numbers[:8]}, which is too much.")

    def _places(self, step: Step, args: Any, where: str) -> None:
        """Indices that lie in the file are inside of what they index."""
        base = step.op.split(".")[1]
        pairs: list[tuple[Any, int]] = []
        if base in _AT_PLACES:
            of, dim, at = _AT_PLACES[base]
            if len(args) > at:
                whole, d = args[of], 0 if dim is None else args[dim]
                pairs = [(step.args[at], whole.numel() if base == "take" else whole.shape[d] if whole.dim() else 1)]
        elif base in ("index", "index_put", "index_put_"):
            pairs = list(zip(step.args[1], args[0].shape))
        for ref, size in pairs:
            name = self.graph.state.get(ref.number) if isinstance(ref, Ref) else None
            index = self.tensors[name] if name is not None else None
            if index is None or index.dtype not in INTEGERS or not index.numel():
                continue
            if base.startswith("index") and index.dtype == torch.uint8 and base not in _AT_PLACES:
                continue  # a mask
            low, high = int(index.min()), int(index.max())
            if low < -size or high >= size:
                raise FileError(f"{where} reads place {low if low < -size else high} of {size}, by '{name}'.")

    def _put(self, number: int, tensor: Tensor) -> None:
        self._take(number)
        self.env[number] = tensor
        storage = tensor.untyped_storage()
        self.live.setdefault(storage._cdata, [0, storage.nbytes()])[0] += 1

    def _take(self, number: int) -> None:
        tensor, self.env[number] = self.env[number], None
        if tensor is not None:
            key = tensor.untyped_storage()._cdata
            self.live[key][0] -= 1
            if not self.live[key][0]:
                del self.live[key]

    def _bytes(self) -> int:
        return sum(size for _, size in self.live.values())


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise FileError(f"the list of operators takes an input of size {str(value)[:50]}.")
    return value


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _lists(values: Sequence[Any]) -> Iterator[list[float]]:
    """Every list of numbers among arguments."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield [v for v in value if _number(v)]
