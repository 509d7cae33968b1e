"""How is sparsity trained in?  One file a regularizer; every file here is imported, so that it registers itself.

>>> sorted(entry.name for entry in regularizers)
['bn-gamma', 'centripetal']
"""

from importlib import import_module
from pkgutil import iter_modules

from prunus.regularizers.base import Attached, Regularizer, attach, attach_where, regularizer_of, regularizers

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Attached", "Regularizer", "attach", "attach_where", "regularizer_of", "regularizers"]
