"""The formats a network can leave in: functions ``(model, example_inputs, path, *, verify) -> relative error``.

An exporter may declare ``notes``, a function of the written file to sentences that a person should read.
"""

from collections.abc import Callable
from typing import Any

from prunus.core import Registry

exporters: Registry[Callable[..., Any]] = Registry("export format")
