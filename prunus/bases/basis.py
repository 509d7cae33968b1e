"""A layer whose weight is coefficients times a basis, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.core.checks import Kind, check_arguments
from prunus.core.held import check_free, let_go_
from prunus.core.inference import Form, forms
from prunus.core.inputs import Inputs
from prunus.core.undo import all_or_nothing, keep_values

SUFFIX = "_basis"  # of the child that holds the basis of a parameter: `weight_basis`

VECTORS = Kind(
    "a matrix of floating-point numbers, a vector a row",
    lambda v: isinstance(v, Tensor) and v.dim() == 2 and v.is_floating_point(),
)


class Basis(nn.Module):
    r"""Vectors $g^{(n)}$ of $m$ entries, of which every piece of $m$ entries of a weight is a combination.

    .. math:: h = \sum_{n=1}^{m} \lambda_n \, g^{(n)}, \qquad \lVert g^{(n)} \rVert = 1

    Args:
        vectors: ``(m, m)``, a vector a row.
        unit: divide every vector by its norm wherever it is used, so that coefficients of all bases are of one scale
            and can be ranked together; the gradient is then orthogonal to the vector.  False: vectors as they are;
            `normalize_` moves their norms into the coefficients.

    Source: Wimmer et al., "Interspace Pruning", CVPR 2022.

    >>> basis = Basis(2 * torch.eye(4))
    >>> basis(torch.ones(3, 1, 2, 2)).shape, basis.directions().sum().item()
    (torch.Size([3, 1, 2, 2]), 4.0)
    """

    holds_weights = False  # of layers: masks leave it whole

    makes_weights = True  # its products are of a change of the weights, not of a sample: they are not counted

    decays = False  # no weight decay pulls at it: what decays are coefficients

    of_coefficients = True  # the parameter beside it holds coefficients: masks and scores are of them

    def __init__(self, vectors: Tensor, unit: bool = True) -> None:
        super().__init__()
        check_arguments(locals(), vectors=VECTORS)
        self.vectors = nn.Parameter(vectors)
        self.unit = unit

    def directions(self) -> Tensor:
        """The basis as forward uses it, ``(m, m)``, a vector a row."""
        return F.normalize(self.vectors, dim=1) if self.unit else self.vectors

    def forward(self, coefficients: Tensor, along: int = 0) -> Tensor:
        """Coefficients ``(out, in, *kernel)`` or ``(out, in)`` to the weight of their shape: a batched matrix product.

        The product runs over pieces of ``m`` entries for every index of dimension `along`, so that a trace still sees
        the channels.
        """
        vectors = self.directions()
        pieces = coefficients.flatten(2) if coefficients.dim() > 2 else coefficients.unflatten(1, (-1, len(vectors)))
        turned = pieces.transpose(0, along)  # (batch, rows, m)
        weight = torch.bmm(turned, vectors.expand(turned.shape[0], *vectors.shape)).transpose(0, along)
        return weight.reshape(coefficients.shape)

    def extra_repr(self) -> str:
        """The size, for ``print``."""
        return f"{len(self.vectors)}, unit={self.unit}"


def attach_(module: nn.Module, leaf: str, basis: Basis) -> None:
    """Make parameter `leaf` of a layer the coefficients of a basis; ``module.<leaf>`` is from now on the weight.

    The parameter keeps its name, shape and identity; the layer's class becomes a subclass of its own.
    """
    leaves = (*_leaves(module), leaf)
    module.__class__ = _subclass(_own(type(module)), leaves)
    module.add_module(leaf + SUFFIX, basis)


def detach_(module: nn.Module) -> None:
    """The inverse of `attach_`: the layer has its own class again, and its parameters stay as they are."""
    for leaf in _leaves(module):
        delattr(module, leaf + SUFFIX)
    module.__class__ = _own(type(module))


def coefficients(module: nn.Module, leaf: str = "weight") -> nn.Parameter:
    """The coefficients of a layer in its basis; ``getattr(module, leaf)`` is the weight that they make."""
    found = module._parameters[leaf]
    assert found is not None
    return found


def interspaced(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Basis]]:
    """Every weight that is coefficients times a basis: ``(qualified name, layer, name in the layer, basis)``."""
    check_arguments(locals())
    for path, module in model.named_modules():
        for leaf in _leaves(module):
            yield f"{path}.{leaf}".lstrip("."), module, leaf, module.get_submodule(leaf + SUFFIX)


@torch.no_grad()
def fold_(model: nn.Module) -> tuple[str, ...]:
    r"""Make every weight in a basis a plain weight again, $w \leftarrow F \lambda$, in place; returns their names.

    Modules have their own classes again and ``state_dict`` its keys; parameters keep their identity.  Masks that held
    coefficients at zero are let go of, since the weights that these make are dense; other masks stay.  What an
    optimizer remembers of the coefficients means nothing to the weights: make a new one.

    Raises: `InputError` while a pruner moves the masks of coefficients.

    >>> import prunus
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> keys = list(net.state_dict())
    >>> report = prunus.interspace_(net)
    >>> fold_(net), list(net.state_dict()) == keys, type(net[0]) is nn.Conv2d
    (('0.weight',), True, True)
    """
    check_arguments(locals())
    layers = list(interspaced(model))
    check_free({name: coefficients(module, leaf) for name, module, leaf, _ in layers})
    weights = {id(p): (p, getattr(m, leaf)) for _, m, leaf, _ in layers for p in [coefficients(m, leaf)]}
    with all_or_nothing(model):
        for module in {id(m): m for _, m, _, _ in layers}.values():
            detach_(module)
        for parameter, weight in weights.values():
            let_go_(parameter)
            keep_values(parameter)
            parameter.copy_(weight)
            parameter.grad = None
        return tuple(name for name, *_ in layers)


@torch.no_grad()
def normalize_(model: nn.Module) -> None:
    r"""Give every basis vector norm 1 and its norm to the coefficients: the function stays.

    .. math:: c_n = \lVert g^{(n)} \rVert, \quad g^{(n)} \leftarrow g^{(n)} / c_n, \quad
        \lambda_n \leftarrow c_n \lambda_n

    To do before coefficients are ranked by magnitude, where bases are free (``unit=False``); with ``unit=True`` forward
    does the same at any time, and only vectors are divided here.  A vector that is zero stays.
    """
    check_arguments(locals())
    done: set[int] = set()
    norms: dict[int, Tensor] = {}
    with all_or_nothing(model):
        for _, module, leaf, basis in interspaced(model):
            parameter, size = coefficients(module, leaf), len(basis.vectors)
            keep_values(basis.vectors, parameter)
            if id(basis) not in norms:
                length = basis.vectors.norm(dim=1)
                norms[id(basis)] = torch.where(length > 0, length, 1)
                basis.vectors.div_(norms[id(basis)][:, None])
            if not basis.unit and id(parameter) not in done:
                done.add(id(parameter))
                parameter.copy_((parameter.reshape(-1, size) * norms[id(basis)]).reshape(parameter.shape))


_subclasses: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}
_OWN, _LEAVES = "_prunus_own_class", "_prunus_coefficients"


def _subclass(own: type[nn.Module], leaves: tuple[str, ...]) -> type[nn.Module]:
    """The class of layers of class `own` whose parameters `leaves` are coefficients: one for all of them."""
    if (own, leaves) not in _subclasses:
        members = {leaf: property(_weight(leaf)) for leaf in leaves}
        about = {"__module__": own.__module__, "__doc__": own.__doc__, _OWN: own, _LEAVES: leaves}
        _subclasses[own, leaves] = type(own.__name__, (own,), {**about, **members})
    return _subclasses[own, leaves]


def _weight(leaf: str) -> Callable[[nn.Module], Tensor]:
    """What ``layer.<leaf>`` computes."""

    def weight(module: nn.Module) -> Tensor:
        basis, given = module._modules[leaf + SUFFIX], module._parameters[leaf]
        try:
            return basis(given, along(module))  # type: ignore[misc]
        except AttributeError as error:  # torch would look the name up again, and take the coefficients for the weight
            raise RuntimeError(f"the basis of '{leaf}' failed: {error}") from error

    return weight


def along(module: nn.Module) -> int:
    """Which dimension of the coefficients a trace has to see as the layer's own, beside the pieces: see `Basis`."""
    turned = isinstance(module, nn.modules.conv._ConvTransposeNd)
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1
    return int(turned or depthwise)


def _own(kind: type[nn.Module]) -> type[nn.Module]:
    return kind.__dict__.get(_OWN, kind)


def _leaves(module: nn.Module) -> tuple[str, ...]:
    return type(module).__dict__.get(_LEAVES, ())


def _folded(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, list[str]]:
    return model, [f"weights in a basis are folded ({len(fold_(model))})"]


forms["bases"] = Form(lambda model: any(interspaced(model)), _folded)
