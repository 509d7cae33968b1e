"""What is unimportant?  One file a criterion; every file of this folder is imported, so that it registers itself.

>>> len(criteria) > 18, "l2" in [entry.name for entry in criteria]
(True, True)
"""

from importlib import import_module
from pkgutil import iter_modules

from prunus.criteria.base import criteria, criterion, needed, needs, of_data, score, unscored
from prunus.criteria.normalize import normalizers

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["criteria", "criterion", "needed", "needs", "normalizers", "of_data", "score", "unscored"]
