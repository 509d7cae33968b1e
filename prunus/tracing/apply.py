"""A plan tried on a model without changing it: narrowed tensors, integer attributes, and whether forward agrees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunus.core import Edit, Groups, Inputs, Operator, TensorPlan, VerificationError
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.nested import tensors_in
from prunus.core.operators import SILENT, alike, plain_name
from prunus.core.places import set_place
from prunus.core.process import plain_attention, without_onednn
from prunus.core.running import has_values, laid_out_as, with_tensors, without_autocast
from prunus.core.undo import HOLDERS
from prunus.tracing.calls import numbers_of
from prunus.tracing.decisions import decided


def narrow(tensor: Tensor, plan: TensorPlan | None) -> Tensor:
    """The kept indices of every cut dimension, in the tensor's own memory format."""
    if plan is None:
        return tensor
    if not has_values(tensor):  # a fake tensor takes no real index
        return tensor.new_empty(plan.left)
    out = tensor
    for dim, kept in sorted(plan.kept.items(), key=lambda cut: len(cut[1]) / plan.shape[cut[0]]):  # the least first
        out = out.index_select(dim, torch.tensor(kept, dtype=torch.long, device=tensor.device))
    return laid_out_as(out, tensor)


def sized(tensor: Tensor, plan: TensorPlan | None) -> Tensor:
    """A tensor of the shape that `narrow` gives, with other numbers where they are real: its first rows are cheap."""
    if plan is None or not tensor.is_floating_point() or not tensor.is_contiguous() or not has_values(tensor):
        return narrow(tensor, plan)
    first = tensor[tuple(slice(n) for n in plan.left)]
    return laid_out_as(first.clone(memory_format=torch.contiguous_format), tensor)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, tied ones under their first name only."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@contextmanager
def edited(model: nn.Module, edits: Iterable[Edit]) -> Iterator[None]:
    """While this is open, the integer attributes have their new values."""
    edits = list(edits)
    try:
        for e in edits:
            set_place(model.get_submodule(e.module), e.attribute, e.new)
        yield
    finally:
        for e in edits:
            set_place(model.get_submodule(e.module), e.attribute, e.old)


class PlainRecurrence(TorchFunctionMode):
    """Lets LSTMs run as plain matrix products, as everywhere else but on the CPU in single precision.

    There oneDNN would run a layer as one operator, which tells nothing and reads past the end of operands that do not
    fit its sizes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.lstm:
            return func(*args, **(kwargs or {}))
        with without_onednn():
            return func(*args, **(kwargs or {}))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and with plain kernels; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), without_autocast(), plain_attention(), PlainRecurrence():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Before:
    """The attributes of every module, and what containers among them held, before a forward."""

    attributes: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]
    held: list[tuple[Any, Any]]

    def stashed(self) -> list[list[Tensor]]:
        """Per public attribute of a module, the tensors that forward has put there, where a caller may read them."""
        held = {id(holder): copy for holder, copy in self.held}
        new: list[list[Any]] = []
        for module, state, _ in self.attributes:
            for name, value in vars(module).items():
                if not name.startswith("_") and value is not state.get(name):
                    new.append([value])
                elif not name.startswith("_") and type(value) in HOLDERS:
                    old = {id(v) for v in _values(held.get(id(value), ()))}
                    new.append([v for v in _values(value) if id(v) not in old or type(v) in HOLDERS])
        return [tensors_in(values) for values in new if values]


def _values(holder: Any) -> Iterable[Any]:
    return holder.values() if isinstance(holder, dict) else holder


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Before]:
    """What forward caches in attributes, or counts in buffers, is put back."""
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    held = [(v, v.copy()) for _, state, _ in attributes for v in state.values() if type(v) in HOLDERS]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield Before(attributes, held)
    finally:
        for module, state, buffers in attributes:
            vars(module).clear()
            vars(module).update(state)
            module._buffers.clear()
            module._buffers.update(buffers)
        for holder, content in held:
            holder.clear()
            holder.extend(content) if isinstance(holder, list) else holder.update(content)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


def empty_caches(model: nn.Module) -> dict[tuple[str, str], dict[Any, Any]]:
    """Empty every dictionary of tensors that a module holds; those that forward fills again are caches."""
    emptied = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            ours = type(value) is dict and not attribute.startswith("_")
            if ours and all(isinstance(v, Tensor) for v in value.values()):
                value.clear()
                emptied[name, attribute] = value
    return emptied


def run(
    model: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs, watch: AbstractContextManager[Any] | None = None
) -> list[Tensor]:
    """The output tensors of `model` in evaluation mode with other parameters and buffers, watched by a mode."""
    inputs = inputs.map(torch.clone)  # forward may change them in place
    asks = {name for name, t in named_tensors(model).items() if t.requires_grad}  # torch calls other operators for them
    tensors = {n: t.detach().requires_grad_(n in asks and t.is_floating_point()) for n, t in tensors.items()}
    with unchanged(model), evaluating(model):
        empty_caches(model)
        with watch or nullcontext():
            out = with_tensors(model, tensors, inputs)
    return inputs.outputs_in(out)


def with_scale(name: str, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of an operator with attention's default scale, ``1 / sqrt(head size)``, said: it outlives a cut."""
    if name.startswith("_scaled_dot_product") and kwargs.get("scale") is None:
        return {**kwargs, "scale": args[0].shape[-1] ** -0.5}
    return kwargs


