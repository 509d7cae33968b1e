"""How much, from where?  One file an allocator; every file of this folder is imported, so that it registers itself.

>>> {"erk", "global", "uniform"} <= {entry.name for entry in allocators}
True
"""

from importlib import import_module
from pkgutil import iter_modules

from prunus.allocators.base import Problem, allocate, allocators, kept
from prunus.allocators.curves import Sensitivity, sensitivity

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Problem", "Sensitivity", "allocate", "allocators", "kept", "sensitivity"]
