"""Which parameters no weight decay pulls at, as their methods have it."""

from __future__ import annotations

from torch import nn


def undecayed(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of modules that say ``decays = False``, each once: bases of filters, gates.

    >>> import prunus
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> report = prunus.interspace_(net)
    >>> [p is net[0].weight_basis.vectors for p in undecayed(net)]
    [True]
    """
    of = (module for module in model.modules() if getattr(module, "decays", True) is False)
    return list({id(p): p for module in of for p in module.parameters()}.values())
