"""The gates of a network as JSON that somebody else may have written: every field with its type, of this network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from prunus.core import FileError
from prunus.core.fields import MOST, entries, items, parsed, record, shown, text, whole
from prunus.dynamic.method import Method, method_of, methods
from prunus.dynamic.places import Convolution, Place, Placement, Work

NUMBER = (int, float)


def read_gates(model: nn.Module, written: str) -> tuple[Method, Placement]:
    """The method and the places in the JSON text of a file.

    Raises: `FileError` when it is no such text, or of another network.
    """
    try:
        data = record(parsed(written), ("method", "options", "placement"))
        name = text(data["method"])
        places = record(data["placement"], ("places", "work", "refused"))
        placement = Placement(
            tuple(map(_place, items(places["places"]))),
            tuple(map(_work, items(places["work"]))),
            tuple((text(a), text(b)) for a, b in map(items, items(places["refused"]))),
        )
        method = method_of(name, _options(methods[name].call, entries(data["options"])))
    except (ValueError, TypeError) as error:
        raise FileError(f"its gates cannot be read ({str(error)[:300]}).") from None
    modules = dict(model.named_modules())
    for place in placement.places:
        _check(place, modules)
    if len({p.layer for p in placement.places}) < len(placement.places):
        raise FileError("its gates cannot be read (a layer has two of them).")
    return method, placement


def _options(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the types that a method's own have."""
    for field in fields(kind):
        value, usual = given.get(field.name, field.default), field.default
        fits = type(value) in NUMBER if type(usual) in NUMBER else type(value) is type(usual)
        if not fits:
            raise ValueError(f"{field.name}={shown(value)} should be like {shown(usual)}")
    return dict(given)


def _place(data: Any) -> Place:
    record(data, ("layer", "site", "relu", "inputs", "outputs", "depthwise", "chain"), ("compact",))
    flags = (data["relu"], data.get("compact", False))
    if not all(type(flag) is bool for flag in flags):
        raise ValueError(f"expected true or false, given {shown(list(flags))}")
    names = [tuple(map(text, items(data[key]))) for key in ("depthwise", "chain")]
    sizes = [whole(data[key], 1, MOST) for key in ("inputs", "outputs")]
    return Place(text(data["layer"]), text(data["site"]), flags[0], sizes[0], sizes[1], names[0], names[1], flags[1])


def _work(data: Any) -> Work:
    record(data, ("layer", "macs"), ("out", "into"))
    gates = [whole(data.get(key, -1), -1, MOST) for key in ("out", "into")]
    return Work(text(data["layer"]), whole(data["macs"]), *gates)


def _check(place: Place, modules: Mapping[str, nn.Module]) -> None:
    for name in (place.layer, place.site, *place.depthwise, *place.chain):
        if name not in modules:
            raise FileError(f"it is of another architecture: there is no layer '{name}' to gate here.")
    layer = modules[place.layer]
    if not isinstance(layer, Convolution) or (place.inputs, place.outputs) != (
        layer.weight.shape[1] * layer.groups,
        layer.weight.shape[0],
    ):
        raise FileError(f"it is of another architecture: the gate of '{place.layer}' is as wide as another layer.")
