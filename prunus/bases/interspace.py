"""A network whose filters are coefficients times a basis, both of which train."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.bases.basis import Basis, attach_, interspaced
from prunus.bases.inits import Init, inits
from prunus.bases.sharing import Sharing, shared
from prunus.core import Fixed, InputError, UnknownNameError
from prunus.core.callbacks import own
from prunus.core.checks import a_named_function, anything, check_arguments, ints, not_negative, optional, shown
from prunus.core.errors import did_you_mean
from prunus.core.held import check_free, let_go_
from prunus.core.slices import under
from prunus.core.undo import all_or_nothing, keep_values
from prunus.core.wrappers import unwrapped
from prunus.masks.prunable import weights_of_layers


@dataclass(frozen=True, eq=False)
class Interspaced:
    """What `interspace_` did.

    `bases` holds the names of the weights that share each basis; `error` is the relative change of the weights,
    ``|F lambda - W| / |W|``: rounding, unless an initialisation changes the function; `left_alone` says what stays
    plain, and why.

    Attributes:
        model: the network, changed in place.
    """

    model: nn.Module
    bases: tuple[tuple[str, ...], ...]
    error: float
    left_alone: tuple[Fixed, ...] = ()

    def __str__(self) -> str:
        count = sum(map(len, self.bases))
        rows = [f"{count} weights in {len(self.bases)} bases; relative change {self.error:.1e}"]
        return "\n".join(rows + [f"  left as it is: {f.what}, {f.why}" for f in self.left_alone])


@torch.no_grad()
def interspace_(
    model: nn.Module,
    sharing: Sharing = "fine",
    init: str | Init = "standard",
    *,
    block: int | None = None,
    unit: bool = True,
    skip: str | Iterable[str] = (),
    seed: int = 0,
) -> Interspaced:
    r"""Represent filters by coefficients in a basis, in place: $h^{(o,i)} = \sum_n \lambda^{(o,i)}_n g^{(n)}$.

    A weight's parameter holds its coefficients from now on, under the same name and in the same shape, so that
    `prunus.tensors`, criteria, masks and every method of sparse training take them as they take weights; the basis is
    a child of the layer with parameter ``vectors``, trained along with the coefficients (see `parameter_groups`).
    ``layer.weight`` is what they make, computed anew at every use.

    Args:
        model: any network; convolutions whose kernels have more than one position are taken, transposed ones too.
        sharing: who shares a basis: ``"fine"``, ``"medium"``, ``"coarse"`` or a map of your own, see
            `prunus.bases.shared`.
        init: a name in `prunus.bases.inits`, or a function of the filters ``(n, m)`` such as
            `prunus.bases.dictionary` makes.
        block: linear layers and the projections of attention too, in blocks of so many inputs; those that it does not
            divide are left as they are.
        unit: see `prunus.bases.Basis`: True keeps magnitudes comparable between bases, at any time.
        skip: names or globs of weights to leave as they are; seed: of what an initialisation draws.

    Masks of the weights that were held are let go of: choose the coefficients' anew.

    Raises: `InputError` when there is nothing to represent so, for a network that has bases already, while a pruner
    moves masks, for sharded parameters, or a distributed wrapper; `UnknownNameError`.  The network is then as it was.

    Source: Wimmer, Mehnert, Condurache, "Interspace Pruning: Using Adaptive Filter Representations to Improve Training
    of Sparse CNNs", CVPR 2022.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> print(interspace_(net))
    1 weights in 1 bases; relative change 0.0e+00
      left as it is: 2.weight, it has no kernel of several positions
    >>> [name for name, _ in net.named_parameters()]
    ['0.weight', '0.bias', '0.weight_basis.vectors', '2.weight', '2.bias']
    """
    check_arguments(locals(), sharing=anything, init=a_named_function, block=optional(ints(2)))
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise InputError(
            "bases are new parameters, which DistributedDataParallel around the network would not know: call "
            "interspace_ on the network inside first, and wrap it afterwards."
        )
    network = unwrapped(model)
    if found := next((name for name, *_ in interspaced(network)), None):
        raise InputError(f"'{found}' is in a basis already: prunus.fold_(model) first.")
    if block is not None and (not isinstance(block, int) or block < 2):
        raise InputError(f"block={block!r}: expected a whole number of inputs, 2 or more.")
    check_free(dict(network.named_parameters()))
    places, left = _places(network, block, (skip,) if isinstance(skip, str) else tuple(skip))
    if not places:
        raise InputError(
            "there is no weight to represent in a basis: "
            + ("; ".join(f"{f.what}, {f.why}" for f in left) or "the network has no layers")
            + (". Linear layers are taken in blocks: block=8." if block is None else ".")
        )
    start = inits[init].call if isinstance(init, str) else own(init, "init=")
    keys = shared(network, list(places), sharing)
    families: dict[Hashable, list[str]] = {}
    for name, (_, parameter, size) in places.items():
        families.setdefault((keys[name], size, parameter.dtype, parameter.device), []).append(name)
    generator = torch.Generator().manual_seed(seed)
    made, change, total = [], 0.0, 0.0
    for names in families.values():
        made.append(
            _start(
                list({id(places[n][1]): places[n][1] for n in names}.values()), places[names[0]][2], start, generator
            )
        )
    with all_or_nothing(network):
        for names, (vectors, values) in zip(families.values(), made):
            basis = Basis(vectors, unit)
            for owners, parameter, _ in map(places.__getitem__, names):
                before = parameter.detach().clone()
                let_go_(parameter)
                keep_values(parameter)
                parameter.copy_(values[id(parameter)])
                parameter.grad = None
                for owner, leaf in owners:
                    attach_(owner, leaf, basis)
                change += float((getattr(*owners[0]) - before).double().square().sum())
                total += float(before.double().square().sum())
        error = (change / total) ** 0.5 if total else change**0.5
        return Interspaced(model, tuple(map(tuple, families.values())), error, tuple(left))


Place = tuple[list[tuple[nn.Module, str]], nn.Parameter, tuple[int, ...]]


def _places(model: nn.Module, block: int | None, skip: tuple[str, ...]) -> tuple[dict[str, Place], list[Fixed]]:
    """Weights to take: by their first name, the layers that hold them, the parameter, the shape of a piece."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, leaf))
    found = list(weights_of_layers(model))
    for pattern in skip:
        if not any(under(name, pattern) for name, *_ in found):
            raise UnknownNameError(
                f"pattern '{pattern}' matches no weight.{did_you_mean(pattern, [n for n, *_ in found])}"
            )
    places: dict[str, Place] = {}
    left = []
    for name, module, parameter in found:
        piece = _piece(module, parameter, block)
        if any(under(name, p) for p in skip):
            left.append(Fixed(name, "it is skipped"))
        elif isinstance(piece, str):
            left.append(Fixed(name, piece))
        elif any(type(owner) is not type(module) for owner, _ in owners[id(parameter)]):
            left.append(Fixed(name, "it is tied to a parameter of another kind of module"))
        else:
            places[name] = (owners[id(parameter)], parameter, piece)
    return places, left


