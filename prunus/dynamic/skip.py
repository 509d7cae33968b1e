"""Execution that skips: channels that are off are not computed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import InputError
from prunus.core.callbacks import EXAMPLE, forward
from prunus.core.checks import check_arguments, is_int, one_of, sequence
from prunus.core.inference import Form, forms
from prunus.core.inputs import Inputs
from prunus.core.running import removed, undisturbed, with_batch
from prunus.core.wrappers import unwrapped
from prunus.dynamic.buckets import buckets
from prunus.dynamic.folded import Folded, chain_of, fold
from prunus.dynamic.gate import Gate
from prunus.dynamic.network import _of, dynamic_of, gates, static_
from prunus.dynamic.places import Convolution

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the channels, at which the break-even is looked for
WORTH = 0.95  # of the time of whole layers, below which a network skips
MODES = ("auto", "always", "never")


class Skipping(nn.Module):
    """A gated layer with its norm, activation and depthwise convolution, computed on active channels alone.

    Attributes:
        gate: of its output channels, or None; `source`: the layer whose masked map it reads, or None.
        compact: whether it may give the active channels alone.
        break_even: the share of multiply-adds above which the whole layer is faster.
        active: of the last input, the channels that its output holds; None when it holds all.
        on: ``(N, C)``, of the last inputs, which channels are on.
    """

    source: Skipping | None

    def __init__(self, head: Folded, steps: list[Any], gate: Gate | None, source: Skipping | None, compact: bool):
        super().__init__()
        self.head, self.steps, self.compact, self.break_even = head, steps, compact, 1.0
        self.gate = gate
        self.__dict__["source"] = source  # no child: it is somewhere in the network already
        self.active: Tensor | None = None
        self.on: Tensor | None = None

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels of the whole layer."""
        return self.head.conv.in_channels, self.head.conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        source = self.source
        held = source.active if source is not None else None
        mask = self._mask(x, held)
        if len(x) > 1 and mask is not None and self.gate is not None and self.gate.fixed is None:
            return self._several(x, mask)
        return self._one(x, held, mask)

    def _mask(self, x: Tensor, held: Tensor | None) -> Tensor | None:
        """The mask ``(N, C)`` of what goes in, of which `x` holds the channels `held`."""
        self.active = self.on = None
        if self.gate is None:
            return None
        gate, seen = self.gate, self.gate.see(x)
        if held is not None:
            seen = seen.new_zeros(len(x), self.channels[0]).index_copy(1, held, seen)
        saliency = gate.respond(seen)
        if len(x) > 1 or gate.open or gate.fixed is not None:
            return gate.mask_of(saliency)[0]
        mask = gate.choose(saliency)  # of one input; the floor seldom holds
        return mask if int(mask.count_nonzero()) >= gate.floor else gate.mask_of(saliency)[0]

    def _one(self, x: Tensor, held: Tensor | None, mask: Tensor | None) -> Tensor:
        """One input, or inputs whose lists are alike."""
        into, out = held, None
        if self.gate is not None and mask is not None:
            if self.gate.fixed is not None:
                out = mask.topk(self.gate.fixed, dim=1).indices[0]
                if len(x) > 1:
                    return self._whole(x, into, mask)
            else:
                self.on = mask != 0
                out = self.on[0].nonzero().flatten()
                if into is None and self.source is not None and self.source.on is not None:
                    into = self.source.on[0].nonzero().flatten()
                share = len(out) / self.channels[1] * (1 if into is None else len(into) / self.channels[0])
                if share > self.break_even:
                    return self._whole(x, held, mask)
                x = x if into is held else x.index_select(1, into)  # type: ignore[arg-type]
        y = self.run(x, out, into)
        if out is None or mask is None:
            return y
        y = y * mask[:, out].reshape(1, -1, *[1] * (y.dim() - 2))
        if self.compact:
            self.active = out
            return y
        return y.new_zeros(1, self.channels[1], *y.shape[2:]).index_copy_(1, out, y)

    def _whole(self, x: Tensor, held: Tensor | None, mask: Tensor) -> Tensor:
        """The whole layer, masked."""
        return self.run(x, None, held) * mask[(..., *[None] * (x.dim() - 2))]

    def _several(self, x: Tensor, mask: Tensor) -> Tensor:
        """Inputs with masks of their own: those that are alike together, with all channels that any of them needs."""
        self.on = mask != 0
        before = self.source.on if self.source is not None else None
        groups = buckets(self.on, before, self.break_even)
        if groups is None:
            return self._whole(x, None, mask)
        full: Tensor | None = None
        for rows in groups:
            out = self.on[rows].any(0).nonzero().flatten()
            into = before[rows].any(0).nonzero().flatten() if before is not None else None
            part = x.index_select(0, rows)
            y = self.run(part if into is None else part.index_select(1, into), out, into)
            y = y * mask[rows][:, out].reshape(len(rows), -1, *[1] * (y.dim() - 2))
            if full is None:
                full = y.new_zeros(len(x), self.channels[1], *y.shape[2:])
            full[rows[:, None], out] = y
        assert full is not None
        return full

    def run(self, x: Tensor, out: Tensor | None, into: Tensor | None) -> Tensor:
        """The chain on some channels."""
        y = self.head(x, out, into)
        for step in self.steps:
            y = step(y) if isinstance(step, nn.Module) else step(y, out)
        return y

    def extra_repr(self) -> str:
        """The sizes and the break-even, for ``print``."""
        c_in, c_out = self.channels
        return f"{c_in}, {c_out}, break_even={self.break_even:.2f}"


