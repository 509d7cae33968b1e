"""What must be seen?  Statistics of a network on data; one file a kind, imported here so that it registers itself.

>>> {"gate", "grad", "moments"} <= {entry.name for entry in collectors}
True
"""

from importlib import import_module
from pkgutil import iter_modules

from prunus.observe.base import Seen, Stats, collect, collectors

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Seen", "Stats", "collect", "collectors"]
