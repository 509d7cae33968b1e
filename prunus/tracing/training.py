"""What forward does in training mode only: a second recording says what heads that evaluation skips read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.core import Inputs
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.process import same_random
from prunus.core.running import with_batch
from prunus.tracing.apply import PlainRecurrence, unchanged
from prunus.tracing.labels import Atoms
from prunus.tracing.symbols import Computed, Size
from prunus.tracing.tracer import Fact, Tracer


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Training mode without gradients; modes, buffers and the random state are put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with unchanged(model), torch.no_grad(), same_random(), PlainRecurrence():
            model.train()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def follow_in_training(tracer: Tracer, model: nn.Module, inputs: Inputs, names: Iterable[str]) -> set[str]:
    """Cut the modules `names`, which only training visits, with what they read there; returns those where it works.

    What is theirs alone is fixed: no proof would see it.  A module whose code asks for sizes is not followed.
    """
    second = _recorded(tracer, model, inputs) or _recorded(tracer, model, with_batch(inputs, 2))
    if second is None:
        return set()
    seen = {name for call in second.calls for name in call.parameters}
    asks = {
        second.calls[e.call].module
        for e in second.equations
        if 0 <= e.call < len(second.calls) and (_of_size(e.left) or _of_size(e.right))
    }
    followed = set()
    for name in names:
        parts = {tracer.names[t] for t in model.get_submodule(name).parameters()}
        if parts <= seen and not any(m == name or m.startswith(f"{name}.") for m in asks):
            followed.add(name)
    _transfer(tracer, second, [n for n in tracer.initial if any(n.startswith(f"{f}.") for f in followed)])
    return followed


def _recorded(tracer: Tracer, model: nn.Module, inputs: Inputs) -> Tracer | None:
    """A recording in training mode; None where training asks for more: targets, or more than one sample."""
    second = Tracer(model, tracer.rules)
    try:
        with training(model), second.recording():
            inputs.map(torch.clone)(model)
    except OUT_OF_MEMORY:
        raise
    except Exception:  # the model's own code may raise anything
        return None
    return second


def _of_size(side: Any) -> bool:
    """Whether a side of an equation has to do with the size of something labelled."""
    if isinstance(side, Computed):
        return any(_of_size(arg) for arg in side.args)
    return isinstance(side, (Size, Fact))


def _transfer(tracer: Tracer, second: Tracer, ours: list[str]) -> None:
    """Tell the labels of the first recording what the second one found of the tensors `ours`."""
    owner = np.full(second.labels.count, -1)  # atom of the second recording -> one of the first, of the other tensors
    places = {
        (name, d): second.labels.resolve(dim.labels)
        for name, dims in second.initial.items()
        for d, dim in enumerate(dims)
        if dim.labels is not None
    }
    first = {(name, d): dim.labels for name, dims in tracer.initial.items() for d, dim in enumerate(dims)}
    mine = [place for place in places if place[0] in ours]
    others = [place for place in places if place[0] not in ours]
    for place in others:
        rows, labels = places[place], first[place]
        assert labels is not None
        if rows.shape[1] < 2:
            lost = (rows < 0).all(1)
            tracer.labels.fix(labels[lost], "it is fixed in training")
            if rows.shape[1]:
                owner[rows[~lost, 0]] = labels[~lost, 0]
    for place in mine:
        rows, labels = places[place], first[place]
        assert labels is not None
        tracer.roles.setdefault(place, (second.roles.get(place, ("other", 0))[0], len(tracer.calls)))
        source = owner[rows[:, 0]] if rows.shape[1] == 1 else np.full(len(rows), -1)
        source = np.where(rows[:, 0] < 0, -1, source) if rows.shape[1] == 1 else source
        if (source >= 0).all():
            tracer.labels.unify(labels, source[:, None])
            continue
        tracer.labels.fix(labels, "the example does not visit it")
        _fix_shared(tracer, rows, [(places[o], first[o]) for o in others])


def _fix_shared(tracer: Tracer, rows: Atoms, others: list[tuple[Atoms, Atoms | None]]) -> None:
    """Fix what shares an atom with `rows`: the two do not fit index by index."""
    atoms = np.unique(rows[rows >= 0])
    for other, labels in others:
        hit = np.isin(other, atoms).any(1) if atoms.size else np.zeros(len(other), bool)
        if hit.any() and labels is not None:
            tracer.labels.fix(labels[hit], "what the example does not visit reads it")
