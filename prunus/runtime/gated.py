"""Where a graph has gates: which convolutions make active channels alone, and which read lists of them.

A gate's node gives the mask of one picture and, beside it, the lists of channels that are on and off.  Two passes of
`graph.fuse` look for what follows from that:

- `fuse_masks`: a product of a convolution and a mask is done by the convolution (``mask`` says whether ``before`` or
  ``after`` its activation), which then computes the channels that are on (``out``: the gate's number); so do
  convolutions between the gated one and a masked depthwise one, without a product.
- `find_lists`: what reads a map whose other channels are zero reads the list (``into``: the gate's number).  Where all
  readers do, channels that are off are not even written (``partial``).

A convolution that is marked as ``whole`` (`shares`) computes all channels and multiplies them by the mask.
"""

from __future__ import annotations

from prunus.runtime.graph import INFINITY, Graph, Node, _absorb

ZERO_OF_ZERO = ("", "silu", "hardswish", "gelu", "gelu_tanh")


def has_gates(graph: Graph) -> bool:
    """Whether a network has gates that the engine knows."""
    return any(node.kind == "gate" for node in graph.nodes.values())


def depthwise(node: Node) -> bool:
    """Whether a convolution makes every channel from the one with its number."""
    groups = node.numbers.get("groups", 1)
    return node.kind == "conv" and groups > 1 and groups == node.shape[1] == len(node.tensors["weight"])


def by_lists(node: Node) -> bool:
    """Whether a convolution makes, or reads, lists of channels."""
    return ("out" in node.numbers or "into" in node.numbers) and not node.numbers.get("whole")


def listable(node: Node) -> bool:
    """Whether a convolution can be run on lists of channels."""
    plain = node.kind == "conv" and "weight" in node.tensors and "out" not in node.numbers
    return plain and (node.numbers["groups"] == 1 or (depthwise(node) and node.tensors["weight"].shape[1] == 1))


def _gated(node: Node, gate: int, mask: str) -> None:
    node.inputs.append(gate)
    node.numbers |= {"out": gate, "mask": mask}


def fuse_masks(graph: Graph) -> None:
    """Products with masks go into the convolutions before them."""
    users = graph.users()
    order = {number: i for i, number in enumerate(graph.nodes)}
    for number, node in list(graph.nodes.items()):
        if node.kind != "mul" or graph.nodes[node.inputs[1]].kind != "gate":
            continue
        source, gate = node.inputs
        made = graph.nodes[source]
        able = listable(made) and len(made.inputs) == 1 and users[source] == [number] and order[gate] < order[source]
        after = "low" in made.numbers
        bounded = "low" in node.numbers
        needless = made.low >= 0 and node.low == 0 and node.numbers.get("high") == INFINITY
        if not able or (after and bounded and (not needless or node.numbers.get("function"))):
            continue
        if bounded and not after:
            made.numbers |= node.numbers
        _gated(made, gate, "after" if after else "before")
        _absorb(graph, number)
        users[source] = users.pop(number)
        while depthwise(made):
            chain, source = source, made.inputs[0]
            made = graph.nodes[source]
            alone = users[source] == [chain] and order[gate] < order[source]
            if not (alone and listable(made) and len(made.inputs) == 1):
                break
            _gated(made, gate, "")


def find_lists(graph: Graph) -> None:
    """Readers of maps most of whose channels may be zero are told by which gate; what was found before is forgotten."""
    for node in graph.nodes.values():
        node.numbers.pop("partial", None)
        if "into" in node.numbers:
            node.numbers.pop("into")
            node.inputs.pop()
    users = graph.users()
    holds: dict[int, int] = {}
    for number, node in graph.nodes.items():
        if node.kind == "conv" and "out" in node.numbers and _zero_where_off(graph, node):
            holds[number] = node.numbers["out"]
        if node.kind == "pool" and node.inputs[0] in holds:
            holds[number] = holds[node.inputs[0]]
    for number in reversed(list(graph.nodes)):
        if number in holds and users[number]:
            graph.nodes[number].numbers["partial"] = all(_lists(graph, number, reader) for reader in users[number])
    for node in graph.nodes.values():
        plain = node.kind == "mean" or (listable(node) or "out" in node.numbers) and node.numbers["groups"] == 1
        if node.numbers.get("whole") or not node.inputs or node.inputs[0] not in holds:
            continue
        if plain or (node.numbers.get("partial") and node.kind == "pool"):
            node.numbers["into"] = holds[node.inputs[0]]
            node.inputs.append(node.numbers["into"])


def _zero_where_off(graph: Graph, node: Node) -> bool:
    n = node.numbers
    inside = n.get("low", -INFINITY) <= 0 <= n.get("high", INFINITY) and n.get("function", "") in ZERO_OF_ZERO
    return residual(graph, node) is None and (n["mask"] != "before" or inside)


def residual(graph: Graph, node: Node) -> int | None:
    """What a convolution adds, if anything."""
    rest = [i for i in node.inputs[1:] if graph.nodes[i].kind != "gate"]
    return rest[0] if rest else None


def _lists(graph: Graph, number: int, reader: int) -> bool:
    """Whether a reader leaves channels that are off alone."""
    if reader < 0 or graph.nodes[reader].numbers.get("whole"):
        return False
    node = graph.nodes[reader]
    if node.kind == "mean":
        return True
    if node.kind == "pool":
        return bool(node.numbers.get("partial"))
    if node.kind != "conv" or number in node.inputs[1:] or not (listable(node) or "out" in node.numbers):
        return False
    return bool(node.numbers["groups"] == 1 or node.numbers.get("out") == graph.nodes[number].numbers.get("out"))
