"""The compiled network: called like the model it was made from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.core.checks import check_arguments
from prunus.core.errors import InputError
from prunus.core.forked import Lock
from prunus.core.inputs import Inputs
from prunus.runtime import jit, memory
from prunus.runtime.build import Builder
from prunus.runtime.forms import At, Buffer, Step, Value
from prunus.runtime.graph import Graph
from prunus.runtime.structure import built
from prunus.runtime.walk import Workers, some_threads


def compile(model: nn.Module, example_inputs: Any, *, threads: int = 1, tune: bool = False) -> CompiledNetwork:
    """`model` as kernels made for this processor, in which weights that are zero take no time.

    The network is exported, batch norms are folded, bounds and sums are fused into convolutions, and every layer is
    run sparse or dense, whichever takes fewer cycles.  What has no kernel is run by torch; `report` lists it, and
    `prunus.runtime.profile` says what it costs.  A processor without vectors gets torch for all, and a warning.
    Batches of any size are run, in pieces of as many samples as `example_inputs` has (a power of two, at most a
    vector's floats); a network with gates (`prunus.dynamic`) sample by sample, with the channels that are on for it.
    Where samples know of each other, or outputs have another first axis, inputs have to be of the example's shapes.
    Weights are copied: compile again after changing them.

    `example_inputs`: what forward takes, tensors alone.  `threads`: of the engine.
    `tune`: run a few variants of every layer and take the fastest, where else a model of the processor decides; takes
    seconds, and `prunus.runtime.save` keeps what was found.

    Raises `TraceError` when the model cannot be exported, or does not give in the engine what it gives in torch,
    `InputError` for inputs without samples, `MissingExtraError` without llvmlite.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    >>> x = torch.randn(1, 3, 9, 9)
    >>> torch.allclose(compile(model, x)(x), model(x), atol=1e-5)
    True
    """
    check_arguments(locals(), threads=some_threads)
    inputs = _takes(Inputs.of(example_inputs))
    from prunus.runtime.batches import apart_or_whole  # which makes networks of this kind

    return apart_or_whole(model, inputs, threads=threads, tune=tune)


def _takes(inputs: Inputs) -> Inputs:
    """What forward takes, if the engine can give it that; raises `InputError` where not."""
    if inputs.kwargs:
        raise InputError(
            f"the engine takes inputs by position; {', '.join(inputs.kwargs)} came by keyword. Wrap the model in a "
            "module whose forward takes them in order."
        )
    other = [leaf for leaf in tree_leaves(inputs.args) if leaf is not None and not isinstance(leaf, Tensor)]
    if other:
        raise InputError(
            f"the engine takes tensors; {str(other[0])[:40]} is a {type(other[0]).__name__}. Wrap the model "
            "in a module that sets it."
        )
    first = next(iter(inputs.tensors), None)
    if first is None or first.dim() < 2 or not first.numel():
        raise InputError(
            "the engine needs example_inputs whose first is a tensor of samples, e.g. torch.randn(1, 3, 224, 224)."
        )
    return inputs


def to_batch(value: Tensor, before: int, after: int) -> Tensor:
    """A batch of another size, samples repeated."""
    if value.dim() == 0 or len(value) != before or before == after:
        return value
    return value[torch.arange(after) % before].contiguous()


class CompiledNetwork(nn.Module):
    """What `compile` gives: an `nn.Module` whose forward runs the kernels; it has no parameters.

    `report()` says what runs where; `size` is the bytes of activations, `weights` of weights.

    Args:
        graph: the network as data, with weights.
        images: how many samples run at a time, a power of two; more are run one batch after the other.
        threads: of the processor that a call uses, 1 to 256.
    """

    def __init__(self, graph: Graph, *, images: int, threads: int) -> None:
        super().__init__()
        self.graph, self.images, self.threads = graph, images, threads
        here = jit.machine()
        self.lock = Lock()
        self.workers = Workers(threads)
        builder = Builder(graph, lanes=here.lanes, registers=here.registers, images=images, threads=threads)
        self.steps, self.values = builder.steps, builder.values
        self.convolutions = {number: c.step for number, c in builder.convolutions.items()}
        self.inputs, self.outputs, self.constants = graph.inputs(), graph.outputs, graph.constants()
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

    def forward(self, *args: Any) -> Any:
        """The outputs, as the model's forward gives them, for a batch of any size."""
        given = [leaf for leaf in tree_leaves(args) if leaf is not None]
        many = self._check(given)
        with self.lock, torch.no_grad():
            if self.graph.apart:
                parts = [self._piece(self._some(given, start)) for start in range(0, many, self.images)]
                whole = [torch.cat(part)[:many] for part in zip(*parts)]
            else:
                whole = [output.clone() for output in self._piece(given)]  # none of it the caller's, or a constant
        return built(self.graph.structure, whole)

    def _some(self, args: list[Tensor], start: int) -> list[Tensor]:
        """As many samples as are run together, from one on; inputs that all have in common stay."""
        common = [self.graph.nodes[n].numbers.get("shared", False) for n in self.inputs]
        return [a if shared else a[start : start + self.images] for a, shared in zip(args, common)]

    def _check(self, args: list[Any]) -> int:
        """How many samples are given, or one for a network that takes all at once; raises `InputError`."""
        nodes, apart = [self.graph.nodes[n] for n in self.inputs], self.graph.apart
        free = [apart and not node.numbers.get("shared", False) for node in nodes]
        given = [tuple(a.shape) if isinstance(a, Tensor) else () for a in args]
        fits = len(given) == len(nodes) and all(
            len(g) == len(node.shape) and g[any_many:] == node.shape[any_many:]
            for g, node, any_many in zip(given, nodes, free)
        )
        many = {g[0] for g, any_many in zip(given, free) if any_many} if fits else set()
        if not fits or len(many) != apart or 0 in many:
            shapes = ", ".join(
                str(("n", *node.shape[1:]) if any_many else node.shape).replace("'", "")
                for node, any_many in zip(nodes, free)
            )
            raise InputError(
                f"the network was compiled for inputs of shapes {shapes}; it was given "
                f"{', '.join(map(str, given)) or 'none'}. Compile it with example_inputs of the size that it will get."
            )
        for node, a in zip(nodes, args):
            kind = node.numbers.get("dtype", "torch.float32")
            if str(a.dtype) != kind or a.device.type != "cpu" or a.layout != torch.strided:
                raise InputError(
                    f"the network was compiled for {kind} in the processor's memory; it was given {a.dtype} on "
                    f"{a.device} ({a.layout}). Convert the input: x.to('cpu', {kind})."
                )
        return many.pop() if apart else 1

    def _piece(self, args: list[Tensor]) -> list[Tensor]:
        nodes = self.graph.nodes
        objects: dict[int, Any] = {n: nodes[n].tensors["value"] for n in self.constants}
        for number, view, given in zip(self.inputs, self.given, args):
            if view is None:
                apart = self.graph.apart and not nodes[number].numbers.get("shared", False)
                objects[number] = to_batch(given, len(given), self.images) if apart else given
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
