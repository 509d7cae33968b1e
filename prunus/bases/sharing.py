"""Which layers share a basis."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

from torch import nn

from prunus.core import InputError, UnknownNameError
from prunus.core.callbacks import own
from prunus.core.checks import anything, check_arguments
from prunus.core.errors import did_you_mean
from prunus.core.slices import under

Sharing = str | Mapping[str, Hashable] | Callable[[str], Hashable]
POOLS = tuple(
    getattr(nn, f"{kind}Pool{n}d") for kind in ("Max", "Avg", "LP") for n in (1, 2, 3) if hasattr(nn, f"{kind}Pool{n}d")
)


def shared(model: nn.Module, names: Iterable[str], sharing: Sharing) -> dict[str, Hashable]:
    """A key for every weight name: weights of one key (and one size of pieces) share a basis.

    Args:
        names: qualified names of weights.
        sharing: ``"fine"``: one basis a weight; ``"medium"``: one a stage; ``"coarse"``: one for all; a function of
            the name; or a mapping of names and globs to keys, where names that match none have a basis of their own.

    A stage ends where maps shrink (at pooling, or a stride above 1) and with a child of the innermost module that
    holds all the layers, unless that is a plain sequence: the stem and the stages of a residual network, the five runs
    of convolutions between the poolings of VGG-16.

    Raises: `InputError` for another `sharing`; `UnknownNameError` for a pattern without a match.

    >>> import prunus
    >>> keys = shared(prunus.zoo.vgg16(), [f"features.{i}.weight" for i in (0, 3, 7)], "medium")
    >>> keys["features.0.weight"] == keys["features.3.weight"] != keys["features.7.weight"]
    True
    """
    check_arguments(locals(), sharing=anything)
    names = list(names)
    if callable(sharing):
        return {name: own(sharing, "sharing=")(name) for name in names}
    if isinstance(sharing, Mapping):
        return _mapped(names, sharing)
    if sharing == "fine":
        return {name: name for name in names}
    if sharing == "coarse":
        return dict.fromkeys(names, "all")
    if sharing == "medium":
        return dict(_stages(model, names))
    raise InputError(
        f"sharing={sharing!r}: expected 'fine', 'medium', 'coarse', a function of the weight's name, or a mapping of "
        "names to keys."
    )


def _mapped(names: list[str], sharing: Mapping[str, Hashable]) -> dict[str, Hashable]:
    for pattern in sharing:
        if not isinstance(pattern, str):
            raise InputError(f"sharing: expected names or globs of weights as keys; given {pattern!r}.")
        if not any(under(name, pattern) for name in names):
            raise UnknownNameError(
                f"sharing: pattern '{pattern}' matches no weight in a basis.{did_you_mean(pattern, names)}"
            )
    return {name: next((key for p, key in sharing.items() if under(name, p)), name) for name in names}


def _stages(model: nn.Module, names: list[str]) -> dict[str, Hashable]:
    """The number of every weight's stage, in the order of the modules."""
    owners = {name: name.rpartition(".")[0] for name in names}
    inside = set(owners.values())
    home = _common([path.split(".") for path in inside])
    ends = not isinstance(model.get_submodule(".".join(home)), nn.Sequential)
    stage, child, stages = 0, None, {}
    for path, module in model.named_modules():
        own = path.split(".")
        if own[: len(home)] != home and home:
            continue
        if isinstance(module, POOLS):
            stage += 1
        if path in inside:
            first = own[len(home)] if len(own) > len(home) else ""
            stride = getattr(module, "stride", 1)
            shrinks = max(stride) > 1 if isinstance(stride, tuple) else stride > 1
            if child is not None and (shrinks or (ends and first != child)):
                stage += 1
            child = first
            stages[path] = stage
    return {name: stages[owner] for name, owner in owners.items()}


def _common(paths: list[list[str]]) -> list[str]:
    """What all paths begin with, without their last part."""
    shortest = min((path[:-1] for path in paths), key=len, default=[])
    count = next((i for i, part in enumerate(shortest) if any(path[i] != part for path in paths)), len(shortest))
    return shortest[:count]