@torch.no_grad()
def skipping(model: nn.Module, example_inputs: Any, *, dense: str = "auto") -> nn.Module:
    """A copy of a network with gates, for evaluation, that computes active channels alone.

    At one input, rows and columns of weights are gathered, and maps stay compact between gated layers; before a sum
    they are spread out.  Several inputs are divided into groups of equal or near masks.  Where a layer has more active
    channels than its break-even, measured here at one input, it is computed whole; so are all layers where the network
    gains nothing by skipping (`prunus.dynamic.report`).  Outputs are those of the masked
    network, to rounding.

    Args:
        example_inputs: what forward takes.
        dense: ``auto``; ``always`` or ``never`` compute whole layers.

    Raises: `InputError` for a network without gates, or in training mode.

    >>> import prunus, torch
    >>> _ = torch.manual_seed(0)
    >>> layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()]
    >>> net, x = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 2, 3)).eval(), torch.randn(1, 3, 9, 9)
    >>> found = prunus.dynamic.dynamic_(net, x, "fbs")
    >>> for gate in prunus.dynamic.gates(net):
    ...     _ = gate.count.fill_(gate.outputs // 2)
    >>> fast = skipping(net, x, dense="never")
    >>> torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)
    """
    check_arguments(locals(), dense=one_of(*MODES))
    network, layers = prepare(model, Skipping)
    shapes = inputs_of_layers(network, layers, example_inputs)
    for name, layer in layers.items():
        layer.break_even = break_even(layer, shapes[name]) if dense == "auto" else float(dense == "never")
    if dense == "auto":
        _whole_if_faster(network, list(layers.values()), with_batch(Inputs.of(example_inputs), 1))
    return network


def _whole_if_faster(network: nn.Module, layers: list[Skipping], inputs: Inputs, times: int = 7) -> None:
    """Compute every layer whole where the network as a whole gains nothing by skipping, on the example."""
    chosen = [layer.break_even for layer in layers]
    taken: dict[bool, list[float]] = {True: [], False: []}
    for i in range(times + 1):  # in turns
        for whole in taken:
            for layer, share in zip(layers, chosen, strict=True):
                layer.break_even = 0.0 if whole else share
            begun = time.perf_counter()
            forward(network, inputs, "example_inputs", EXAMPLE)
            if i:
                taken[whole].append(time.perf_counter() - begun)
    gains = min(taken[False]) < WORTH * min(taken[True])
    for layer, share in zip(layers, chosen, strict=True):
        layer.break_even = share if gains else 0.0


