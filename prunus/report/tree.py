"""Coupled groups as the module tree of the network, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prunus.core.checks import check_arguments, instance
from prunus.report.console import table
from prunus.report.groups import fixed_table, group_cells, look_alike, summary
from prunus.report.modules import Node, Repeats, grow, repeats
from prunus.report.view import Dim, TensorView, View

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text
    from rich.tree import Tree

COLOURS = ("red", "green", "yellow", "blue", "magenta", "cyan")
HOW = (
    "How to read it: of [64 #2, 3, 1, 1], the 64 rows belong to group 2, the rest is not cut.  #5,#7: one each of the "
    "repeated blocks.  #1+#2: joined, some rows belong to each.  #1×#2: a row needs a unit of both.  "
    "fixed a: the reason is below."
)


def groups_tree(view: View, *, name: str = "", unfold: bool = False) -> RenderableType:
    """The module tree with the group of every dimension, the groups by number, and what is fixed, for ``rich.print``.

    Args:
        view: a traced network.
        name: what the network is called.
        unfold: show repeated blocks and alike groups one by one.
    """
    check_arguments(locals(), view=instance("a prunus.report.View", View))
    from rich.console import Group as Stack
    from rich.text import Text
    from rich.tree import Tree

    letters = dict(zip(view.reasons, _letters()))
    root = Tree(Text(name or "the network", style="bold"), guide_style="dim")
    top = grow(view)
    _grow(root, [top], view, letters, fold=not unfold)
    shown: list[RenderableType] = [root, "", Text(HOW, style="dim"), ""]
    legend = table("Groups by number")
    for title, justify in (("no.", "left"), ("group", "left"), ("units", "right"), ("a unit costs", "right")):
        legend.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for alike in look_alike(view, fold=not unfold):
        number, what, units, cost = group_cells(view, alike)
        legend.add_row(number, what.replace("\n", ""), units.replace("\n", " "), cost.replace("\n", ", "))
    shown += [legend, summary(view)]
    if view.reasons:
        shown += ["", fixed_table(view, list(letters.values()))]
    return Stack(*shown)


def _letters() -> Iterable[str]:
    """a, b, .., z, aa, ab, .."""
    yield from "abcdefghijklmnopqrstuvwxyz"
    yield from (a + b for a in _letters() for b in "abcdefghijklmnopqrstuvwxyz")


def _grow(tree: Tree, nodes: Sequence[Node], view: View, letters: dict[str, str], *, fold: bool) -> None:
    """Hang the tensors and children of repeated `nodes`, told as one, on `tree`."""
    if not nodes[0].path:
        for line in _tensor_lines(nodes, letters):
            tree.add(line)
    for found in repeats(nodes[0].children, fold=fold):
        places = [nodes[0].children.index(n) for n in found.nodes]
        alike = [node.children[i] for node in nodes for i in places]
        label, alike = _through(found, alike)
        line = _label(label, alike[0], view)
        lines = _tensor_lines(alike, letters)
        if len(lines) <= 2:
            for text in lines:
                line.append("  ").append_text(text)
            lines = []
        branch = tree.add(line)
        for text in lines:
            branch.add(text)
        _grow(branch, alike, view, letters, fold=fold)


def _through(found: Repeats, alike: list[Node]) -> tuple[str, list[Node]]:
    """A module that only holds one other is told together with it, on one line."""
    label = found.label
    while len(alike[0].children) == 1 and not alike[0].tensors:
        alike = [node.children[0] for node in alike]
        label += f".{alike[0].name}"
    return label, alike


def _label(label: str, node: Node, view: View) -> Text:
    from rich.text import Text

    line = Text(label, style="bold" if node.children else "")
    kind = view.kinds.get(node.path, "")
    return line.append(f" {kind}", style="dim") if kind else line


def _tensor_lines(nodes: Sequence[Node], letters: dict[str, str]) -> list[Text]:
    """The tensors of repeated modules; those with the same dimensions share a line."""
    from rich.text import Text

    lines: dict[str, tuple[list[str], Text]] = {}
    for tensors in zip(*(node.tensors for node in nodes)):
        text = _shape([t.dims for t in tensors], letters)
        text.append_text(_note(tensors[0], letters))
        lines.setdefault(text.plain, ([], text))[0].append(tensors[0].name.rpartition(".")[2])
    return [Text(", ".join(names) + " ", style="").append_text(text) for names, text in lines.values()]


def _note(tensor: TensorView, letters: dict[str, str]) -> Text:
    from rich.text import Text

    said = [f"the same tensor as {tensor.same_as}"] if tensor.same_as else []
    said += [f"fixed {letters[tensor.why]}"] if tensor.why else []
    return Text(f" ({'; '.join(said)})" if said else "", style="dim")


def _shape(blocks: Sequence[Sequence[Dim]], letters: dict[str, str]) -> Text:
    """A shape, every size with its groups; of repeated blocks at once."""
    from rich.text import Text

    dims = [_dim(dims, letters) for dims in zip(*blocks)]
    return Text("[").append_text(Text(", ").join(dims)).append("]")


def _dim(dims: Sequence[Dim], letters: dict[str, str]) -> Text:
    """One dimension of repeated blocks: its size (smallest to largest), its groups, and why it is fixed."""
    from rich.text import Text

    text = Text(_range([dim.size for dim in dims]))
    texts = {found.plain: found for found in map(_groups, dims)}
    shown = list(texts.values())
    if len(shown) > 1 and len(dims[0].terms) > 1:  # sums that grow from block to block would not be read
        shown = [Text(f"{_range([len(dim.groups) for dim in dims])} groups joined", style="italic")]
    elif len(shown) > 3:
        shown = [shown[0], Text("..", style="dim"), shown[-1]]
    if shown and shown[0].plain:
        text.append(" ").append_text(Text(",").join(shown))
        if dims[0].kept:
            text.append(f" {dims[0].kept} kept", style="dim italic")
    fixed = ",".join(sorted({letters[dim.why] for dim in dims if dim.why}))
    return text.append(f" fixed {fixed}", style="dim italic") if fixed else text


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}..{max(values)}"


def _groups(dim: Dim) -> Text:
    """The groups of a dimension: ``#1+#2`` one after the other, ``#1×#2`` of a product; long sums are shortened."""
    from rich.text import Text

    terms = [Text("×").join(number(n) for n in term.groups) for term in dim.terms]
    if len(terms) > 3:
        terms = [*terms[:2], Text("..", style="dim"), terms[-1]]
    return Text("+").join(terms)


def number(n: int) -> Text:
    """The number of a group in its colour."""
    from rich.text import Text

    return Text(f"#{n}", style=f"bold {COLOURS[n % len(COLOURS)]}")
