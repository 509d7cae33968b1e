"""From a model to a network: whether its samples may be run in pieces, and whether it gives what torch gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.core.errors import TraceError
from prunus.core.inputs import Inputs
from prunus.core.running import undisturbed
from prunus.runtime import gated, jit
from prunus.runtime.bases import mix
from prunus.runtime.capture import capture
from prunus.runtime.engine import CompiledNetwork, to_batch
from prunus.runtime.graph import Graph
from prunus.runtime.plain import network_of
from prunus.runtime.shares import prefer_whole

CLOSE = 1e-3  # relative; beyond rounding, and much less than what one sample does to another
COARSE = 0.05  # of 16 bits
MOST_OTHER = 0.5  # of whole numbers


def apart_or_whole(model: nn.Module, inputs: Inputs, *, threads: int, tune: bool) -> CompiledNetwork:
    """The model compiled for any batch, in pieces, or, where its samples know of each other, for the example's shapes.

    Samples that are run alone have to give what torch makes of them beside each other, in another number than the
    network was exported with; where they do not, it is compiled as a whole, and compared on the example.  Raises
    `TraceError` where that fails, too.
    """
    first = inputs.tensors[0]
    images = min(jit.lanes(), 1 << (len(first) - 1).bit_length())
    shared = [i for i, t in enumerate(inputs.tensors) if t.dim() == 0 or len(t) != len(first)]
    sized = inputs.map(lambda t: to_batch(t, len(first), images))
    graph = _owned(capture(model, sized, images, shared), model)
    if gated.has_gates(graph):  # every picture has its own lists
        pictures = [_part(inputs, len(first), i) for i in range(len(first))]
        graph = graph if images == 1 else _owned(capture(model, pictures[0], 1, shared), model)
        images = 1
        prefer_whole(graph, [p.tensors for p in pictures])
        return _network(graph, images, threads, tune)
    if all(graph.nodes[n].shape[:1] == (images,) for n in graph.outputs):
        network = _network(graph, images, threads, tune)
        many = 3 if images == 2 else 2
        kernels = not any(node.kind == "torch" for node in graph.nodes.values())  # they mix no samples: one is enough
        if kernels and not graph.counted:
            return network
        if not _differs(model, network, _others(inputs, len(first), many), [many - 1] if kernels else range(many)):
            return network
    images = len(first) if len(first) in (1 << i for i in range(jit.lanes().bit_length())) else 1
    graph = _owned(capture(model, inputs, images), model)
    graph.apart = False
    network = _network(graph, images, threads, tune)
    why = _differs(model, network, inputs)
    if why:
        raise TraceError(
            f"{type(model).__name__} gives something else in the engine than in torch: {why}. Does forward depend on "
            "randomness, or on what it was called with before? Let the network run in torch."
        )
    return network


def _network(graph: Graph, images: int, threads: int, tune: bool) -> CompiledNetwork:
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


def _part(inputs: Inputs, samples: int, which: int) -> Inputs:
    """One sample of a batch."""
    return inputs.map(lambda t: t[which : which + 1] if t.dim() and len(t) == samples else t)


def _others(inputs: Inputs, samples: int, many: int) -> Inputs:
    """Inputs like the example, of so many samples that all differ."""
    random = torch.Generator().manual_seed(0)

    def change(t: Tensor) -> Tensor:
        if t.dim() == 0 or len(t) != samples:
            return t
        made = to_batch(t, samples, max(many, samples))[:many].clone()
        for i in range(1, many):
            one = made[i].flatten().roll(i).view_as(made[i])
            if one.is_floating_point():  # what is zero or infinite stays so: it is a mask
                one = one * (0.5 + torch.rand(one.shape, generator=random)).to(one.dtype)
                one = torch.randn(one.shape, generator=random).to(one.dtype) if not one.any() else one
            made[i] = one
        return made

    return inputs.map(change)


def _differs(model: nn.Module, network: CompiledNetwork, inputs: Inputs, alone: Sequence[int] = ()) -> str:
    """How the engine's outputs differ from torch's, in words; empty where they do not.

    `alone`: the samples that the engine is given one by one, where torch is given all; else it is given all at once.
    """
    try:
        with undisturbed(model):
            wanted = _tensors(inputs(model))
        with undisturbed(model):  # the same random numbers
            some = [_part(inputs, inputs.batch, i) for i in alone] or [inputs]
            made = [_tensors(network(*one.args)) for one in some]
        given = [torch.cat(one) for one in zip(*made)] if alone else made[0]
        wanted = [want[list(alone)] for want in wanted] if alone else wanted
    except (IndexError, RuntimeError, TypeError, ValueError) as failed:
        return f"{type(failed).__name__}: {str(failed)[:200]}"
    if len(given) != len(wanted):
        return f"{len(given)} tensors, not {len(wanted)}"
    for got, want in zip(given, wanted):
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{tuple(got.shape)} of {got.dtype}, not {tuple(want.shape)} of {want.dtype}"
        error = distance(got, want)
        if not error <= _tolerance(want.dtype):
            return f"off by {error:.1e}"
    return ""


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _tolerance(dtype: torch.dtype) -> float:
    if not (dtype.is_floating_point or dtype.is_complex):
        return MOST_OTHER
    return CLOSE if torch.finfo(dtype).bits > 16 else COARSE


def distance(got: Tensor, want: Tensor) -> float:
    """``max |got - want| / max |want|`` of what is finite, infinity where that is not the same; of whole numbers, the
    share that differs (the largest of two almost equal ones may be another).
    """
    if not want.numel():
        return 0.0
    if not (want.is_floating_point() or want.is_complex()):
        return float((got != want).double().mean())
    finite = want.isfinite()
    same = torch.where(finite, 0, want.nan_to_num()) == torch.where(finite, 0, got.nan_to_num())
    if not torch.equal(finite, got.isfinite()) or not same.all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float((got[finite] - want[finite]).abs().max() / want[finite].abs().max().clamp(min=1e-6))