Numbers = dict[tuple[int, Any], float]  # call and argument -> value


@dataclass(frozen=True)
class Misfit:
    """The first operator that did not do what the labels foretold, and the paths of the integers that were wrong."""

    call: int
    wrong: tuple[tuple[int, ...], ...]
    message: str
    raised: bool = False  # by the operator itself


class _Found(Exception):
    pass


class Checker(TorchDispatchMode):
    """Compares the shapes of every operator with those a plan foretells, and notes the numbers it is called with."""

    def __init__(self, groups: Groups, keep: Tensor) -> None:
        super().__init__()
        self.alive = groups.alive(keep)
        self.counts = [int(rows.sum()) for rows in self.alive]
        self.groups = groups
        self.steps = [i for i, op in enumerate(groups.operators) if op.name not in SILENT]
        self.at = 0
        self.misfit: Misfit | None = None
        self.numbers: Numbers = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = plain_name(func)
        if name in SILENT:
            return func(*args, **(kwargs or {}))
        if self.at >= len(self.steps) or alike(self.groups.operators[self.steps[self.at]].name) != alike(name):
            self._fail(args, f"forward called {name} where it had not before")
        self.numbers.update(
            ((self.steps[self.at], place), value) for place, value in numbers_of(name, func._schema, args, kwargs or {})
        )
        try:
            out = decided(self.groups.operators[self.steps[self.at]].decided, func, args, kwargs or {})
        except (RuntimeError, IndexError, ValueError) as error:
            self._fail(args, f"{name}: {error}", raised=True)
        if out is NotImplemented:
            return out
        op = self.groups.operators[self.steps[self.at]]
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        expected = [self._expected(s, axes) for s, axes in zip(op.shapes, op.axes)]
        if shapes != expected:
            self._fail(args, f"{name} gave {shapes}, expected {expected}")
        if any(self._wrong(args)):  # of a right shape: other rows, say, or groups of another size
            self._fail(args, f"{name} was called with the integers of the whole network")
        self.at += 1
        return out

    def _expected(self, shape: tuple[int, ...], axes: tuple[int | None, ...]) -> tuple[int, ...]:
        return tuple(n if axis is None else self.counts[axis] for n, axis in zip(shape, axes))

    def _fail(self, args: Any, message: str, raised: bool = False) -> None:
        call = self.steps[min(self.at, len(self.steps) - 1)]
        wrong, constant = self._wrong(args)
        # an integer that did not move at all explains those that moved wrongly beside it
        self.misfit = Misfit(call, tuple(constant or wrong), message, raised)
        raise _Found

    def _wrong(self, args: Any) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The integers of the present call that are not as foretold: those that moved, those that did not."""
        wrong: list[tuple[int, ...]] = []
        constant: list[tuple[int, ...]] = []
        op = self.groups.operators[self.steps[min(self.at, len(self.steps) - 1)]]
        for fact in op.facts:
            value = args
            try:
                for step in fact.path:
                    value = value[step]
            except (IndexError, TypeError):
                continue
            expected = self.groups.kept_rows(self.alive, fact.axis, fact.rows)
            whole = fact.rows == (0, len(self.alive[fact.axis]))  # a slice that ends behind the end ends there
            if value not in (expected, -1) and not (whole and op.name == "slice" and value > expected):
                (constant if value == fact.value else wrong).append(fact.path)
        return wrong, constant


class Decided(TorchDispatchMode):
    """Makes the decisions of the traced forward again: the first sort's in the first sort, and so on.

    Other operators may differ: at a size of one torch multiplies instead of summing products.
    """

    def __init__(self, operators: tuple[Operator, ...]) -> None:
        super().__init__()
        deciding = {alike(op.name) for op in operators if op.decided is not None}
        self.steps: dict[str, list[Any]] = {
            name: [op.decided for op in operators if alike(op.name) == name] for name in deciding
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, plain_name(func)
        if alike(name) not in self.steps:
            return func(*args, **kwargs)
        if not self.steps[alike(name)]:
            raise VerificationError(f"forward called {name} where it had not before: nothing can be proven.")
        return decided(self.steps[alike(name)].pop(0), func, args, kwargs)


def trial(model: nn.Module, groups: Groups, keep: Tensor, found: Numbers | None = None) -> Misfit | None:
    """Run the narrowed network without changing the model; None when every operator's shape is as foretold.

    The numbers that its operators are called with are put into `found`.
    """
    plan = groups.plan(keep)
    tensors = {name: sized(t.detach(), plan.tensors.get(name)) for name, t in named_tensors(model).items()}
    checker = Checker(groups, keep)
    try:
        with edited(model, plan.edits):
            run(model, tensors, groups.inputs, checker)
            if found is not None:
                found.update(checker.numbers)
    except _Found:
        return checker.misfit
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # the model's own code may raise anything when its sizes no longer fit
        call = checker.steps[min(checker.at, len(checker.steps) - 1)]
        return Misfit(call, (), f"{type(error).__name__}: {error}")
    return None
