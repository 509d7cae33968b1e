"""Which networks can be followed, cut and masked at all?  Others are refused by their kind, with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunus.core.errors import InputError

QUANTISED = (
    *("torch.ao.quantization.fake_quantize", "torch.ao.quantization.observer", "torchao.quantization"),
    *("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torch.nn.intrinsic.quantized"),
)


def check_kind(model: nn.Module, *, changes: bool = True) -> None:
    """Raise `InputError` for a network that is compiled, wrapped, prepared for another purpose, or not initialised.

    Where the caller `changes` nothing, inference mode does no harm.

    >>> check_kind(nn.LazyLinear(3))
    Traceback (most recent call last):
    prunus.core.errors.InputError: parameters of lazy modules have no shape yet (first: 'weight'): ...
    """
    if changes and torch.is_inference_mode_enabled():
        raise InputError(
            "prunus was called under torch.inference_mode(), where tensors are made that can never be changed or "
            "trained: call it outside; torch.no_grad() does no harm."
        )
    for name, module in model.named_modules():
        said = _unfit(module)
        if said:
            where = f"'{name}' is" if name else "the network is"
            raise InputError(f"{where} {said}")
    tensors = dict(_tensors(model))
    lazy = [n for n, t in tensors.items() if nn.parameter.is_lazy(t)]
    if lazy:
        raise InputError(
            f"parameters of lazy modules have no shape yet (first: '{lazy[0]}'): run the model once on the example, "
            "model(*example_inputs), and then trace it."
        )
    fixed = [n for n, t in tensors.items() if t.is_inference()]
    if changes and fixed:
        raise InputError(
            "tensors of the network were made under torch.inference_mode() and cannot be changed (first: "
            f"'{fixed[0]}'): build the network, and load its weights, outside of it, or prune a copy.deepcopy(model) "
            "that is made outside."
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _unfit(module: nn.Module) -> str | None:
    """Why a module cannot be followed, and what to do instead."""
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "compiled by TorchScript, which cannot be followed: prune the Python network that it was made from, and "
            "script or trace report.model."
        )
    if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # which raises
        return (
            "an exported program, whose sizes are fixed: prune the network that it was made from, and export "
            "report.model."
        )
    if any(c.__module__.startswith(QUANTISED) for c in type(module).__mro__):
        return (
            "quantised, or prepared for quantisation: weights are packed, or observers count channels, and would not "
            "follow. Prune the network first, and quantise report.model."
        )
    return None
