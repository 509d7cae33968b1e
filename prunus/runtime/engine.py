"""The compiled network: called like the model it was made from."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.core.errors import InputError
from prunus.core.inputs import Inputs
from prunus.runtime import gated, jit, memory
from prunus.runtime.bases import mix
from prunus.runtime.build import Builder
from prunus.runtime.capture import capture
from prunus.runtime.forms import At, Buffer, Step, Value
from prunus.runtime.graph import Graph
from prunus.runtime.walk import Workers


def compile(model: nn.Module, example_inputs: Any, *, threads: int = 1, tune: bool = False) -> CompiledNetwork:
    """`model` as kernels made for this processor, in which weights that are zero take no time.

    The network is exported, batch norms are folded, bounds and sums are fused into convolutions, and every layer is
    run sparse or dense, whichever takes fewer cycles.  What has no kernel is run by torch; `report` lists it, and
    `prunus.runtime.profile` says what it costs.  A processor without vectors gets torch for all, and a warning.
    Batches of any size are run, in pieces of as many samples as `example_inputs` has (a power of two, at most a
    vector's floats); a network with gates (`prunus.dynamic`) sample by sample, with the channels that are on for it.
    Weights are copied: compile again after changing them.

    `example_inputs`: what forward takes.  `tune`: run a few variants of every layer and take the
    fastest, where else a model of the processor decides; takes seconds, and `prunus.runtime.save` keeps what was found.

    Raises `TraceError` when the model cannot be exported, `InputError` for inputs without samples, `MissingExtraError`
    without llvmlite.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    >>> x = torch.randn(1, 3, 9, 9)
    >>> torch.allclose(compile(model, x)(x), model(x), atol=1e-5)
    True
    """
    if threads < 1:
        raise InputError(f"threads={threads}: the engine needs at least one. Give threads=1.")
    inputs = Inputs.of(example_inputs)
    from prunus.runtime.plain import network_of  # which is a network of this kind
    from prunus.runtime.shares import prefer_whole

    if inputs.kwargs:
        raise InputError(
            f"the engine takes inputs by position; {', '.join(inputs.kwargs)} came by keyword. Wrap the model in a "
            "module whose forward takes them in order."
        )
    first = next((a for a in inputs.args if isinstance(a, Tensor)), None)
    if first is None or first.dim() < 2 or not len(first):
        raise InputError(
            "the engine needs example_inputs whose first is a tensor of samples, e.g. torch.randn(1, 3, 224, 224)."
        )
    images = min(jit.lanes(), 1 << (len(first) - 1).bit_length())
    sized = [_to_batch(a, len(first), images) for a in inputs.args]
    graph = _owned(capture(model, Inputs(tuple(sized))), model)
    if gated.has_gates(graph):  # every picture has its own lists
        pictures = [[_part(a, len(first), i) for a in inputs.args] for i in range(len(first))]
        graph = graph if images == 1 else _owned(capture(model, Inputs(tuple(pictures[0]))), model)
        images = 1
        prefer_whole(graph, pictures)
    graph = mix(graph, images)
    if tune and jit.vectors():
        from prunus.runtime.tune import tune_

        graph = tune_(graph, images=images, threads=threads)
    return network_of(graph, images=images, threads=threads)


def _owned(graph: Graph, model: nn.Module) -> Graph:
    """A graph with weights of its own: later changes of the model change neither the kernels nor what is saved."""
    theirs = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    for node in graph.nodes.values():
        for name, tensor in node.tensors.items():
            if tensor.untyped_storage().data_ptr() in theirs:
                node.tensors[name] = tensor.detach().clone()
    return graph


def _to_batch(value: Any, before: int, after: int) -> Any:
    """A batch of another size, samples repeated."""
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != before or before == after:
        return value
    return value[torch.arange(after) % before].contiguous()


def _part(value: Any, samples: int, which: int) -> Any:
    """One sample of a batch."""
    return value[which : which + 1] if isinstance(value, Tensor) and value.dim() and len(value) == samples else value


class CompiledNetwork(nn.Module):
    """What `compile` gives: an `nn.Module` whose forward runs the kernels; it has no parameters.

    `report()` says what runs where; `size` is the bytes of activations, `weights` of weights.
    """

    def __init__(self, graph: Graph, *, images: int, threads: int) -> None:
        super().__init__()
        self.graph, self.images, self.threads = graph, images, threads
        here = jit.machine()
        self.lock = threading.Lock()
        self.workers = Workers(threads)
        builder = Builder(graph, lanes=here.lanes, registers=here.registers, images=images, threads=threads)
        self.steps, self.values = builder.steps, builder.values
        self.convolutions = {number: c.step for number, c in builder.convolutions.items()}
        self.inputs, self.outputs = graph.inputs(), graph.outputs
        self.arena = memory.buffer(builder.size)
        rows = [self.values[n].forms.get((None, 0.0)) for n in (*self.inputs, *self.outputs)]
        views = [
            None if b is None else self._view(b, self.values[n]) for n, b in zip((*self.inputs, *self.outputs), rows)
        ]
        self.given, self.made = views[: len(self.inputs)], views[len(self.inputs) :]
        self.kept: list[np.ndarray] = []
        self.segments = self._segments()
        self.size, self.weights = self.arena.size, sum(a.size for a in self.kept)

    def _segments(self) -> list[np.ndarray | Step]:
        """Kernels that follow each other as arguments of `emit_walk`; the steps of torch between them."""
        found: list[np.ndarray | Step] = []
        run: list[tuple[int, np.ndarray]] = []
        for step in (*self.steps, None):
            if step is not None and step.run is None:
                arguments = self._keep(memory.slots([self._resolve(a) for a in step.arguments]))
                step.arguments = ()  # they are copied: weights are kept once
                run.append((jit.address(step.text), arguments))
                continue
            if run:
                arguments, table = self.workers.table(run)
                self._keep(table)
                found.append(self._keep(arguments))
                run = []
            if step is not None:
                found.append(step)
        return found

    def _keep(self, array: np.ndarray) -> np.ndarray:
        self.kept.append(array)
        return array

    def _resolve(self, argument: Any) -> Any:
        """A buffer's address, an array's copy, or the number itself."""
        if isinstance(argument, At):
            return self.arena.ctypes.data + argument.buffer.offset + argument.offset
        if isinstance(argument, Buffer):
            return self.arena.ctypes.data + argument.offset
        if isinstance(argument, np.ndarray):
            return self._keep(memory.aligned(argument))
        return argument

    def _view(self, buffer: Buffer, value: Value) -> Tensor:
        """A buffer of rows as the tensor that torch would have."""
        floats = self.images * value.row
        flat = torch.from_numpy(self.arena[buffer.offset : buffer.offset + 4 * floats].view(np.float32))
        held = value.channels * value.area
        return flat.view(self.images, value.row)[:, :held].unflatten(1, value.node.shape[1:])

    def forward(self, *args: Tensor) -> Any:
        """The outputs, as the model's forward gives them, for a batch of any size."""
        self._check(args)
        many = len(args[0])
        parts = []
        with self.lock, torch.no_grad():
            for start in range(0, many, self.images):
                parts.append(self._piece([a[start : start + self.images] for a in args]))
        whole = [torch.cat([p[i] for p in parts])[:many] if many else p for i, p in enumerate(parts[0])]
        return tuple(whole) if self.graph.several else whole[0]

    def _check(self, args: tuple[Tensor, ...]) -> None:
        wanted = [self.graph.nodes[n].shape for n in self.inputs]
        given = [tuple(a.shape) if isinstance(a, Tensor) else () for a in args]
        fits = len(given) == len(wanted) and all(g[1:] == w[1:] and len(g) == len(w) for g, w in zip(given, wanted))
        if not fits or not given or any(g[0] != given[0][0] for g in given) or not given[0][0]:
            shapes = ", ".join(str(("n", *w[1:])).replace("'", "") for w in wanted)
            raise InputError(
                f"the network was compiled for inputs of shapes {shapes}; it was given "
                f"{', '.join(map(str, given)) or 'none'}. Compile it with example_inputs of the size that it will get."
            )
        for n, a in zip(self.inputs, args):
            kind = self.graph.nodes[n].numbers.get("dtype", "torch.float32")
            if str(a.dtype) != kind or a.device.type != "cpu" or a.layout != torch.strided:
                raise InputError(
                    f"the network was compiled for {kind} in the processor's memory; it was given {a.dtype} on "
                    f"{a.device} ({a.layout}). Convert the input: x.to('cpu', {kind})."
                )

    def _piece(self, args: list[Tensor]) -> list[Tensor]:
        objects: dict[int, Any] = {}
        for number, view, given in zip(self.inputs, self.given, args):
            if view is None:
                objects[number] = _to_batch(given, len(given), self.images)
                continue
            # by numpy: torch would copy with threads of its own, which then wait for more, busily, beside ours
            view.numpy()[: len(given)] = given.detach().numpy()
            view.numpy()[len(given) :] = 0
        for segment in self.segments:
            if isinstance(segment, Step):
                assert segment.run is not None
                segment.run(objects, self._view)
            else:
                self.workers.run(segment)
        made = [None if v is None else torch.from_numpy(v.numpy().copy()) for v in self.made]
        return [objects[n] if v is None else v for n, v in zip(self.outputs, made)]

    def report(self) -> dict[str, list[str]]:
        """The names of the operations by what runs them: ``sparse``, ``dense``, ``layout``, ..., and ``torch``."""
        found: dict[str, list[str]] = {}
        for step in self.steps:
            found.setdefault(step.kind, []).append(step.name)
        return found

    def extra_repr(self) -> str:
        """How many operations run how."""
        return ", ".join(f"{kind}: {n}" for kind, n in Counter(step.kind for step in self.steps).items())
