"""Many names in few words: names that differ in one number are told as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Place = tuple[str, int | None, str]  # what stands before the number of a name, the number, and what follows


def place(name: str) -> Place:
    """A name taken apart at the number that counts repeated blocks.

    That is the last word that is a number; else the last number of a word that is not the module's own; the module's
    own number only when there is no other.

    >>> place("layer1.0.conv2"), place("h.layer_3.mlp.0"), place("b1.unit2.conv1"), place("fc")
    (('layer1.', 0, '.conv2'), ('h.layer_', 3, '.mlp.0'), ('b1.unit', 2, '.conv1'), ('fc', None, ''))
    """
    head, dot, leaf = name.rpartition(".")
    for text, rest in ((head, dot + leaf), (name, "")):
        found = list(re.finditer(r"(?<![^.])\d+(?![^.])", text)) or list(re.finditer(r"\d+(?![^.])", text))
        if found:
            return name[: found[-1].start()], int(found[-1].group()), text[found[-1].end() :] + rest
    return name, None, ""


def folded(names: Iterable[str]) -> list[str]:
    """Names that differ in the number of their block only, as one.

    >>> folded(["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2", "layer2.0.conv2"])
    ['conv1', 'layer1.{0..2}.conv2', 'layer2.0.conv2']
    """
    found: dict[tuple[str, str], list[int | None]] = {}
    for name in names:
        head, number, tail = place(name)
        found.setdefault((head, tail), []).append(number)
    return [head + numbers(n for n in ns if n is not None) + tail for (head, tail), ns in found.items()]


def numbers(values: Iterable[int], most: int = 6) -> str:
    """Numbers in braces, as a shell would expand them; long lists without a pattern are shortened.

    >>> numbers([3]), numbers([0, 1, 2, 3]), numbers([0, 2]), numbers([1, 2, 3, 5, 6, 9]), numbers(range(0, 40, 2))
    ('3', '{0..3}', '{0,2}', '{1..3,5,6,9}', '{0,2,..,38}')
    """
    ordered = sorted(set(values))
    if len(ordered) < 2:
        return "".join(map(str, ordered))
    parts = []
    for low, high in runs(ordered):
        parts += [f"{low}..{high}"] if high - low > 1 else [str(n) for n in range(low, high + 1)]
    return "{" + ",".join([*parts[:2], "..", parts[-1]] if len(parts) > most else parts) + "}"


def runs(ordered: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs without a gap.

    >>> runs([0, 1, 2, 5, 7, 8])
    [(0, 2), (5, 5), (7, 8)]
    """
    out: list[tuple[int, int]] = []
    for n in ordered:
        out[-1:] = [(out[-1][0], n)] if out and out[-1][1] == n - 1 else [*out[-1:], (n, n)]
    return out


def some(names: Sequence[str], most: int = 4) -> str:
    """A few names, and how many more there are.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def dotted(name: str) -> list[str]:
    """The words between the dots of a name; the dots in braces are not counted.

    >>> dotted("layer_{0..11}.mlp.0")
    ['layer_{0..11}', 'mlp', '0']
    """
    return re.findall(r"(?:\{[^}]*\}|[^.{]|\{)+", name)


def relative(name: str, to: str, most: int = 20) -> str:
    """A long name without the words it shares with another; its last two words always stay.

    >>> relative("encoder.layer.{0..11}.mlp.3", to="encoder.layer.{0..11}.mlp.0"), relative("a.b", to="a.c")
    ('…mlp.3', 'a.b')
    """
    words, other = dotted(name), dotted(to)
    shared = next((i for i, (a, b) in enumerate(zip(words, other)) if a != b), min(len(words), len(other)))
    cut = min(shared, len(words) - 2)
    return "…" + ".".join(words[cut:]) if len(name) > most and cut > 0 else name


def wrapped(name: str, most: int = 28) -> str:
    """A long name on several lines, broken after dots.

    >>> wrapped("encoder.layers.layer_0.mlp", most=20)
    'encoder.layers.\\nlayer_0.mlp'
    """
    lines = [""]
    for word in dotted(name):
        lines = [*lines, ""] if lines[-1] and len(lines[-1] + word) > most else lines
        lines[-1] += f"{word}."
    return "\n".join(lines).rstrip(".")
