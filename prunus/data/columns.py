"""Which column holds the images, and which the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.core import InputError, did_you_mean

IMAGE_NAMES = ("image", "img", "pixel_values", "picture")
LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "category", "y")


def image_column(features: Any, given: str | None, source: str) -> str:
    """The column of encoded images; raises `InputError` when there is none or more than one could be meant."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    found = [n for n, kind in kinds.items() if kind == "Image" or _holds_bytes(features[n])]
    return _choose("image", found, IMAGE_NAMES, given, list(features), source)


def label_column(features: Any, given: str | None, source: str) -> str:
    """The column of class labels; raises `InputError` when there is none or more than one could be meant."""
    found = [n for n, f in features.items() if type(f).__name__ == "ClassLabel" or _is_plain(f)]
    classes = [n for n in found if type(features[n]).__name__ == "ClassLabel"]
    named = [n for n in found if n.lower() in LABEL_NAMES]
    return _choose("label", classes or named, LABEL_NAMES, given, list(features), source)


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", "") in {"binary", "large_binary"}


def _is_plain(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and (kind.startswith(("int", "uint")) or "string" in kind)


def _choose(
    what: str, found: Sequence[str], usual: Sequence[str], given: str | None, columns: list[str], source: str
) -> str:
    if given is not None:
        if given not in columns:
            hint = did_you_mean(given, columns)
            raise InputError(f"{source} has no column '{given}'.{hint} Its columns: {', '.join(columns)}.")
        return given
    best = [n for n in usual if n in found] or list(found)
    if not best:
        raise InputError(
            f"{source} has no {what} column: its columns are {', '.join(columns) or 'none'}. "
            f"Expected one named {', '.join(usual[:3])}, or name it with data.{what}=COLUMN"
            + (", or sort the images into one folder a class." if what == "label" else ".")
        )
    if len(best) > 1 and best[0] not in usual:
        raise InputError(
            f"{source} has several {what} columns ({', '.join(best)}); choose one with data.{what}=COLUMN."
        )
    return best[0]
