"""The page of a traced network: every group, and where its slices are in the model."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from prunus.core.checks import check_arguments, instance
from prunus.report import words
from prunus.report.indices import compact
from prunus.report.modules import Node, grow, repeats
from prunus.report.page import render
from prunus.report.view import VERB, TensorView, View, parts, proportions

FEW = 4  # groups of one dimension that are named in the tree; more are counted


def groups_page(view: View, *, name: str = "") -> str:
    """One self-contained page that shows which slices of a model go together: nothing is fetched from anywhere.

    Every group and every tensor has an address on the page (``#group=ID``, ``#tensor=NAME``), so that it can be linked.

    Args:
        view: a traced network.
        name: what the network is called.
    """
    check_arguments(locals(), view=instance("a prunus.report.View", View))
    groups = view.groups
    most = max((group.units for group in groups), default=1)
    return render(
        "groups.html.j2",
        {
            "name": words.short_name(name) or "a network",
            "facts": [
                *([name] if name else []),
                f"{view.cost['params']:,} parameters",
                f"{words.short(view.cost['macs'])} multiply-adds per input",
            ],
            "count": len(groups),
            "units": f"{groups.units:,}",
            "groups": [_entry(view, n, most) for n in range(1, len(groups) + 1)],
            "kinds": list(dict.fromkeys(many for _, many in view.unit_names)),
            "tree": _module(grow(view), view, "the network", repeated=False),
            "fixed": [{"why": why, "what": [_fixed(view, w) for w in what]} for why, what in view.reasons.items()],
            "data": as_data(view),
        },
    )


def as_data(view: View) -> dict[str, Any]:
    """What the page's script knows: every group with its slices, every tensor with its dimensions.

    An index pattern that several slices share is stored once.
    """
    rows = {tensor.name: row for row, tensor in enumerate(view.tensors)}
    patterns: dict[str, int] = {}
    groups = []
    ratios = proportions(view.groups)
    for n, group in enumerate(view.groups, 1):
        slices = []
        for part in group.slices:
            pattern = json.dumps(compact(part.index), separators=(",", ":"))
            at = patterns.setdefault(pattern, len(patterns))
            slices.append({"tensor": rows[part.name], "dim": part.dim, "verb": VERB[part.role], "index": at})
        groups.append(
            {
                "id": group.id,
                "units": group.units,
                "kind": view.unit_names[n - 1],
                "parts": parts(group),
                "with": sorted({other for ratio in ratios if n in ratio for other in ratio if other != n}),
                "cost": view.unit_costs[n - 1],
                "slices": slices,
            }
        )
    tensors = [
        {
            "name": tensor.name,
            "same_as": tensor.same_as,
            "why": tensor.why,
            "dims": [
                {"size": dim.size, "why": dim.why, "kept": dim.kept, "terms": [[*term.groups] for term in dim.terms]}
                for dim in tensor.dims
            ],
        }
        for tensor in view.tensors
    ]
    return {
        "groups": groups,
        "tensors": tensors,
        "indices": [json.loads(pattern) for pattern in patterns],
        "cost": view.cost,
    }


def _entry(view: View, n: int, most: int) -> dict[str, Any]:
    """A group in the list."""
    group, cost, unit = view.groups[n - 1], view.unit_costs[n - 1], view.unit_names[n - 1]
    return {
        "number": n,
        "id": group.id,
        "link": f"#group={quote(group.id, safe='/')}",
        "units": group.units,
        "kind": unit[1],
        "marked": unit[0] not in ("channel", "neuron"),
        "parts": parts(group),
        "width": 100 * group.units / most,
        "params": cost["params"],
        "macs": cost["macs"],
        "cost": f"{words.short(cost['params'])} params, {words.short(cost['macs'])} MACs",
    }


def _module(node: Node, view: View, label: str, *, repeated: bool) -> dict[str, Any]:
    """A module in the tree; all but the first of repeated blocks are shut until something in them is chosen."""
    children = []
    for found in repeats(node.children):
        children += [_module(n, view, n.name, repeated=i > 0) for i, n in enumerate(found.nodes)]
    return {
        "label": label,
        "path": node.path,
        "kind": view.kinds.get(node.path, ""),
        "open": not repeated,
        "rows": _rows(node, view),
        "children": children,
        "count": sum(len(n.tensors) for n in node.walk()),
    }


def _rows(node: Node, view: View) -> list[dict[str, Any]]:
    """The tensors of a module; those with the same dimensions in the same groups share a row."""
    alike: dict[object, list[TensorView]] = {}
    for tensor in node.tensors:
        alike.setdefault((tensor.dims, tensor.same_as, tensor.why), []).append(tensor)
    return [_row(tensors, view) for tensors in alike.values()]


def _row(tensors: list[TensorView], view: View) -> dict[str, Any]:
    """Tensors in the tree, and their dimensions, each with links to its groups."""
    first, dims = tensors[0], []
    for dim in first.dims:
        links = [
            {"number": n, "id": view.groups[n - 1].id, "sign": "×" if i else "+" if at else ""}
            for at, term in enumerate(dim.terms)
            for i, n in enumerate(term.groups)
        ]
        links = links if len(links) <= FEW else []
        dims.append({"size": dim.size, "why": dim.why, "groups": dim.groups, "links": links})
    names = [{"name": t.name, "label": t.name.rpartition(".")[2], "link": f"#tensor={quote(t.name)}"} for t in tensors]
    said = f"the same tensor as {first.same_as}" if first.same_as else first.why and f"fixed: {first.why}"
    return {"tensors": names, "dims": dims, "note": said}


def _fixed(view: View, what: str) -> dict[str, str]:
    """A fixed thing; a link to its tensor where there is one."""
    name = what.partition(":")[0]
    found = next((t for t in (name, f"{name}.weight") if t in view.groups.tensors), None)
    return {"what": what, "link": f"#tensor={quote(found)}" if found else ""}
