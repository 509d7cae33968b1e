"""Which variant of a layer is the fastest, by the clock."""

from __future__ import annotations

import json
from dataclasses import astuple, fields

from prunus.core.progress import progress
from prunus.runtime import cache, choose, gated, jit
from prunus.runtime.build import Builder, Convolution
from prunus.runtime.engine import CompiledNetwork
from prunus.runtime.graph import Graph
from prunus.runtime.pack import Choice
from prunus.runtime.profile import timed
from prunus.version import __version__

VARIANTS = 4  # of a layer, that the model of the inner loop likes best and that differ
ROUNDS = 7  # of which the least time counts
NEAR = 0.05  # of the weights: layers whose densities round to the same multiple are alike


def tune_(graph: Graph, *, images: int, threads: int) -> Graph:
    """Notes in every convolution which of a few variants is the fastest inside of the network, on this machine.

    The network is built once a variant, and all its layers are timed at once, in their order: what is in the caches
    is what will be.  What was found is kept beside the kernels, by processor, geometry and density.  With more threads
    than one their times are summed.
    """
    here = jit.machine()
    builder = Builder(graph, lanes=here.lanes, registers=here.registers, images=images, threads=threads)
    options, keys = {}, {}
    for number, layer in builder.convolutions.items():
        if gated.by_lists(graph.nodes[number]):
            continue  # how long it takes depends on what goes in
        keys[number] = _key(layer, threads)
        known = _known(keys[number], layer, here.registers)
        if known is not None:
            graph.nodes[number].numbers["choice"] = list(astuple(known))
            continue
        found = choose.best(layer.weight, layer.shape, layer.layouts[1], here.registers)
        options[number] = choose.variants(found, VARIANTS)
    best: dict[int, tuple[float, Choice]] = {}
    for i in progress(range(max(map(len, options.values()), default=0)), "timing variants of layers"):
        tried = {number: of[i] for number, of in options.items() if i < len(of)}
        for number, of in options.items():
            graph.nodes[number].numbers["choice"] = list(astuple(tried.get(number, of[0])))
        network = CompiledNetwork(graph, images=images, threads=threads)
        seconds = timed(network, ROUNDS)
        for number, choice in tried.items():
            taken = seconds[network.convolutions[number]]
            if number not in best or taken < best[number][0]:
                best[number] = taken, choice
    for number, (_, choice) in best.items():
        graph.nodes[number].numbers["choice"] = list(astuple(choice))
        cache.store(keys[number], json.dumps(astuple(choice)).encode())
    return graph


def _known(key: str, layer: Convolution, registers: int) -> Choice | None:
    """What was found before, if it is a choice that the layer can be run by."""
    try:
        choice = Choice(*json.loads(cache.stored(key) or b""))
    except (TypeError, ValueError):
        return None
    return choice if choose.allowed(choice, layer.weight.shape, layer.shape, layer.layouts[1], registers) else None


def _key(layer: Convolution, threads: int) -> str:
    """A name for layers that are run alike on this machine."""
    density = round(float((layer.weight != 0).mean()) / NEAR) if layer.weight.size else 0
    form = f"tuned by {__version__}: {[f.name for f in fields(Choice)]}"
    return jit.key_of(f"{form} {layer.weight.shape} {density} {layer.shape} {layer.layouts} {threads}")
