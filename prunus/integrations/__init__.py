"""How does it work inside other people's loops?  Each file is a thin shell around `prunus.Pruner`.

- Lightning: ``Trainer(callbacks=[prunus.integrations.lightning.callback(pruner)])``
- transformers: ``Trainer(..., callbacks=[prunus.integrations.transformers.callback(pruner)])``
- Accelerate: ``pruner.attach(optimizer)`` after ``accelerator.prepare``, then ``pruner.finish_()``; no more is needed.

The libraries are imported when a callback is made.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """The files of this room, imported when they are first named."""
    if name in ("lightning", "transformers"):
        return import_module(f"prunus.integrations.{name}")
    raise AttributeError(f"module 'prunus.integrations' has no attribute '{name}'")
