r"""Which modules are residual blocks, :math:`x \to x + f(x)`, and so can be removed whole?

A module that is called once, with an input and an output of one shape, whose output is its input, plus what is computed
from it: read off the recorded operators.  Norms and rectifiers on the way of the sum are allowed (post-norm
transformers, :math:`x \to \mathrm{norm}(x + f(x))`, and residual networks): without the block its input skips them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.core import Dropped, Inputs
from prunus.core.checks import check_arguments
from prunus.core.kinds import check_kind
from prunus.core.running import removed
from prunus.core.undo import all_or_nothing
from prunus.tracing.calls import Call
from prunus.tracing.recording import record
from prunus.tracing.tracer import Tracer

SAME = {"view", "_unsafe_view", "alias", "clone", "contiguous", "detach", "_to_copy", "dropout", "native_dropout"}
BENT = ("layer_norm", "batch_norm", "group_norm", "rms_norm", "relu", "hardtanh")  # as parts of an operator's name


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block.

    Attributes:
        name, kind: the module's qualified name and its class.
        params, macs: what it costs (multiply-adds per sample); `share`: of the network's multiply-adds, from 0 to 1.
        exact: whether nothing but sums lies between its input and its output.
        dropped: what a plan says once it is gone.
        axis: the dimension of the channels in its input and output.
        span: numbers of its first operator, and of the one behind its last.
        reads, writes: numbers of its input and of its output among the tensors that flow between operators.
        sums: numbers of the adding operators on the way from input to output, and which operand (0, 1) is on it.
    """

    name: str
    kind: str
    params: int
    macs: int
    share: float
    exact: bool
    dropped: Dropped
    axis: int
    span: tuple[int, int]
    reads: int
    writes: int
    sums: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Residual:
    """The residual blocks of a network in order of execution, the operators of its forward, and its costs."""

    blocks: tuple[Block, ...]
    calls: tuple[Call, ...]
    costs: dict[str, int]


Seen = tuple[Any, Any, Any]  # positional inputs, keyword inputs and output of a module


def residual_blocks(model: nn.Module, example_inputs: Any) -> Residual:
    """Find the residual blocks of `model`: the largest modules that are one block, and no chain of several.

    Raises: `TraceError` when forward fails on the example.
    """
    check_kind(model)
    inputs, seen = Inputs.of(example_inputs), {}  # type: ignore[var-annotated]

    def watch(name: str) -> Any:
        return lambda module, args, kwargs, out: seen.setdefault(name, []).append((args, kwargs, out))

    named = [(name, module) for name, module in model.named_modules() if name]
    with all_or_nothing(model), removed(m.register_forward_hook(watch(n), with_kwargs=True) for n, m in named):
        tracer = record(model, inputs)
    total = sum(call.macs for call in tracer.calls)
    modules = dict(model.named_modules())
    candidates = []
    for name, calls in seen.items():
        # where modules stay unvisited, the network ran once more, elsewhere
        calls = [c for c in calls if any(t in tracer.numbers for t in tree_leaves(c[:2]) if isinstance(t, Tensor))]
        block = _block(tracer, name, modules[name], calls[0], total, inputs.batch) if len(calls) == 1 else None
        candidates += [block] if block else []
    chosen: list[Block] = []
    for block in sorted(candidates, key=lambda b: b.name.count(".")):  # outer ones first
        inside = [b for b in candidates if _under(b, block)]
        chain = any(not _under(a, b) and not _under(b, a) for a, b in combinations(inside, 2))
        if not chain and not any(_under(block, b) for b in chosen):
            chosen.append(block)
    params = sum(p.numel() for p in model.parameters())
    costs = {"params": params, "macs": round(total / max(inputs.batch, 1))}
    return Residual(tuple(sorted(chosen, key=lambda b: b.span)), tuple(tracer.calls), costs)