def _piece(module: nn.Module, parameter: Tensor, block: int | None) -> tuple[int, ...] | str:
    """The shape of a piece of a weight; or why it stays plain."""
    if isinstance(module, nn.modules.conv._ConvNd):
        kernel = tuple(parameter.shape[2:])
        return kernel if parameter[0, 0].numel() > 1 else "it has no kernel of several positions"
    if not isinstance(module, (nn.Linear, nn.MultiheadAttention)) or parameter.dim() != 2:
        return f"it belongs to a {type(module).__name__}"
    if block is None:
        return "linear layers are taken in blocks: block="
    wide = parameter.shape[1]
    return (block,) if wide % block == 0 else f"its {wide} inputs are not divisible by block={block}"


def _start(
    parameters: list[nn.Parameter], piece: tuple[int, ...], start: Init, generator: torch.Generator
) -> tuple[Tensor, dict[int, Tensor]]:
    """The basis of the weights that share one, in their precision, and their coefficients by the parameter's id."""
    size = torch.Size(piece).numel()
    filters = [p.detach().double().reshape(-1, size) for p in parameters]
    given = start(torch.cat(filters), generator)
    if not (isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(t, Tensor) for t in given)):
        raise InputError(f"init= gave {shown(given)}; expected (basis, coefficients), two tensors.")
    vectors, values = given
    if vectors.shape != (size, size) or values.shape != (sum(map(len, filters)), size):
        raise InputError(
            f"the initialisation gave a basis {tuple(vectors.shape)} and coefficients {tuple(values.shape)} for "
            f"{sum(map(len, filters))} filters of {size} entries; expected (m, m) and (n, m)."
        )
    parts = values.split([len(f) for f in filters])
    return vectors.to(parameters[0], copy=True).contiguous(), {
        id(p): v.reshape(p.shape).to(p) for p, v in zip(parameters, parts)
    }


def parameter_groups(model: nn.Module, *, basis_decay: float = 0.0, **basis_options: Any) -> list[Mapping[str, Any]]:
    """Parameter groups for an optimizer: everything else first, the bases in a group of their own.

    Args:
        basis_decay: weight decay of the bases; coefficients decay like weights, as the optimizer says.
        basis_options: more options of the bases' group: ``lr=0.01``.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> report = interspace_(net)
    >>> optimizer = torch.optim.SGD(parameter_groups(net, lr=0.05), lr=0.1, weight_decay=5e-4)
    >>> [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    [(2, 0.1, 0.0005), (1, 0.05, 0.0)]
    """
    check_arguments(locals(), basis_decay=not_negative, basis_options=anything)
    bases = {id(b.vectors): b.vectors for *_, b in interspaced(model)}
    rest = [p for p in model.parameters() if id(p) not in bases]
    options = {"weight_decay": basis_decay, **basis_options}
    return [{"params": rest}, *([{"params": list(bases.values()), **options}] if bases else [])]
