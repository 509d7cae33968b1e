"""One recorded forward of a model: what may run, what must not change, and what the example does not visit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Inputs, TraceError
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.process import same_random
from prunus.core.running import has_values
from prunus.tracing import rules, unvisited
from prunus.tracing.apply import Before, empty_caches, evaluating, named_tensors, run, unchanged
from prunus.tracing.effective import spread_roles
from prunus.tracing.tracer import Tracer


def check_repeats(model: nn.Module, inputs: Inputs, tracer: Tracer) -> None:
    """Raise `TraceError` when two runs in evaluation mode differ: no cut could be proven."""
    if not all(has_values(t) for t in [*tracer.tensors.values(), *inputs.tensors]):
        return
    tensors = {name: t.detach() for name, t in named_tensors(model).items()}
    with same_random():
        first, second = run(model, tensors, inputs), run(model, tensors, inputs)
    if len(first) != len(second) or not all(_same(a, b) for a, b in zip(first, second)):
        told = ", ".join(f"{op} in '{module}'" if module else op for op, module in tracer.random.items())
        raise TraceError(
            f"the model's output is random in evaluation mode: two runs on the example differ. It draws by {told}. "
            "Make it deterministic under model.eval(), or give the noise as an input."
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN where the other is NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def record(model: nn.Module, inputs: Inputs, *, keep_arguments: bool = False) -> Tracer:
    """Run forward under the tracer, fix what reaches an output and what the example does not visit."""
    tracer = Tracer(model, rules.find, keep_arguments=keep_arguments)
    given = inputs.map(torch.clone)  # forward may change them
    written = [(name, p, _version(p), p.data_ptr()) for name, p in model.named_parameters() if has_values(p)]
    with unchanged(model) as before, evaluating(model):
        emptied = empty_caches(model)
        try:
            with tracer.recording():
                out = given.each(lambda one: _called(tracer, model, one))
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # the model's own code may raise anything
            shapes = [s["shape"] for s in inputs.signature()]
            told = str(error).strip().removesuffix(".")
            hint = "Give example_inputs that `model(*example_inputs)` accepts."
            if not all(has_values(t) for t in [*tracer.tensors.values(), *inputs.tensors]):
                hint = (
                    "Tensors on the meta device, and fake ones, have no values: parameters and example_inputs must all "
                    "be such, and a forward whose Python reads values needs real ones."
                )
            raise TraceError(
                f"the model's forward failed on the example inputs {shapes}: {type(error).__name__}: {told}. {hint}"
            ) from error
        changed = [n for n, p, version, at in written if (_version(p), p.data_ptr()) != (version, at)]
        if moving := _moving(model, inputs, changed):
            raise TraceError(
                f"forward changes the network's own parameter '{moving}' in evaluation mode, anew in every run: no two "
                "runs are of one network, and no cut could be proven. Change it outside of forward, or in training "
                "mode alone."
            )
        tracer.caches = {place for place, holder in emptied.items() if holder}
        stashed = _stashed(tracer, model, inputs, given, before)
    for tensor in inputs.outputs_in(out):
        tracer.outputs.append(tracer.number(tensor))
        _fix_output(tracer, tensor, "it is an output of the model")
    for tensor in stashed:
        _fix_output(tracer, tensor, "forward keeps it in an attribute, where a caller may read it")
    unvisited.settle(tracer, model, inputs)
    spread_roles(tracer)
    return tracer


def _called(tracer: Tracer, model: nn.Module, inputs: Inputs) -> Any:
    tracer.starts.append(len(tracer.calls))
    return model(*inputs.args, **inputs.kwargs)


def _moving(model: nn.Module, inputs: Inputs, changed: list[str]) -> str | None:
    """The first of the parameters that one run changed which another changes again; a clamp or a norm is reached."""
    first = {n: p.detach().clone() for n, p in model.named_parameters() if n in changed}
    if first:
        inputs.map(torch.clone)(model)
    pairs = ((n, p, first[n]) for n, p in model.named_parameters() if n in first)
    return next((n for n, p, was in pairs if not torch.allclose(p, was, rtol=1e-4, atol=0)), None)


def _fix_output(tracer: Tracer, tensor: Tensor, why: str) -> None:
    if tensor in tracer.pending:
        tracer.fix(*tracer.pending[tensor])
    for dim in tracer.of(tensor):
        tracer.fix(dim, why)


def _stashed(tracer: Tracer, model: nn.Module, inputs: Inputs, given: Inputs, before: Before) -> list[Tensor]:
    """What forward has computed from its inputs and put into attributes, and does so every time.

    What it finds there again is a cache, and what is made of parameters alone a weight.
    """
    from_inputs = {tracer.number(t) for t in given.tensors}
    for call in tracer.calls:
        if from_inputs.intersection(call.reads):
            from_inputs.update(call.writes)
    first = [t for of in before.stashed() for t in of]
    found = [t for t in first if t in tracer.numbers and tracer.numbers[t] in from_inputs]
    found = [t for t in found if any(dim.labels is not None for dim in tracer.of(t))]
    if not found:
        return []
    old = {id(t) for t in first}
    inputs.map(torch.clone)(model)
    again = [of for of in before.stashed() if old.issuperset(map(id, of))]  # nothing came anew: a cache
    cached = {id(t) for of in again for t in of}
    return [t for t in found if id(t) not in cached]


def _version(parameter: Tensor) -> int:
    """How often a parameter was written to; made in inference mode, it does not say."""
    return 0 if parameter.is_inference() else parameter._version
