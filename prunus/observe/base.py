"""Statistics keyed to the groups, and the pass over the data that collects them without leaving a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.core import Groups, InputError, Inputs, Registry
from prunus.core.callbacks import a_loss, cross_entropy, each, forward, own
from prunus.core.checks import a_text, check_arguments
from prunus.core.effective import Follow
from prunus.core.kinds import check_kind
from prunus.core.progress import progress
from prunus.core.replay import After, Before, Replay
from prunus.core.running import undisturbed, without_checkpoints
from prunus.core.undo import all_or_nothing
from prunus.core.ways import call_of
from prunus.observe.average import Handles, parameters_of
from prunus.observe.layers import Order, Weights, follow_of
from prunus.observe.order import order_of

Loss = Callable[[Any, Any], Tensor]
Watch = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class Stats:
    """What was seen: kind of statistic -> parameter name -> tensor of the parameter's shape.

    Statistics of units are in `groups`: kind -> group id -> what the collector says, for the numbers of `units`.  Void
    after a cut: `check` raises when the shapes are no longer those of the groups.

    Attributes:
        kinds: statistics of parameters; {} where there are none but those of units.

    >>> Stats({"grad": {"fc.weight": torch.ones(2, 3)}}).of("fc.weight")["grad"].shape
    torch.Size([2, 3])
    """

    kinds: Mapping[str, Mapping[str, Tensor]]
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frozen = {kind: MappingProxyType(dict(tensors)) for kind, tensors in self.kinds.items()}
        object.__setattr__(self, "kinds", MappingProxyType(frozen))

    def of(self, name: str) -> dict[str, Tensor]:
        """Every statistic of the parameter `name`, by kind."""
        check_arguments(locals())
        return {kind: tensors[name] for kind, tensors in self.kinds.items() if name in tensors}

    @property
    def names(self) -> frozenset[str]:
        """The kinds of statistics that there are."""
        return frozenset(self.kinds) | frozenset(self.groups)

    def of_group(self, id: str) -> dict[str, Any]:
        """Every statistic of the units of the group `id`, by kind."""
        check_arguments(locals(), id=a_text)
        return {kind: values[id] for kind, values in self.groups.items() if id in values}

    def check(self, groups: Groups) -> None:
        """Raise `InputError` unless every statistic has the shape of its parameter in `groups`."""
        check_arguments(locals())
        now = {group.id: group.units for group in groups}
        changed = [id for id, n in self.units.items() if now.get(id, n) != n]
        if changed:
            raise InputError(
                f"statistics were collected on {self.units[changed[0]]} units of group '{changed[0]}', which has "
                f"{now[changed[0]]} now: statistics are void after a cut. Trace and collect again."
            )
        for s in (s for group in groups for s in group.slices):
            for kind, tensor in self.of(s.name).items():
                if tensor.shape != s.tensor.shape:
                    raise InputError(
                        f"the statistic '{kind}' of '{s.name}' has shape {tuple(tensor.shape)}, the parameter "
                        f"{tuple(s.tensor.shape)}: statistics are void after a cut. Trace and collect again."
                    )


@dataclass(eq=False)
class Seen:
    """What a collector is given: the network, its groups, the batches and the loss, batch by batch.

    Attributes:
        model: the network, in evaluation mode.
        loader: the batches, gone through once a pass.
        loss: of an output and a batch, one a sample or the mean; None: the loss in the output, or cross-entropy.
        orders: by call of the network, how the rows of its linear layers lie; filled when two samples were seen.
        follow: finds weights that the last forward computed from parameters; None where there are none.
        call: which of the calls of the network the batch at hand is of, from 0.
        done: by call, the samples of the batches that a pass has come to, the one that runs among them.
        one_call: the statistic that cannot be of batches of several calls; "" for any other.
    """

    model: nn.Module
    groups: Groups
    loader: Iterable[Any]
    loss: Loss | None
    orders: dict[int, Order] = field(default_factory=dict)
    follow: Follow | None = None
    call: int = 0
    done: Counter[int] = field(default_factory=Counter)
    one_call: str = ""

    @cached_property
    def samples(self) -> Counter[int]:
        """How many samples there are of each call; to be asked for before a pass, as it goes through all batches."""
        if isinstance(self.loader, Iterator):
            self.loader = list(each(self.loader))  # it is gone through again
        found: Counter[int] = Counter()
        for number, batch in enumerate(each(self.loader)):
            inputs = inputs_of(batch)
            found[self.call_of(inputs, number)] += inputs.batch
        return found

    def call_of(self, inputs: Inputs, number: int) -> int:
        """The call of the network that the inputs of the batch of this number are of."""
        return 0 if self.groups is None else call_of(self.model, self.groups, inputs, f"batch {number} of the data")

    @property
    def example(self) -> Inputs:
        """What the network was traced with, of the call at hand."""
        return self.groups.inputs.calls[self.call]

    def weights(self) -> Weights:
        """Finds layers, which know how their rows lie; to be asked for inside ``watch()``."""
        return Weights(self.model, self.orders.get(self.call), self.follow)

    def replay(self, *, before: Before | None = None, after: After | None = None) -> Replay:
        """Tells `before` and `after` of the operators of the call at hand; to be made inside ``watch()``."""
        return Replay(self.groups.operators, self.groups.of_calls((self.call,)), before=before, after=after)

    def run(self, inputs: Inputs, watch: Watch = nullcontext) -> Any:
        """The output of the network for `inputs`, run under ``watch()``."""
        self.follow = follow_of(self.model, self.groups)
        with self.follow or nullcontext(), watch():
            return inputs(self.model)

    def handles(self, names: Iterable[str]) -> Handles:
        """For each of `names`, the tensors of the last forward that are it: a parameter, or computed of some."""
        parameters = parameters_of(self.groups)
        met = self.follow.handles if self.follow is not None else {}
        computed = self.groups.effective.numbers if self.groups.effective is not None else {}
        return {name: met.get(name, []) if name in computed else [parameters[name]] for name in names}

    def forwards(self, watch: Watch = nullcontext) -> Iterator[tuple[Any, Any, int]]:
        """Per batch, the output of the network (run under ``watch()``), the batch and the number of samples.

        Raises: `InputError` when there is no batch, one holds a number that is not finite, or one fits none of the
            calls that the network was traced with.
        """
        place = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        seen = 0
        self.done.clear()
        for batch in each(progress(self.loader, "observing")):
            batch = tree_map_only(Tensor, lambda t: t.to(place), batch)
            check_finite(batch, seen)
            inputs = inputs_of(batch)
            self.call = self.call_of(inputs, seen)
            self.done[self.call] += inputs.batch
            if self.one_call and len(self.done) > 1:
                raise InputError(
                    f"the statistic '{self.one_call}' follows the network from end to end, and these batches are of "
                    f"{len(self.done)} ways in which it is called: give batches of one of them."
                )
            if self.groups and self.call not in self.orders and inputs.batch > 1:
                pair = next(pieces(batch, 2))
                first, second = map(inputs_of, pieces(pair, 1))
                self.orders[self.call] = order_of(self.model, self.groups, inputs_of(pair), (first, second))
            out = forward(self.model, inputs, f"batch {seen} of the data", call=partial(self.run, inputs, watch))
            seen += 1
            yield out, batch, inputs.batch
        if not seen:
            raise InputError("the loader holds no batch, so nothing can be observed. Give data= at least one batch.")

    def batches(self, watch: Watch = nullcontext) -> Iterator[tuple[Tensor, int]]:
        """Per batch, the mean loss (a scalar with its graph; run under ``watch()``) and the number of samples."""
        for out, batch, size in self.forwards(watch):
            yield self.value(out, batch, size).mean(), size

    def value(self, out: Any, batch: Any, size: int) -> Tensor:
        """The loss of the output `out` for a `batch` of `size`: one a sample, or the mean; `InputError` if neither."""
        return a_loss(own(self.loss or default_loss, "loss=")(out, batch), size)


# a collector declares of="group" (its statistic is of units), labels=True (it reads the loss), data=False (no batches),
# one_call=True (batches of a network that is called in several ways must all be of one of them)
collectors: Registry[Callable[[Seen], Mapping[str, Any]]] = Registry("statistic")


def collect(
    model: nn.Module,
    groups: Groups,
    loader: Iterable[Any],
    needs: Iterable[str],
    loss: Loss | None = None,
) -> Stats:
    """Collect the statistics `needs` (``"grad"``, ``"gate"`` ...) of the groups over all batches of `loader`.

    The network is left as it was: gradients, training mode, ``requires_grad``, random state and buffers.

    Args:
        loader: batches: ``(x, y)``, a mapping of keyword inputs, or what forward takes; a tuple `x` is positional, and
            it may be `Inputs`.  Of a network that was traced with several calls each batch is of the call that it fits
            by the names of forward's arguments, their number and dimensions, words and truth values.
        needs: kinds of statistics, e.g. `prunus.criteria.needs("taylor")`.
        loss: ``(model output, batch) -> per-sample or scalar loss``; a scalar is taken for the mean over the batch.
            Default: ``output.loss``, else cross-entropy on ``(x, y)``.

    Raises: `InputError` when the loader is empty, no default loss fits, or a batch fits none of the calls that the
        network was traced with, or several; `UnknownNameError` for an unknown kind.
    """
    check_arguments(locals())
    check_kind(model)
    unreal = [s.name for g in groups for s in g.slices if s.tensor.is_complex()]
    if unreal:
        raise InputError(
            f"statistics of complex weights are not known (first: '{unreal[0]}'): use a criterion of weights alone, "
            "e.g. 'l2', or leave their groups out, groups.select([...])."
        )
    wanted = [collectors[need] for need in sorted(set(needs))]
    with all_or_nothing(model), untouched(model), without_checkpoints():
        seen = Seen(model, groups.seen(), loader, loss)
        found = {}
        for entry in wanted:
            seen.one_call = entry.name if entry.declares.get("one_call") else ""
            found[entry.name] = entry.call(seen)
    units = {entry.name for entry in wanted if entry.declares.get("of") == "group"}
    return Stats(
        {kind: values for kind, values in found.items() if kind not in units},
        {kind: values for kind, values in found.items() if kind in units},
        {group.id: group.units for group in groups},
    )


def check_finite(batch: Any, number: int) -> None:
    """Raise `InputError` when a batch of data holds NaN or infinity."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise InputError(f"batch {number} of the data holds NaN or infinity: clean it, or leave it out.")


