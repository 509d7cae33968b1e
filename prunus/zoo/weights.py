"""Reading a file of weights into a model, or saying why they do not fit."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import FileError
from prunus.core.checks import check_arguments

PLAN_KEY = "prunus"  #: the metadata key by which a file of `prunus.save` is known
_CONTAINERS = ("state_dict", "model", "model_state_dict", "net")
_SHOWN = 4


def load_weights_(model: nn.Module, path: str | Path) -> None:
    """Fill `model` with the weights of a .safetensors, .pt or .pth file, cast to the model's own types.

    A state dict may lie under ``state_dict`` or ``model`` and carry the ``module.`` of a parallel wrapper; BN's batch
    counters may be missing.  Raises: `FileError` for a file that is missing, damaged, written by `prunus.save`, or
    whose names and shapes are not the model's; the model is then as it was.
    """
    check_arguments(locals())
    path = Path(path)
    given = read_weights(path)
    misfit = _misfit(model.state_dict(), given)
    if misfit:
        raise FileError(f"the weights in {path} do not fit {type(model).__name__}: {misfit}. Nothing was loaded.")
    model.load_state_dict(given, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt or .pth file by name; no code of the file is run."""
    if not path.is_file():
        raise FileError(f"there is no file of weights at {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in {".pt", ".pth"}:
        return _read_torch(path)
    raise FileError(f"{path}: weights are read from .safetensors, .pt and .pth files, not from '{path.suffix}'.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if PLAN_KEY in (file.metadata() or {}):
                raise FileError(
                    f"{path} was written by prunus.save and holds a network that was cut: load it with "
                    "prunus.load(path, factory), or build the model without weights and use prunus.load_(model, path)."
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is not a complete safetensors file ({error}); fetch or write it again.") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    if path.stat().st_size == 0:
        raise FileError(f"{path} is empty; fetch or write the weights again.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise FileError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}): it is damaged, or holds more than "
            "tensors. prunus runs no code from a file: save the state dict alone, best as safetensors."
        ) from None
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a .pt file held: itself, or under one of the usual names."""
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise FileError(f"{path} holds no state dict (tensors by name); save model.state_dict() and give that file.")
    prefix = "module." if all(str(k).startswith("module.") for k in content) else ""
    return {str(k).removeprefix(prefix): v for k, v in content.items()}


def _misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What keeps `given` from being `expected`, in words; empty when it fits."""
    missing = [k for k in expected if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in expected]
    shapes = [
        f"{k} (file {tuple(given[k].shape)}, model {tuple(expected[k].shape)})"
        for k in expected
        if k in given and given[k].shape != expected[k].shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in found if names)


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
