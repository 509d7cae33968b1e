"""Hard masks: weights that are zero, and stay zero whatever trains them."""

from __future__ import annotations

from torch import nn

from prunus.core import InputError, Plan
from prunus.core.checks import check_arguments, optional
from prunus.core.held import check_free, hold_weight_, let_go_
from prunus.core.undo import all_or_nothing
from prunus.core.words import a_plan
from prunus.core.wrappers import unwrapped
from prunus.masks.tensors import tensors


def hold_(model: nn.Module, plan: Plan | None = None) -> tuple[str, ...]:
    r"""Hold the zeros of a masked network, now and after every step of every optimizer of torch.

    .. math:: w \leftarrow w \odot m, \quad \partial L / \partial w \leftarrow \partial L / \partial w \odot m, \quad
        v \leftarrow v \odot m

    for every tensor :math:`v` of an optimizer's state that has the shape of the weight, so that neither momentum nor
    weight decay moves it.  The last mask of a parameter counts; where `prunus.shrink_` cuts the parameter, it follows.
    Copies of the network (``copy.deepcopy``) and files of `prunus.save` hold what it holds.  A plain ``state_dict`` of
    torch knows no masks: call this once after it was loaded into a fresh network.

    Args:
        plan: a mask plan; None: what is zero now in the weights of `prunus.tensors`.  A weight that is zero as a whole
            is then left to train, for it may begin so.

    Returns: the names of the weights that are held.
    Raises: `InputError` for a plan of another network, or while a `MaskPruner` moves the masks.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> _ = net.load_state_dict({"weight": nn.Parameter(net.weight.new_tensor([[0.0, 1.0]]))})
    >>> hold_(net)
    ('weight',)
    """
    check_arguments(locals(), plan=optional(a_plan))
    network = unwrapped(model)
    parameters = dict(network.named_parameters())
    if plan is None:
        there = {g.id: g.slices[0].tensor.detach() != 0 for g in tensors(network)}
        keep = {name: mask for name, mask in there.items() if bool(mask.any()) and not bool(mask.all())}
    else:
        keep = {name: mask.keep for name, mask in plan.masks.items()}
    for name, mask in keep.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise InputError(
                f"the plan masks '{name}' of shape {tuple(mask.shape)}, the network has "
                f"{tuple(parameters[name].shape) if name in parameters else 'no such weight'}: it is of another one."
            )
    check_free({name: parameters[name] for name in keep})
    with all_or_nothing(network):
        for name, mask in keep.items():
            hold_weight_(network, name, mask)
    return tuple(keep)


def release_(model: nn.Module) -> None:
    """Let every weight of a network train again; those that are zero start from zero.

    Raises: `InputError` while a pruner moves the masks of one.
    """
    check_arguments(locals())
    check_free(dict(model.named_parameters()))
    with all_or_nothing():
        for parameter in model.parameters():
            let_go_(parameter)