def blocks(model: nn.Module, example_inputs: Any) -> tuple[Block, ...]:
    """The residual blocks of `model` in order of execution, with what they cost: what `drop_blocks_` may remove.

    Args:
        example_inputs: what forward takes: a tensor, a tuple of positional inputs, or `Inputs`.

    Raises: `TraceError` when forward fails on the example.

    >>> import prunus, torch
    >>> net = prunus.zoo.resnet20()
    >>> [(b.name, b.kind, round(b.share, 3)) for b in blocks(net, torch.randn(1, 3, 32, 32))][:2]
    [('layer1.0', 'BasicBlock', 0.116), ('layer1.1', 'BasicBlock', 0.116)]
    """
    check_arguments(locals())
    return residual_blocks(model, example_inputs).blocks


def _under(a: Block, b: Block) -> bool:
    return a.name.startswith(f"{b.name}.")


def _block(tracer: Tracer, name: str, module: nn.Module, seen: Seen, total: float, batch: int) -> Block | None:
    """The block that a module is, called as `seen`; None when it is none."""
    args, kwargs, out = seen
    given = "" if args else next((key for key, value in kwargs.items() if isinstance(value, Tensor)), "")
    y = out[0] if isinstance(out, tuple) and type(out) is tuple and out else out
    x = args[0] if args else kwargs.get(given)
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.dtype == y.dtype):
        return None
    calls = tracer.calls
    places = [i for i, call in enumerate(calls) if f"{call.module}.".startswith(f"{name}.")]
    if not places or places[-1] - places[0] + 1 != len(places):
        return None
    start, end = places[0], places[-1] + 1
    reads, writes = tracer.number(x), tracer.number(y)
    made = {w for call in calls[start:end] for w in call.writes}
    rest = out[1:] if isinstance(out, tuple) else ()
    used = {r for call in calls[end:] for r in call.reads} | set(tracer.outputs)
    if not all(t is None or (isinstance(t, Tensor) and tracer.number(t) in made) for t in rest):
        return None
    if (made - {writes}) & used:  # something else of it is read elsewhere
        return None
    way = _way(calls[start:end], reads, writes)
    if not way:
        return None
    dims = [i for i, dim in enumerate(tracer.of(y)) if dim.labels is not None]
    macs = sum(call.macs for call in calls[start:end])
    return Block(
        name,
        type(module).__name__,
        sum(p.numel() for p in module.parameters()),
        round(macs / max(batch, 1)),
        macs / total if total else 0.0,
        all(i >= 0 for i, _ in way),
        Dropped(name, given, len(out) if isinstance(out, tuple) else 0),
        dims[0] if len(dims) == 1 else 1 if y.dim() > 3 else y.dim() - 1,
        (start, end),
        reads,
        writes,
        tuple((start + i, operand) for i, operand in way if i >= 0),
    )


BEND = (-1, 0)  # on the way, something that is no sum


def _way(calls: Sequence[Call], source: int, target: int) -> list[tuple[int, int]]:
    """The sums from `source` to `target` and the operand that is on the way, and `BEND`s; empty when there is none."""
    tainted = {source}
    for call in calls:
        if tainted & set(call.reads):
            tainted |= set(call.writes)

    def back(number: int, before: int) -> list[tuple[int, int]] | None:
        at = next((i for i in reversed(range(before)) if number in calls[i].writes), None)
        if at is None:
            return [] if number == source else None
        call = calls[at]
        name = call.name.rstrip("_")
        if name == "add" and len(call.reads) == 2 and not call.parameters:
            for operand in (0, 1):
                found = back(call.reads[operand], at) if call.reads[1 - operand] in tainted else None
                if found is not None:
                    return [(at, operand), *found]
            return None
        if name in SAME:
            return back(call.reads[0], at)
        if any(word in name for word in BENT) and "backward" not in name:
            found = back(call.reads[0], at)
            return None if found is None else [BEND, *found]
        return None

    found = back(target, len(calls)) or []
    return found if any(i >= 0 for i, _ in found) else []
