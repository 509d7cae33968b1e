"""Where gates go: behind which convolution, on which module's output, and what they save; read off the traced forward.

A gate belongs to a convolution.  It looks at what goes in, and masks what comes out at the last place before another
layer mixes the channels: behind the norm and the activation, and behind a depthwise convolution with its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from prunus.core import Groups, NothingToPruneError, Operator, TraceError
from prunus.core.checks import check_arguments

NORMS = ("native_batch_norm", "batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training")
ACTIVATIONS = ("hardtanh", "silu", "hardswish", "gelu", "leaky_relu", "elu", "sigmoid", "tanh", "mish", "relu")
MIXING = ("convolution", "mm", "addmm", "bmm", "baddbmm")
POOLS = ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "relu")
PASSING = ("clone", "dropout", "contiguous", "detach", "alias")
Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Place:
    """One gate's place.

    Attributes:
        layer: the convolution whose output channels are gated, and whose input the gate looks at.
        site: the module whose output is masked: a norm, an activation, or the convolution itself.
        relu: whether forward applies a rectifier to that output next; the gate then rectifies before it masks.
        inputs, outputs: channels of the convolution.
        depthwise: depthwise convolutions between the two, whose channels go with those of the layer.
        chain: every module from the layer to the site, in order.
        compact: whether nothing but convolutions read the masked map (through pools), so that it may hold active
            channels alone.
    """

    layer: str
    site: str
    relu: bool
    inputs: int
    outputs: int
    depthwise: tuple[str, ...]
    chain: tuple[str, ...]
    compact: bool = False


@dataclass(frozen=True)
class Work:
    """The multiply-adds of one layer for one sample, and the gates that save of them.

    `out` and `into` number the gates of its output and of its input channels, -1 for none; `macs` is of the whole
    layer.
    """

    layer: str
    macs: int
    out: int = -1
    into: int = -1


@dataclass(frozen=True)
class Placement:
    """All places of a network in order of execution, the layers with what they cost, and what gets no gate, and why.

    Attributes:
        work: multiply-adds of every layer, and which gates stand before and behind it.
        refused: name and reason of every convolution without a gate.
    """

    places: tuple[Place, ...]
    work: tuple[Work, ...]
    refused: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [f"{len(self.places)} gates"]
        rows += [
            f"  {p.layer}: {p.outputs} channels, masked behind {p.site}{' and its rectifier' if p.relu else ''}"
            for p in self.places
        ]
        return "\n".join(rows + [f"  no gate: {what}, {why}" for what, why in self.refused])


def placement(model: nn.Module, groups: Groups) -> Placement:
    """Every gate that `model` can have, from its trace.

    Not gated: the stem (it reads no other layer's output), a convolution beside a residual branch (shortcut), one whose
    channels are the network's output, and one with shared or functional weights.

    Raises: `NothingToPruneError` when no layer can be gated, with the reasons.

    >>> import prunus, torch
    >>> net = prunus.zoo.resnet20()
    >>> found = placement(net, prunus.trace(net, torch.randn(1, 3, 32, 32)))
    >>> len(found.places), found.places[0].layer, found.places[0].site, found.places[0].relu
    (18, 'layer1.0.conv1', 'layer1.0.bn1', True)
    """
    check_arguments(locals())
    walk = _Walk(model, groups)
    places: list[Place] = []
    ends: list[int] = []
    refused: list[tuple[str, str]] = []
    for i, op in enumerate(walk.ops):
        module = walk.modules.get(op.module)
        if op.name != "convolution" or _is_depthwise(module):
            continue
        why = walk.refusal(i)
        if why:
            refused.append((op.module or op.name, why))
            continue
        place, end = walk.follow(i)
        if walk.reaches_output(end):
            refused.append((op.module, "its channels are the network's output"))
        elif walk.is_shortcut(i, end):
            refused.append((op.module, "it is the shortcut of a residual block"))
        else:
            places.append(place)
            ends.append(end)
    if not places:
        told = "; ".join(f"{what}: {why}" for what, why in refused[:3])
        raise NothingToPruneError(
            f"{type(model).__name__} has no layer that can be gated ({told or 'it has no convolutions'}). Gates go "
            "behind convolutions that read another layer's output and whose channels are not the network's own output; "
            "prune the network for all inputs alike instead: prunus.prune_."
        )
    masked = {end: number for number, end in enumerate(ends)}
    sources = {i: masked.get(walk.source(op.reads[0], masked), -1) for i, op in walk.layers()}
    places = [replace(p, compact=walk.only_layers_read(end)) for p, end in zip(places, ends)]
    return Placement(tuple(places), tuple(_work(walk, groups, places, sources)), tuple(refused))


def _work(walk: _Walk, groups: Groups, places: list[Place], sources: Mapping[int, int]) -> Iterable[Work]:
    """What every layer with multiply-adds costs for one sample."""
    gate = {p.layer: n for n, p in enumerate(places)} | {d: n for n, p in enumerate(places) for d in p.depthwise}
    for i, op in enumerate(groups.operators):
        if op.macs is None:
            continue
        macs = op.macs.coefficient
        for axis in op.macs.axes:
            macs *= len(groups.axes[axis])
        module, out = walk.modules.get(op.module), gate.get(op.module, -1)
        plain = isinstance(module, Convolution) and module.groups == 1
        yield Work(op.module or op.name, round(macs), out, sources.get(i, -1) if plain else -1)


def _versions(groups: Groups) -> tuple[list[Operator], set[int]]:
    """The operators and the outputs, where a tensor that is changed in place has another number afterwards."""
    now: dict[int, int] = {}
    fresh = max((t for op in groups.operators for t in (*op.reads, *op.writes)), default=0) + 1
    out = []
    for op in groups.operators:
        reads, writes = tuple(now.get(t, t) for t in op.reads), []
        for t in op.writes:
            if t in op.reads:
                now[t], fresh = fresh, fresh + 1
            writes.append(now.get(t, t))
        out.append(replace(op, reads=reads, writes=tuple(writes)))
    return out, {now.get(t, t) for t in groups.outputs}


def _is_depthwise(module: Any) -> bool:
    return isinstance(module, Convolution) and module.groups == module.in_channels == module.out_channels > 1


class _Walk:
    """The operators of a forward, and the ways through them."""

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self.modules = dict(model.named_modules())
        self.ops, self.outputs = _versions(groups)
        self.readers: dict[int, list[int]] = {}
        self.writer: dict[int, int] = {}
        for i, op in enumerate(self.ops):
            for t in op.reads:
                self.readers.setdefault(t, []).append(i)
            for t in op.writes:
                self.writer.setdefault(t, i)
        self.calls = Counter(op.module for op in self.ops if op.name not in ("empty", *PASSING))
        if not self.ops:
            raise TraceError("the trace holds no operators; trace the network with prunus.trace.")

    def layers(self) -> list[tuple[int, Operator]]:
        """Every convolution, by its number."""
        return [(i, op) for i, op in enumerate(self.ops) if op.name == "convolution"]

    def refusal(self, i: int) -> str:
        """Why no gate can be attached to the convolution at operator `i`; empty when one can."""
        op = self.ops[i]
        module = self.modules.get(op.module)
        if not isinstance(module, Convolution):
            return "it is no convolution module, so there is nothing to attach a gate to"
        if self.calls[op.module] > 1:
            return "it is called several times in one forward, or pads by itself"
        if math.prod(op.shapes[0][2:]) == 1:
            return "its map has one position, so that a gate costs as much as it can save"
        before = {op.reads[0]}
        for j in range(i - 1, -1, -1):
            if before & set(self.ops[j].writes):
                if self.ops[j].name == "convolution":
                    return ""
                before |= set(self.ops[j].reads)
        return "it is the stem: it reads the network's input"

    def follow(self, i: int) -> tuple[Place, int]:
        """The place of the gate of the convolution at `i`, and the number of the tensor that is masked."""
        op = self.ops[i]
        module = self.modules[op.module]
        tensor, chain, relu, depthwise = op.writes[0], [op.module], False, []
        while len(readers := self.readers.get(tensor, [])) == 1:
            after = self.ops[readers[0]]
            owner = self.modules.get(after.module)
            own = owner is not None and self.calls[after.module] == 1 and not list(owner.children())
            name = after.name.rstrip("_")
            if tensor in self.outputs or after.reads[0] != tensor:
                break
            if (name in NORMS and own and not relu) or (name in ACTIVATIONS and own):
                chain.append(after.module)
                relu = False
            elif name == "relu":  # of a function, or of a module that is called often: the gate does it, too
                relu = True
            elif name == "convolution" and _is_depthwise(owner) and own and not relu:
                chain.append(after.module)
                depthwise.append(after.module)
            elif name not in PASSING:
                break
            tensor = after.writes[0]
        wide = (module.in_channels, module.out_channels)
        return Place(op.module, chain[-1], relu, *wide, tuple(depthwise), tuple(chain)), tensor

    def reaches_output(self, tensor: int) -> bool:
        """Whether the channels of a tensor arrive at the model's output without another layer between."""
        return bool(self.descend(tensor, MIXING) & self.outputs)

    def descend(self, tensor: int, but: tuple[str, ...] = ()) -> set[int]:
        """A tensor and all that is computed from it, not beyond operators named in `but`."""
        reached = {tensor}
        for op in self.ops:
            if op.name not in but and reached & set(op.reads):
                reached |= set(op.writes)
        return reached

    def is_shortcut(self, i: int, end: int) -> bool:
        """Whether the sum that reads `end` adds it to what comes from the same input through more layers."""
        start = self.ops[i].reads[0]
        depth = {start: 0}  # most convolutions between the input and a tensor
        for op in self.ops:
            came = [depth[t] for t in op.reads if t in depth]
            if came:
                depth |= {t: max(depth.get(t, 0), max(came) + (op.name == "convolution")) for t in op.writes}
        later = self.descend(end)
        for j in self.readers.get(end, []):
            op = self.ops[j]
            if op.name.rstrip("_") == "add" and len(op.reads) == 2:
                other = op.reads[1] if op.reads[0] == end else op.reads[0]
                if other not in later and depth.get(other, 0) > depth[end]:
                    return True
        return False

    def source(self, tensor: int, masked: Mapping[int, int]) -> int:
        """The tensor, as far back as a `masked` one, whose zero channels are zero channels of `tensor`, too."""
        while tensor not in masked and tensor in self.writer:
            op = self.ops[self.writer[tensor]]
            if op.name.rstrip("_") not in (*POOLS, *PASSING) or op.writes[0] != tensor or op.reads[0] == tensor:
                break
            tensor = op.reads[0]
        return tensor

    def only_layers_read(self, tensor: int) -> bool:
        """Whether plain convolutions alone read a tensor, through pools and rectifiers at most."""
        readers = self.readers.get(tensor, [])
        if not readers or tensor in self.outputs:
            return False
        for j in readers:
            op, module = self.ops[j], self.modules.get(self.ops[j].module)
            if op.name == "convolution":
                if not isinstance(module, Convolution) or module.groups != 1 or self.calls[op.module] > 1:
                    return False
            elif op.name.rstrip("_") not in (*POOLS, *PASSING) or not self.only_layers_read(op.writes[0]):
                return False
        return True