def default_loss(output: Any, batch: Any) -> Tensor:
    """``output.loss`` if there is one, else the cross-entropy of ``(x, y)`` batches, one number a sample."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    if isinstance(output, Tensor) and isinstance(batch, (tuple, list)) and len(batch) == 2:
        loss = cross_entropy(output, batch[1])
        return loss.flatten(1).mean(1) if loss.dim() > 1 else loss
    raise InputError(
        f"no default loss fits an output of type {type(output).__name__} and a batch of type {type(batch).__name__}: "
        "it is output.loss, else cross-entropy on (x, y). Give labels, or loss=, a function (output, batch) -> loss; "
        "criteria without labels: 'obs', 'obd-mc', 'lasso', 'apoz', 'entropy', and those of weights alone, e.g. 'l2'."
    )


def pieces(batch: Any, samples: int) -> Iterator[Any]:
    """A batch in pieces of so many consecutive samples, the last perhaps of fewer.

    >>> [x.tolist() for x, y in pieces((torch.arange(3), "y"), 2)]
    [[0, 1], [2]]
    """
    count = inputs_of(batch).batch

    def cut(start: int) -> Any:
        part = slice(start, start + samples)
        return tree_map_only(Tensor, lambda t: t[part] if t.dim() and t.shape[0] == count else t, batch)

    yield from map(cut, range(0, count, samples))


def inputs_of(batch: Any) -> Inputs:
    """The inputs in a batch: ``x`` of ``(x, y)``, else the whole batch."""
    return Inputs.of(batch[0] if isinstance(batch, (tuple, list)) else batch)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode, every floating-point parameter differentiable, gradients on; everything as before on leaving."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        with undisturbed(model), torch.enable_grad():
            for p, _ in flags:
                p.requires_grad_(p.is_floating_point())
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
