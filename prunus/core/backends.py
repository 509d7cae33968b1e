"""The runtimes a network can be timed in: each registers itself here, so that `measure` imports none of them.

A backend is a function ``(model, inputs, threads) -> call``: it makes the network ready to run on `inputs` with that
many threads, once and untimed, and returns a function of no arguments that runs it one time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from prunus.core.inputs import Inputs
from prunus.core.registry import Registry

Backend = Callable[[nn.Module | str | Path, Inputs, int], Callable[[], Any]]

backends: Registry[Backend] = Registry("backend")
