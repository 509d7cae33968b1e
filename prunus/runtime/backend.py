"""The engine as a backend that latency can be measured in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from prunus.core.backends import backends
from prunus.core.inputs import Inputs
from prunus.runtime.engine import compile
from prunus.runtime.files import load


@backends.register("sparse", reads=("bases", "gates"))
def sparse_backend(model: nn.Module | str | Path, inputs: Inputs, threads: int) -> Callable[[], Any]:
    """prunus's own engine on the CPU, in which zeros take no time: a module, or a file of `prunus.runtime.save`."""
    network = compile(model, inputs, threads=threads) if isinstance(model, nn.Module) else load(model, threads=threads)
    return lambda: network(*inputs.args)