def fixed_(model: nn.Module, counts: Sequence[int]) -> None:
    """Let every gate keep as many channels for every input, its most salient ones: shapes are then static.

    ``prunus.export.to_onnx(skipping(model, x), x, path, batch=1)`` writes such a network, gathers and all, as ONNX.

    Args:
        counts: channels a gate, in order: e.g. the rounded means of `Realised.kept`.

    Raises: `InputError` for another number of counts, or one that its gate does not have.
    """
    check_arguments(locals(), counts=sequence("whole numbers of at least 0", is_int))
    found = gates(model)
    if len(counts) != len(found) or not all(1 <= k <= gate.outputs for k, gate in zip(counts, found)):
        wide = [gate.outputs for gate in found]
        raise InputError(f"counts={list(counts)}: expected a number for each of {len(found)} gates, from 1 to {wide}.")
    for gate, count in zip(found, counts, strict=True):
        gate.fixed = int(count)


def prepare(model: nn.Module, kind: Callable[..., Skipping]) -> tuple[nn.Module, dict[str, Any]]:
    """A copy in which gated layers, and those that read their maps, are of a `kind`."""
    model = unwrapped(model)
    placement = _of(model).placement
    if model.training:
        raise InputError("the network is in training mode, in which nothing can be skipped: model.eval().")
    network = copy.deepcopy(model)
    found = gates(network)
    static_(network)
    layers: dict[str, Any] = {}
    by_gate: dict[int, Skipping] = {}
    for work in placement.work:
        module = dict(network.named_modules()).get(work.layer)
        plain = isinstance(module, Convolution) and module.groups == 1
        place = placement.places[work.out] if work.out >= 0 else None
        grouped = place is not None and work.layer == place.layer and not plain
        if grouped or not plain or (work.out < 0 and work.into < 0):
            continue
        chain, relu = chain_of(place, work.layer)
        head, steps = fold(network, chain, relu)
        gate = found[work.out] if place is not None else None
        layer = kind(head, steps, gate, by_gate.get(work.into), place is not None and place.compact)
        layers[work.layer] = layer
        if place is not None:
            by_gate[work.out] = layer
        for name in chain[1:]:
            _put(network, name, nn.Identity())
        _put(network, work.layer, layer)
    return network.eval(), layers


def inputs_of_layers(network: nn.Module, layers: dict[str, Any], example_inputs: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of what goes into the layers, at one input, with all channels."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            shapes.setdefault(name, (1, module.channels[0], *args[0].shape[2:]))

        return hook

    with undisturbed(network), removed(m.register_forward_pre_hook(note(n)) for n, m in layers.items()):
        forward(network, with_batch(Inputs.of(example_inputs), 1), "example_inputs", EXAMPLE)
    return shapes


def break_even(layer: Skipping, shape: tuple[int, ...], times: int = 5) -> float:
    """The share of multiply-adds up to which gathering is faster than the whole layer, by the clock."""
    c_in, c_out = layer.channels
    x = torch.randn(shape, dtype=layer.head.weight.dtype, device=layer.head.weight.device)

    def seconds(call: Callable[[], Any]) -> float:
        call()
        taken = []
        for _ in range(times):
            begun = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begun)
        return sorted(taken)[len(taken) // 2]

    whole = seconds(lambda: layer.run(x, None, None) * x.new_ones(1, c_out, *[1] * (x.dim() - 2)))
    best, narrow = 0.0, layer.source is not None
    for share in SHARES:
        out = torch.arange(max(int(share * c_out), 1))
        into = torch.arange(max(int(share * c_in), 1)) if narrow else None
        part = x if into is None else x[:, : len(into)]

        def gathered(part: Tensor = part, out: Tensor = out, into: Tensor | None = into) -> Tensor:
            y = layer.run(part, out, into)
            return y if layer.compact else y.new_zeros(1, c_out, *y.shape[2:]).index_copy_(1, out, y)

        if seconds(gathered) < whole:
            best = share * share if narrow else share
    return best


def report(network: nn.Module) -> list[str]:
    """What is skipped and what is computed whole in a `network` of `skipping`, layer by layer, in words."""
    check_arguments(locals())
    layers = {n: m for n, m in network.named_modules() if isinstance(m, Skipping) and m.gate is not None}
    whole = [name for name, layer in layers.items() if layer.break_even == 0]
    rows = [f"{len(layers) - len(whole)} of {len(layers)} gated layers skip channels that are off"]
    if whole:
        rows.append(f"computed whole, since gathering gains nothing: {', '.join(whole)}")
    return rows


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _skips(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, list[str]]:
    network = skipping(model, inputs)
    return network, report(network)


forms["gates"] = Form(lambda model: dynamic_of(model) is not None, _skips)
