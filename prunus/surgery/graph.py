"""A recorded forward as plain data: operators by name, their arguments, and JSON for all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from prunus.core import FileError
from prunus.core.fields import LONG, MOST, entries, items, record, shortly, shown, text, whole
from prunus.surgery.structure import KINDS, Node
from prunus.tracing.tracer import Ref

FORMAT = 1


@dataclass(frozen=True)
class Batch:
    """The integer ``slope * n + offset``, with n the number of samples (in units of `Program.unit`)."""

    slope: int
    offset: int = 0

    def at(self, n: Any) -> Any:
        """Its value for `n`, an int or a symbolic int.

        >>> Batch(4, 1).at(3)
        13
        """
        return self.slope * n + self.offset


@dataclass(frozen=True)
class Follow:
    """The ``"dtype"`` or ``"device"`` that the module has when it runs."""

    what: str


@dataclass(frozen=True)
class Step:
    """One operator: its overload by name, arguments with tensors as `Ref`, and the tensors it gives.

    `shapes` are the output shapes that the labels foretell for the recorded batch, and `module` is where the call
    came from; both are for checks and messages and are not kept in files.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outs: tuple[int | None, ...]
    module: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Given:
    """An input tensor: its number, its shape, with `Batch` where it depends on the number of samples, and its type.

    The type is `Follow` where it is the module's own precision, and None in files that do not tell it.
    """

    number: int
    shape: tuple[Any, ...]
    dtype: Any = None


@dataclass(frozen=True)
class Graph:
    """A forward: inputs by name in any nesting, named parameters and buffers, steps, and outputs in any nesting."""

    inputs: Any
    given: tuple[Given, ...]
    state: Mapping[int, str]
    steps: tuple[Step, ...]
    outputs: Any


@dataclass(frozen=True)
class Program:
    """What a `RewrittenModule` runs.

    Attributes:
        eval: the graph of evaluation mode.
        train: that of training mode, None when it could not be recorded.
        why_no_train: the reason then.
        order: the names of forward's positional parameters.
        anchor: the tensor whose precision and device recorded constants follow.
        unit: the number of samples must be a multiple of this.
        notes: what a reader should know about the recording.
    """

    eval: Graph
    train: Graph | None = None
    why_no_train: str = ""
    order: tuple[str, ...] = ()
    anchor: str | None = None
    unit: int = 1
    notes: tuple[str, ...] = field(default=())

    @property
    def any_batch(self) -> bool:
        """Whether it runs at any number of samples (that is a multiple of `unit`), not only the recorded one."""
        return any_batch(self.eval)

    def __deepcopy__(self, memo: Any) -> Program:
        return self  # nothing in it ever changes


def any_batch(graph: Graph) -> bool:
    """Whether a graph takes any number of samples."""
    return any(isinstance(n, Batch) for given in graph.given for n in given.shape)


# ---- JSON ------------------------------------------------------------------------------------------------------------

DEEP = 60  # levels of lists and containers
FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
DTYPES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"),
    *("complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"),
)
_NAMED = {"dtype": torch.dtype, "layout": torch.layout, "format": torch.memory_format}


