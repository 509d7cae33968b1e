"""A graph made fit to run again and again, on any device, and to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunus.core import TraceError
from prunus.core.allowed import VIEWS, find, listed
from prunus.surgery.graph import Graph, Step, mapped, refs
from prunus.surgery.operators import changed, functional, is_random, name_of, several_views, viewed
from prunus.surgery.portable import portable
from prunus.surgery.rewritten import CONSTANTS
from prunus.tracing.tracer import Ref


def tidy(graph: Graph) -> Graph:
    """The same function: constants are never written to, nothing is computed in vain, every operator is one that a file
    may hold, and autograd accepts what is written in place.

    Raises: `TraceError` for an operator that no file may hold.
    """
    graph = _live(_without_moves(graph))
    graph = _fresh_constants(graph)
    shapes = {n: shape for step in graph.steps for n, shape in zip(step.outs, step.shapes)}
    steps = [portable(step, used, shapes) for step, used in zip(graph.steps, _used(graph))]
    graph = replace(graph, steps=tuple(steps))
    graph = _without_writes_that_autograd_refuses(graph)
    for step in graph.steps:
        if not listed(find(step.op)):
            raise TraceError(
                f"forward calls the operator {step.op} in '{step.module or 'the model itself'}', which is none that a "
                "rewritten network may hold (prunus.core.allowed lists them)."
            )
    return _renumbered(graph)


def _without_moves(graph: Graph) -> Graph:
    """What changes a tensor's shape in place (``t_``, ``squeeze_`` ...) becomes a view of its own."""
    steps, rename = [], dict[Any, int]()
    free = max([n for step in graph.steps for n in step.outs if n is not None], default=-1) + 1
    free = max([free, *(n + 1 for n in graph.state), *(g.number + 1 for g in graph.given)])
    for step in graph.steps:
        if step.op == "aten.as_strided_.default" and all(n == 1 for n in step.args[1][2:]):
            continue  # average pools to one value restate the strides of what they made
        new = functional(find(step.op)) if step.op.split(".")[1].removesuffix("_") in VIEWS else None
        steps.append(_renamed(step, rename))
        if new is not None:
            rename[step.outs[0]], free = free, free + 1
            steps[-1] = replace(steps[-1], op=name_of(new), outs=(rename[step.outs[0]],))
    return replace(graph, steps=tuple(steps), outputs=_renamed_value(graph.outputs, rename))


def _roots(graph: Graph) -> dict[int, int]:
    """For every tensor the one whose memory it shares."""
    root = {n: n for n in [*refs(graph.inputs), *graph.state]}
    for step in graph.steps:
        at = viewed(find(step.op))
        shared = refs(step.args[at]) if at is not None and at < len(step.args) else []
        for number in step.outs:
            if number is not None:
                root.setdefault(number, root[shared[0]] if shared else number)
    return root


def _written(step: Step) -> list[int]:
    """The tensors that a step writes to."""
    return refs([step.args[i] for i in changed(find(step.op)) if i < len(step.args)]) + refs(
        [step.kwargs[a.name] for a in _out_arguments(step)]
    )


def _out_arguments(step: Step) -> list[Any]:
    arguments = find(step.op)._schema.arguments
    return [a for a in arguments if a.alias_info is not None and a.alias_info.is_write and a.name in step.kwargs]


def _live(graph: Graph) -> Graph:
    """Without steps that nothing needs: what reaches an output, an input, a parameter or buffer, or random state."""
    root = _roots(graph)
    read = set(refs(graph.outputs))
    memory = {root[n] for n in [*read, *refs(graph.inputs), *graph.state]}
    kept = []
    for step in reversed(graph.steps):
        random = is_random(find(step.op)) and "attention" not in step.op  # attention draws nothing by itself
        if random or read & set(step.outs) or memory & {root[n] for n in _written(step)}:
            kept.append(step)
            used = refs([step.args, step.kwargs])
            read |= set(used)
            memory |= {root[n] for n in used}
    state = {n: name for n, name in graph.state.items() if n in read}
    return replace(graph, steps=tuple(kept[::-1]), state=state)


