"""The modules of a network as a tree of their tensors, with repeated blocks found."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from prunus.report.naming import numbers
from prunus.report.view import Dim, TensorView, View


@dataclass(frozen=True, eq=False)
class Node:
    """A module: its own tensors, and the modules in it that have any."""

    name: str
    path: str
    tensors: tuple[TensorView, ...]
    children: tuple[Node, ...]

    @cached_property
    def likeness(self) -> Hashable:
        """Equal for modules that are repetitions of one another: same names and sizes, whatever groups they are in."""
        tensors = tuple((t.name.rpartition(".")[2], *map(_dim_likeness, t.dims)) for t in self.tensors)
        return tensors, tuple((child.name, child.likeness) for child in self.children)

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Repeats:
    """Modules that are repetitions of one another, side by side; most often one alone."""

    label: str
    nodes: tuple[Node, ...]


def grow(view: View) -> Node:
    """The module tree of a traced network; buffers that no group touches (counters, constants) are left out."""
    tensors = [t for t in view.tensors if t.parameter or any(dim.terms for dim in t.dims)]
    return _node("", "", [(t.name.split("."), t) for t in tensors])


def repeats(nodes: Sequence[Node], *, fold: bool = True) -> list[Repeats]:
    """Siblings in order, those that are repetitions and differ in their number only gathered when `fold`."""
    out: list[Repeats] = []
    for node in nodes:
        last = out[-1].nodes if out else ()
        if fold and last and _head(node.name) == _head(last[0].name) and node.likeness == last[0].likeness:
            out.pop()
            last = (*last, node)
        else:
            last = (node,)
        label = _head(node.name) + numbers(_number(n.name) for n in last) if len(last) > 1 else node.name
        out.append(Repeats(label, last))
    return out


def _node(name: str, path: str, rows: Sequence[tuple[list[str], TensorView]]) -> Node:
    """A node of the tensors below it, given with what is left of their names."""
    below: dict[str, list[tuple[list[str], TensorView]]] = {}
    for words, tensor in rows:
        if len(words) > 1:
            below.setdefault(words[0], []).append((words[1:], tensor))
    own = tuple(tensor for words, tensor in rows if len(words) == 1)
    inner = f"{path}." if path else ""
    return Node(name, path, own, tuple(_node(n, inner + n, found) for n, found in below.items()))


def _dim_likeness(dim: Dim) -> Hashable:
    """A dimension that joins several groups (a concatenation) may grow from block to block; others are alike in size.

    Reasons to be fixed may differ: which of several comes first is chance.
    """
    return "joined" if len(dim.terms) > 1 else (dim.size, dim.kept, *(len(term.groups) for term in dim.terms))


def _head(name: str) -> str:
    """A name without the number at its end.

    >>> _head("denselayer12"), _head("3"), _head("conv")
    ('denselayer', '', 'conv')
    """
    return re.sub(r"\d+$", "", name)


def _number(name: str) -> int:
    return int(name[len(_head(name)) :])
