"""The formats a network can leave in: functions ``(model, example_inputs, path, *, verify) -> relative error``."""

from collections.abc import Callable
from typing import Any

from prunus.core import Registry

exporters: Registry[Callable[..., Any]] = Registry("export format")