def _fresh_constants(graph: Graph) -> Graph:
    """Constants that forward writes to are copied first, as the original made them anew."""
    root = _roots(graph)
    written = {root[n] for step in graph.steps for n in _written(step)}
    stale = [n for n in sorted(written) if graph.state.get(n, "").startswith(CONSTANTS + ".")]
    state, copies, free = dict(graph.state), [], max(root, default=-1) + 1
    for number in stale:
        state[free] = state.pop(number)
        copies.append(Step("aten.clone.default", (Ref(free),), {}, (number,)))
        free += 1
    return replace(graph, state=state, steps=(*copies, *graph.steps))


def _used(graph: Graph) -> list[list[bool]]:
    """Per step and output, whether anything reads it."""
    read = {n for step in graph.steps for n in refs([step.args, step.kwargs])} | set(refs(graph.outputs))
    return [[n in read for n in step.outs] for step in graph.steps]


def _without_writes_that_autograd_refuses(graph: Graph) -> Graph:
    """Writes to one of several views become new tensors, where nothing else reads that memory afterwards."""
    root, family = _roots(graph), _families(graph)
    steps, rename = list(graph.steps), dict[Any, int]()
    free = max(root, default=-1) + 1
    for i, step in enumerate(steps):
        step = steps[i] = _renamed(step, rename)
        written = _written(step)
        target = graph.steps[i].args[0].number if written and isinstance(graph.steps[i].args[0], Ref) else None
        new = functional(find(step.op)) if target in family and len(written) == 1 and len(step.outs) == 1 else None
        if new is None or _read_elsewhere(graph, i, target, root, family):
            continue
        steps[i] = replace(step, op=name_of(new), outs=(free,))
        rename[target], free = free, free + 1
    return replace(graph, steps=tuple(steps), outputs=_renamed_value(graph.outputs, rename))


def _families(graph: Graph) -> dict[int, tuple[int, int]]:
    """Tensors that are, or are views of, one of several views: the step that made those, and which one it is."""
    family: dict[int, tuple[int, int]] = {}
    for i, step in enumerate(graph.steps):
        func = find(step.op)
        at = viewed(func)
        base = refs(step.args[at])[0] if at is not None and at < len(step.args) and refs(step.args[at]) else None
        for k, number in enumerate(step.outs):
            if number is None or number == base:
                continue
            if several_views(func):
                family[number] = (i, k)
            elif base in family:
                family[number] = family[base]
    return family


def _read_elsewhere(graph: Graph, at: int, target: Any, root: Any, family: Any) -> bool:
    """Whether another tensor over the same memory, other than its disjoint siblings, is read after step `at`."""
    later = {n for step in graph.steps[at + 1 :] for n in refs([step.args, step.kwargs])} | set(refs(graph.outputs))
    same = {n for n in later if n != target and root.get(n) == root.get(target)}
    siblings = {n for n in same if n in family and family[n][0] == family[target][0] and family[n] != family[target]}
    made_later = {n for step in graph.steps[at + 1 :] for n in step.outs if n is not None and target in refs(step.args)}
    return bool(same - siblings - made_later)


def _renamed_value(value: Any, rename: Mapping[Any, int]) -> Any:
    return mapped(value, lambda v: Ref(rename.get(v.number, v.number)) if isinstance(v, Ref) else v)


def _renamed(step: Step, rename: Mapping[Any, int]) -> Step:
    """The step with tensors under their present numbers."""
    if not rename:
        return step
    return replace(
        step,
        args=_renamed_value(step.args, rename),
        kwargs={k: _renamed_value(v, rename) for k, v in step.kwargs.items()},
        outs=tuple(None if n is None else rename.get(n, n) for n in step.outs),
    )


def _renumbered(graph: Graph) -> Graph:
    """Tensors numbered in the order they appear, without gaps; outputs that nothing reads are not kept."""
    read = {n for step in graph.steps for n in refs([step.args, step.kwargs])} | set(refs(graph.outputs))
    numbers: dict[Any, int] = {}
    for n in [*refs(graph.inputs), *graph.state]:
        numbers.setdefault(n, len(numbers))
    steps = []
    for step in graph.steps:
        outs = tuple(n if n in read or n in numbers else None for n in step.outs)
        for made in outs:
            if made is not None:
                numbers.setdefault(made, len(numbers))
        steps.append(_renamed(replace(step, outs=outs), numbers))
    return Graph(
        _renamed_value(graph.inputs, numbers),
        tuple(replace(g, number=numbers[g.number]) for g in graph.given),
        {numbers[n]: name for n, name in graph.state.items()},
        tuple(steps),
        _renamed_value(graph.outputs, numbers),
    )
