"""Any model by its name: ``prunus:``, ``torchvision:``, ``timm:``, ``transformers:X.json``, ``file.py:factory``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.core import FileError, InputError, UnknownNameError, did_you_mean
from prunus.core.checks import a_path, check_arguments, optional
from prunus.core.process import same_random
from prunus.core.words import a_seed, some_classes
from prunus.data.preprocess import Preprocess
from prunus.zoo.registry import models
from prunus.zoo.sources import Source, from_file, from_timm, from_torchvision, from_transformers
from prunus.zoo.weights import load_weights_

LIBRARIES: dict[str, Callable[[str, int | None], Source]] = {}


@dataclass(frozen=True, eq=False)
class Model:
    """A network to prune, with what belongs to it.

    `spec` is the name it was built from, `preprocess` turns image bytes into its input, `input_shape` is the shape
    (C, H, W) of one input or None where only the user knows it, and ``factory()`` builds the original again, without
    the weights.

    Attributes:
        module: the network itself, with weights if any were given.
    """

    module: nn.Module
    spec: str
    preprocess: Preprocess
    input_shape: tuple[int, ...] | None
    factory: Callable[[], nn.Module]

    def example(self, batch: int = 1) -> Tensor:
        """Random inputs (batch, C, H, W), the same on every call.

        Raises: `InputError` when the shape of an input is not known.
        """
        check_arguments(locals())
        if self.input_shape is None:
            raise InputError(f"the shape of an input of '{self.spec}' is not known; give one (--input 1,3,224,224).")
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.input_shape, generator=generator)


def build(
    spec: str, *, weights: str | Path | None = None, classes: int | None = None, seed: int | None = None
) -> Model:
    """Build the model named `spec`, with its preprocessing; nothing is downloaded.

    `spec` is ``prunus:resnet56``, ``torchvision:resnet50``, ``timm:resnet26d``, ``transformers:CONFIG.json`` (of a
    mapping of several configurations one is chosen with ``CONFIG.json#NAME``), or ``path/file.py:factory``.  `classes`
    overrides the number of outputs, `seed` fixes the initial weights without touching the global generator.

    Raises: `UnknownNameError` with the nearest name; `MissingExtraError` with the line that installs the library;
    `FileError` for weights, configurations and factories that cannot be used.

    >>> build("prunus:resnet20").input_shape
    (3, 32, 32)
    """
    check_arguments(locals(), weights=optional(a_path), classes=optional(some_classes), seed=optional(a_seed))
    kind, name = _parse(spec)
    source = LIBRARIES[kind](name, classes)
    module = _seeded(source.factory, seed)
    preprocess = source.preprocess
    if not isinstance(preprocess, Preprocess):
        preprocess = preprocess(module)
    if weights is not None:
        load_weights_(module, weights)
    shape = source.input_shape
    if shape is None and preprocess.size is not None:
        shape = (preprocess.channels or 3, *preprocess.size)
    return Model(module, spec, preprocess, shape, source.factory)


def _parse(spec: str) -> tuple[str, str]:
    """``"timm:x"`` -> ``("timm", "x")``; a Python file and its factory -> ``("file", spec)``."""
    head, colon, tail = spec.partition(":")
    if head in LIBRARIES and colon and tail:
        return head, tail
    if spec.rpartition(":")[0].endswith(".py"):
        return "file", spec
    if spec.endswith(".py"):
        raise InputError(f"model '{spec}': name the function that builds it too, as in {spec}:factory.")
    if "/" in spec and ":" not in spec:
        raise FileError(
            f"there is no folder of a run at '{spec}', and it is no model. Expected a folder that `prunus run` wrote, "
            "prunus:NAME, or path/file.py:factory."
        )
    known = [f"prunus:{entry.name}" for entry in models]
    hint = did_you_mean(spec, known) or did_you_mean(f"prunus:{spec}", known)
    raise UnknownNameError(
        f"'{spec}' is not a model.{hint} Expected prunus:NAME, torchvision:NAME, timm:NAME, transformers:CONFIG.json "
        "or path/file.py:factory; `prunus ls models` lists the built-in names."
    )


def _seeded(factory: Callable[[], nn.Module], seed: int | None) -> nn.Module:
    if seed is None:
        return factory()
    with same_random():
        torch.manual_seed(seed)
        return factory()


def _from_zoo(name: str, classes: int | None) -> Source:
    entry = models[name]
    count = {} if classes is None else {"classes": classes}
    return Source(lambda: entry.call(**count), entry.declares["preprocess"], entry.declares["input_shape"])


LIBRARIES.update(
    prunus=_from_zoo,
    torchvision=from_torchvision,
    timm=from_timm,
    transformers=from_transformers,
    file=from_file,
)
