"""Running a network once, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from prunus.core.errors import InputError, PrunusError
from prunus.core.inputs import Inputs


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every submodule and the random state are put back afterwards.

    Fused attention is off, as it is while tracing: it is other operators than those that forward calls with gradients.

    >>> model = nn.Dropout()
    >>> with undisturbed(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = {module: module.training for module in model.modules()}
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, training in modes.items():
            module.training = training


@contextmanager
def given(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """While this is open, the parameters and buffers of these names are other tensors.

    Wherever a tensor is used, under all of its names, and in modules that the network holds in several places, where
    `torch.func.functional_call` would leave the other tensor behind.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> twice = nn.Sequential(layer, layer)
    >>> with given(twice, {"0.weight": torch.ones(1, 2, dtype=torch.float64)}):
    ...     twice[1].weight.dtype
    torch.float64
    >>> twice[1].weight.dtype, isinstance(twice[0].weight, nn.Parameter)
    (torch.float32, True)
    """
    names = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    others = {id(tensor): tensors[name] for name, tensor in names if name in tensors}
    stores: list[Any] = [store for m in model.modules() for store in (m._parameters, m._buffers)]
    places = [(s, leaf, t) for s in stores for leaf, t in s.items() if t is not None and id(t) in others]
    try:
        for store, leaf, tensor in places:
            store[leaf] = others[id(tensor)]
        yield
    finally:
        for store, leaf, tensor in places:
            store[leaf] = tensor


def has_values(tensor: Tensor) -> bool:
    """Whether there is memory behind a tensor: not on the meta device, not fake.

    >>> has_values(torch.zeros(2)), has_values(torch.zeros(2, device="meta"))
    (True, False)
    """
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)


def check_runs(model: nn.Module, inputs: Inputs) -> None:
    """Run `model` once on `inputs`; raises `InputError` that names their shapes when its forward does not take them.

    >>> check_runs(nn.Linear(3, 2), Inputs.of(torch.zeros(1, 4)))
    Traceback (most recent call last):
    prunus.core.errors.InputError: the forward of Linear does not take inputs of ...
    """
    try:
        with undisturbed(model):
            inputs(model)
    except PrunusError:
        raise
    except Exception as error:  # whatever the forward of a user's model raises
        shapes = " + ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in inputs.tensors)
        reason = (str(error).strip() or "no message").split("\n")[0]
        raise InputError(
            f"the forward of {type(model).__name__} does not take inputs of {shapes or 'no tensors'} "
            f"({type(error).__name__}: {reason}). Give the shape and type of what it takes, "
            "e.g. --input 1,3,224,224 or --input 1,16:int64<1000 (input: in a recipe)."
        ) from error


def with_batch(inputs: Inputs, batch: int) -> Inputs:
    """The inputs with `batch` samples: tensors whose first dimension is the batch are repeated or cut.

    >>> with_batch(Inputs.of(torch.arange(2.)), 5).tensors
    [tensor([0., 1., 0., 1., 0.])]
    """
    old = inputs.batch
    rows = torch.arange(batch) % max(old, 1)

    def resize(t: Tensor) -> Tensor:
        if t.dim() == 0 or t.shape[0] != old:
            return t
        channels_last = t.dim() == 4 and not t.is_contiguous()
        out = t[rows.to(t.device)]
        return out.contiguous(memory_format=torch.channels_last) if channels_last else out.contiguous()

    return inputs.map(resize)
