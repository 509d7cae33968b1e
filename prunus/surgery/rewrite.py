"""The rewritten network: the recorded forward with sliced parameters and corrected sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunus.core import Groups, InputError, Inputs, Plan, TraceError
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.checks import check_arguments
from prunus.core.held import held, hold_weight_
from prunus.core.process import same_random
from prunus.core.running import with_batch
from prunus.surgery.capture import Captured, Cuts, capture
from prunus.surgery.graph import Graph, Program, any_batch
from prunus.surgery.interpret import Runner, store
from prunus.surgery.memory import memory_format, plan_of, replace_
from prunus.surgery.rewritten import RewrittenModule
from prunus.surgery.symbolic import equal, merge, replace_graph
from prunus.surgery.tidy import tidy
from prunus.tracing.apply import narrow
from prunus.version import __version__

SAMPLES = (2, 3, 5)  # three batch sizes tell what is on a line; with one sample, code may take other ways


def rewrite(model: nn.Module, groups: Groups, plan: Plan) -> RewrittenModule:
    """A new network without what `plan` removes, made of the operators that `model` calls; `model` is not changed.

    For networks whose own code cannot follow a cut.  Forward is recorded in evaluation and in training mode, each at
    several batch sizes; integers that follow a cut, or the batch size, are told by the labels, and by comparison.

    Args:
        model: the traced model.
        groups: what `trace` (or a recording without trial cuts) found in it.
        plan: the kept units.

    Returns: a `RewrittenModule` with tensors of its own, in the mode of `model`, or in evaluation mode when training
        mode could not be recorded.  It remembers the cumulative plan.

    Raises: `InputError` when the plan is of another network or empties a group; `TraceError` when forward cannot be
        recorded or a recorded operator cannot follow the cut.

    >>> import prunus
    >>> class Fixed(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
    ...     def forward(self, x):
    ...         return self.b(self.a(x).view(-1, 8))
    >>> from prunus.tracing.build import build
    >>> from prunus.tracing.recording import record
    >>> net, x = Fixed(), prunus.Inputs.of(torch.zeros(2, 3))
    >>> groups = build(record(net, x), x).groups
    >>> small = rewrite(net, groups, prunus.Plan({"a": prunus.GroupPlan(8, (0, 3, 5))}))
    >>> small.b.weight.shape, small(torch.zeros(4, 3)).shape
    (torch.Size([2, 3]), torch.Size([4, 2]))
    """
    check_arguments(locals())
    if groups.inputs.more:
        raise TraceError(
            f"a rewritten network is one recorded call, and these groups are of {1 + len(groups.inputs.more)}: trace "
            "the network with the inputs of the call that should be recorded."
        )
    keep = groups.mask(plan)
    for group in groups:
        if not keep[group.offset : group.offset + group.units].any():
            raise InputError(f"the plan keeps no unit of group '{group.id}'; keep at least one.")
    full = replace(groups.plan(keep), edits=(), version=__version__, memory_format=memory_format(model))
    before = plan_of(model)
    whole = full if before is None else before.then(full)
    found, unit = _recorded(model, groups.inputs, full.tensors, training=False)
    program = Program(found.graph, order=found.order, anchor=found.anchor, unit=unit, notes=found.notes)
    rewritten = RewrittenModule(program, *_tensors(model, full.tensors, found.constants))
    _check_shapes(rewritten, program.eval, groups.inputs)
    try:
        training, train_unit = _recorded(model, groups.inputs, full.tensors, training=True)
        if train_unit != unit or any_batch(training.graph) != program.any_batch:
            raise TraceError(f"training mode takes other batch sizes than evaluation mode: {training.notes[-1:]}.")
        graph, constants = _joined(training, found.constants)
        program = replace(program, train=graph, notes=tuple(sorted({*found.notes, *training.notes})))
        both = RewrittenModule(program, *_tensors(model, full.tensors, constants))
        _check_shapes(both, graph, groups.inputs)
        rewritten = both
    except TraceError as error:
        rewritten.program = replace(rewritten.program, why_no_train=str(error))
    replace_(rewritten, whole)
    for name, mask in held(model).items():
        hold_weight_(rewritten, name, narrow(mask, full.tensors.get(name)))
    if rewritten.program.train is not None:
        rewritten.train(model.training)
    return rewritten


def _recorded(model: nn.Module, inputs: Inputs, cuts: Cuts, training: bool) -> tuple[Captured, int]:
    """The graph for any number of samples, else for any multiple of the example's, else for the example's alone."""
    reason = None
    for unit in dict.fromkeys((1, inputs.batch)):
        try:
            each = [capture(model, with_batch(inputs, n * unit), cuts, training) for n in SAMPLES]
            found = merge(each, SAMPLES)
            return replace_graph(found, tidy(found.graph)), unit
        except TraceError as error:
            reason = reason or error
    try:
        found = capture(model, inputs.map(torch.clone), cuts, training)
    except TraceError as error:
        raise reason or error from None
    found.notes = (*found.notes, f"it takes {inputs.batch} samples only, as the example had: {reason}")
    return replace_graph(found, tidy(found.graph)), 1


def _joined(training: Captured, constants: dict[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """The training graph with its constants under names of their own, unless evaluation mode has an equal one."""
    constants, names = dict(constants), {}
    for name, tensor in training.constants.items():
        same = [n for n, t in constants.items() if equal(t, tensor)]
        free = f"{name.rpartition('.')[0]}.train_{name.rpartition('.')[2]}"
        names[name] = same[0] if same else free
        constants[names[name]] = tensor
    state = {number: names.get(name, name) for number, name in training.graph.state.items()}
    return replace(training.graph, state=state), constants


def _tensors(model: nn.Module, cuts: Cuts, constants: dict[str, Tensor]) -> tuple[dict[str, Tensor], frozenset[str]]:
    """New parameters and buffers, narrowed, by all their names; and which of them are not in the ``state_dict``."""
    made: dict[int, Tensor] = {}
    out: dict[str, Tensor] = {}
    first = {id(t): name for name, t in reversed(list(_named(model)))}
    for name, tensor in _named(model):
        if id(tensor) not in made:
            made[id(tensor)] = _cut(tensor, cuts, first[id(tensor)])
        out[name] = made[id(tensor)]
    transient = {
        f"{path}.{leaf}" if path else leaf
        for path, module in model.named_modules(remove_duplicate=False)
        for leaf in module._non_persistent_buffers_set
    }
    for name, tensor in constants.items():
        out[name] = tensor.detach().clone()
    return out, frozenset(transient | set(constants))


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _cut(tensor: Tensor, cuts: Cuts, name: str) -> Tensor:
    """A new tensor, with its gradient, narrowed."""
    new = narrow(tensor.detach(), cuts.get(name))
    new = new.clone() if name not in cuts else new
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            grad = narrow(tensor.grad, cuts.get(name))
            new.grad = grad.clone() if name not in cuts else grad
    return new


def _check_shapes(module: RewrittenModule, graph: Graph, inputs: Inputs) -> None:
    """Run every step of a graph once and compare its shapes with those that the labels foretell.

    Raises: `TraceError` naming the first operator that does not give them.
    """
    unit = module.program.unit
    given = with_batch(inputs, SAMPLES[0] * unit) if any_batch(graph) else inputs.map(torch.clone)
    runner = Runner(graph, module.program.order, unit)
    written = any(runner.quiet)  # to parameters or buffers
    state = [(t, t.detach().clone()) for t in (*(module.parameters() if written else ()), *module.buffers())]
    with torch.no_grad(), same_random():
        env, n = runner.begin(given.args, given.kwargs, module)
        for step, ready in zip(graph.steps, runner.ready(n, module._anchor())):
            where = f"{step.op} in '{step.module}'" if step.module else step.op
            try:
                store(env, step.outs, ready(env))
            except OUT_OF_MEMORY:
                raise
            except Exception as error:  # operators raise anything on sizes that do not fit
                raise TraceError(f"{where} cannot follow the cut: {type(error).__name__}: {error}.") from error
            for number, shape in zip(step.outs, step.shapes):
                if number is not None and tuple(env[number].shape) != shape:
                    raise TraceError(
                        f"{where} gives {tuple(env[number].shape)} after the cut, {shape} was foretold: one of its "
                        "arguments cannot follow the cut."
                    )
            for number in ready.free:
                env[number] = None
        for tensor, value in state:
            tensor.copy_(value)