def to_data(value: Any) -> Any:
    """An argument, or a structure of them, as JSON data; `from_data` is its inverse.

    >>> to_data([Ref(3), Batch(2), torch.float32, float("inf")])
    [{'tensor': 3}, {'batch': [2, 0]}, {'dtype': 'float32'}, {'float': 'inf'}]
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (list, tuple)):
        return [to_data(v) for v in value]
    if isinstance(value, Ref):
        return {"tensor": value.number}
    if isinstance(value, Batch):
        return {"batch": [value.slope, value.offset]}
    if isinstance(value, Follow):
        return {"module": value.what}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, Node):
        return {"kind": value.kind, "keys": list(value.keys), "items": [to_data(v) for v in value.items]}
    for key, kind in _NAMED.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    raise TypeError(f"an argument of type {type(value).__name__} cannot be written to a file")


def from_data(data: Any, deep: int = 0) -> Any:
    """The inverse of `to_data`; raises `ValueError` or `TypeError` when the data is not of its making."""
    if deep > DEEP:
        raise ValueError(f"it is nested deeper than {DEEP} levels")
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return [from_data(v, deep + 1) for v in data]
    if "kind" in data:
        record(data, ("kind", "keys", "items"))
        parts = tuple(from_data(v, deep + 1) for v in items(data["items"]))
        keys = tuple(key if type(key) is int else text(key) for key in items(data["keys"]))
        kind = text(data["kind"], KINDS)
        if kind in ("dict", "fields") and (len(keys) != len(parts) or len(set(keys)) < len(keys)):
            raise ValueError(f"a {kind} of {len(parts)} has {len(set(keys))} keys")
        return Node(kind, keys, parts)
    ((key, value),) = data.items()
    if key == "batch":
        return Batch(*(whole(v, -MOST, MOST) for v in items(value)))
    if key == "complex":
        real, imaginary = items(value)
        return complex(real, imaginary)
    if key in _READ:
        return _READ[key](value)
    raise ValueError(f"'{shown(key)}' is not an argument")


def _dtype(value: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, text(value, DTYPES))
    return found


def _device(value: Any) -> torch.device:
    if not re.fullmatch(r"(cpu|cuda|mps)(:\d{1,3})?", text(value)):
        raise ValueError(f"{shown(value)} is not a device")
    return torch.device(value)


_READ: dict[str, Callable[[Any], Any]] = {
    "tensor": lambda v: Ref(whole(v)),
    "module": lambda v: Follow(text(v, ("dtype", "device"))),
    "float": lambda v: float(text(v, ("inf", "-inf", "nan"))),
    "dtype": _dtype,
    "device": _device,
    "layout": lambda v: getattr(torch, text(v, ("strided",))),
    "format": lambda v: getattr(torch, text(v, FORMATS)),
}


def _graph_data(graph: Graph) -> dict[str, Any]:
    return {
        "inputs": to_data(graph.inputs),
        "given": [[g.number, to_data(list(g.shape)), to_data(g.dtype)] for g in graph.given],
        "state": {str(number): name for number, name in graph.state.items()},
        "steps": [[s.op, to_data(s.args), {k: to_data(v) for k, v in s.kwargs.items()}, s.outs] for s in graph.steps],
        "outputs": to_data(graph.outputs),
    }


def _graph_from(data: Any) -> Graph:
    record(data, ("inputs", "given", "state", "steps", "outputs"))
    steps = []
    for op, args, kwargs, outs in items(data["steps"]):
        arguments = {text(k): from_data(v) for k, v in entries(kwargs).items()}
        numbers = tuple(None if n is None else whole(n) for n in items(outs))
        steps.append(Step(text(op), tuple(from_data(a) for a in items(args)), arguments, numbers))
    given = []
    for number, shape, *dtype in items(data["given"]):
        given.append(Given(whole(number), tuple(from_data(items(shape))), *map(from_data, dtype)))
    inputs = from_data(data["inputs"])
    if not isinstance(inputs, Node) or inputs.kind != "dict":
        raise ValueError("its inputs have no names")
    state = {int(number): text(name) for number, name in entries(data["state"]).items()}
    return Graph(inputs, tuple(given), state, tuple(steps), from_data(data["outputs"]))


def program_data(program: Program) -> dict[str, Any]:
    """A program as JSON data."""
    return {
        "format": FORMAT,
        "eval": _graph_data(program.eval),
        "train": None if program.train is None else _graph_data(program.train),
        "why_no_train": program.why_no_train,
        "order": list(program.order),
        "anchor": program.anchor,
        "unit": program.unit,
        "notes": list(program.notes),
    }


def program_from(data: Any) -> Program:
    """The program in JSON data; raises `FileError` when it is not one."""
    try:
        if entries(data).get("format") != FORMAT:
            raise FileError(f"its list of operators has another format than {FORMAT}; another prunus wrote it.")
        fields = ("format", "eval", "train", "why_no_train", "order", "anchor", "unit", "notes")
        record(data, fields)
        return Program(
            _graph_from(data["eval"]),
            None if data["train"] is None else _graph_from(data["train"]),
            text(data["why_no_train"], longest=LONG),
            tuple(text(name) for name in items(data["order"])),
            None if data["anchor"] is None else text(data["anchor"]),
            whole(data["unit"], 1, MOST),
            tuple(text(note, longest=LONG) for note in items(data["notes"])),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"this is not a list of operators that prunus wrote ({shortly(error)}).") from None


def refs(value: Any) -> list[int]:
    """The numbers of all tensors in an argument or a structure.

    >>> refs([Ref(1), [Ref(2), 5], None])
    [1, 2]
    """
    if isinstance(value, Ref):
        return [value.number]
    if isinstance(value, Node):
        value = value.items
    if isinstance(value, Mapping):
        value = list(value.values())
    return [n for v in value for n in refs(v)] if isinstance(value, (list, tuple)) else []


def mapped(value: Any, change: Any) -> Any:
    """The same argument or structure with `change` applied to every leaf."""
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(v, change) for v in value)
    if isinstance(value, Node):
        return Node(value.kind, value.keys, tuple(mapped(v, change) for v in value.items), value.cls)
    return change(value)
