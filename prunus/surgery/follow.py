"""Another copy of a network follows its cut: moving averages, teachers, snapshots."""

from __future__ import annotations

from torch import nn

from prunus.core import InputError, Plan
from prunus.core.checks import check_arguments
from prunus.core.undo import all_or_nothing
from prunus.core.wrappers import check_whole
from prunus.surgery.depth import drop_
from prunus.surgery.fits import check_fits
from prunus.surgery.memory import remember_
from prunus.surgery.shrink import apply_, fold_

WRAPPERS = ("", "module.", "_orig_mod.")  # where averaged, distributed and compiled copies keep the network


def follow_(copy: nn.Module, plan: Plan) -> None:
    """Cut a deep copy of a network as the network itself was cut: ``follow_(averaged, report.plan)``.

    The same indices stay, in the copy's own weights.  `copy` may be a wrapper that keeps the network as its ``module``
    (`torch.optim.swa_utils.AveragedModel`, timm's ``ModelEmaV3``).  A moving average remembers removed units for a
    while after they went to zero; what is left of them is dropped.

    Raises: `InputError` when the copy is not of the network that `plan` was made for, or was cut already; it is then as
    it was.

    >>> import prunus, copy, torch
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1))
    >>> average = copy.deepcopy(net)
    >>> report = prunus.prune_(net, torch.zeros(1, 2), budget=prunus.Budget(params=0.5))
    >>> follow_(average, report.plan)
    >>> average[0].weight.shape == net[0].weight.shape
    True
    """
    check_arguments(locals())
    network = _inside(copy, plan)
    check_whole(network)
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    for name, cut in plan.tensors.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != cut.shape:
            raise InputError(
                f"the copy is not of the network that was cut, as it was before: '{name}' should be {cut.shape}, in "
                f"the copy it is {found or 'missing'}. Deep-copy the very network, before it is cut, and follow once."
            )
    for s in plan.scaled:
        sizes = tuple(tensors[s.name].shape) if s.name in tensors else ()
        if s.dim >= len(sizes) or (s.rows and max(s.rows) >= sizes[s.dim]):
            raise InputError(f"the copy is of another network: '{s.name}' has no such rows as the plan scales.")
    if plan.added:
        raise InputError(
            f"the plan adds '{plan.added[0].name}' to the network, whose values it does not hold: deep-copy the "
            "network once it has it, and give the plan of what is cut then (a report's), not of all cuts (plan_of)."
        )
    check_fits(network, plan, "the plan")
    with all_or_nothing(network):
        drop_(network, plan.dropped)
        remember_(network, plan)
        fold_(network, plan.scaled)
        apply_(network, plan)


def _inside(copy: nn.Module, plan: Plan) -> nn.Module:
    """The network in `copy` by whose names the plan goes."""
    names = set(copy.state_dict()) | {name for name, _ in copy.named_buffers()}
    for prefix in WRAPPERS:
        if all(prefix + name in names for name in plan.tensors):
            return copy.get_submodule(prefix.rstrip("."))
    return copy
