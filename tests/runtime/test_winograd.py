"""Winograd's convolution against torch: any size, any patch, and nothing outside of its buffers."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.errors import InputError
from prunus.core.inputs import Inputs
from prunus.runtime import channels, compile, jit, memory, pack, patches, winograd
from prunus.runtime.capture import capture
from prunus.runtime.choose import allowed, best
from prunus.runtime.engine import CompiledNetwork
from prunus.runtime.layout import Layout
from tests.runtime.one_layer import error, expected, from_tiles, to_tiles

CLOSE = {2: 2e-6, 4: 3e-5}  # by the rows of a patch: the points 2 and -2 cost a digit


@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_are_a_convolution(m: int) -> None:
    r = np.random.default_rng(0)
    d, w = r.standard_normal((m + 2, m + 2)), r.standard_normal((3, 3))
    a, b, g = (np.array(of[m], dtype=np.float64) for of in (winograd.OUTPUT_OF, winograd.INPUT_OF, patches.WEIGHT_OF))
    got = a @ ((g @ w @ g.T) * (b @ d @ b.T)) @ a.T
    want = [[(d[i : i + 3, j : j + 3] * w).sum() for j in range(m)] for i in range(m)]
    assert np.allclose(got, want, rtol=0, atol=1e-12)


@st.composite
def cases(draw):
    m, lanes = draw(st.sampled_from([2, 4])), draw(st.sampled_from([4, 8, 16]))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    images = draw(st.sampled_from([1, 2, lanes]))
    size = draw(st.integers(3, 33)), draw(st.integers(3, 33))
    c_in, c_out = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    choice = pack.Choice(m, draw(st.integers(1, 5)), 1, draw(st.integers(1, 5)), by="winograd")
    return lanes, images, size, (c_in, c_out), pack.Shape(padding=padding), choice


def run(
    x,
    weight,
    bias,
    shape: pack.Shape,
    choice: pack.Choice,
    *,
    residual=None,
    relu,
    lanes,
    threads,
    lists=None,
    mask=None,
    when="",
):
    """The convolution's output, or None for a picture that has no room for a patch."""
    n, c_in, height, width = x.shape
    c_out = len(weight)
    y = Layout.of(shape.output(height, 3, 0), shape.output(width, 3, 1), lanes=lanes, images=n)
    if choice.rows not in patches.fits(weight.shape, shape, y):
        return None
    source, y, r = y.before(1, height, width).with_halo(shape.halo((3, 3))), y.with_halo(1), y.with_halo(2)
    whole = patches.kernel(source, y, r if residual is not None else None, choice)
    many = np.prod([-(-size // choice.rows) for size in y.tile])
    k = replace(whole, patches=min(int(many), choice.columns), mask=when, listed=lists is not None)
    starts, strips = patches.starts(source, y, r, shape, k)
    held_x, held_y = to_tiles(x, source, c_in, memory.buffer), memory.buffer(c_out * y.plane)
    held_r = to_tiles(residual, r, c_out, memory.buffer) if residual is not None else 0
    patches.check_bounds(starts, k, (c_in, c_out), (held_x.size, held_y.size, c_out * r.plane))
    ins, outs = lists or (np.arange(c_in), np.arange(c_out))
    planes = source.plane, y.plane, r.plane
    t = channels.tables(weight.shape, 1, [(ins, outs)], planes, together=k.together, threads=threads)
    t, packed, (plane, products, share) = (
        patches.tables(t, weight.shape, k),
        patches.pack(weight, k),
        patches.work(c_in, c_out, k),
    )
    work = memory.buffer(threads * share + 64)
    work[-64:] = 77
    arrays = (bias, packed, t.ins, t.outs, t.jobs, t.segments, starts, strips)
    data = [memory.aligned(a) for a in arrays]
    low, factors = 0.0 if relu else -np.inf, memory.aligned(bias if mask is None else mask)
    numbers = [len(strips), low, np.inf, work, plane, products, share, packed[0].nbytes, factors, c_in, c_out]
    arguments = memory.slots([held_x, held_y, held_r, *data, *numbers])
    for thread in range(threads):
        memory.call(jit.address(winograd.emit(k)), arguments, thread, threads)
    assert (work[-64:] == 77).all()
    return from_tiles(held_y, y, c_out)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 99), st.booleans(), st.booleans(), st.sampled_from([1, 1, 2, 3]))
def test_equals_torch_at_any_geometry(case, seed: int, adds: bool, relu: bool, threads: int) -> None:
    lanes, images, size, (c_in, c_out), shape, choice = case
    r = np.random.default_rng(seed)
    x = r.standard_normal((images, c_in, *size)).astype(np.float32)
    weight = r.standard_normal((c_out, c_in, 3, 3)).astype(np.float32)
    bias = r.standard_normal(c_out).astype(np.float32)
    want = expected(x, weight, bias, shape)
    residual = r.standard_normal(want.shape).astype(np.float32) if adds else None
    got = run(x, weight, bias, shape, choice, residual=residual, relu=relu, lanes=lanes, threads=threads)
    if got is not None:
        assert error(got, expected(x, weight, bias, shape, residual, relu)) < CLOSE[choice.rows]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_is_run_by_it_and_stays_what_it_was(threads: int) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(24, 40, 3, padding=1), nn.Conv2d(40, 24, 3, padding=1)

        def forward(self, x):
            return (x + self.b(nn.functional.silu(self.a(x)))).relu()

    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    for n in (1, 3, 16):
        x = torch.randn(n, 24, 21, 30)
        compiled = compile(model, x, threads=threads)
        assert len(compiled.report()["winograd"]) == 4
        want = model.double()(x.double()).detach()
        model.float()
        assert float((compiled(x) - want).abs().max() / want.abs().max()) < CLOSE[4]


def test_only_dense_layers_of_three_by_three_are_run_by_it() -> None:
    y = Layout.of(28, 28, lanes=16)
    dense = np.random.default_rng(0).standard_normal((64, 64, 3, 3))
    sparse = np.where(np.random.default_rng(1).random(dense.shape) < 0.05, dense, 0)
    shape = pack.Shape(padding=(1, 1))
    assert best(dense, shape, y, 32)[0][1].by == "winograd" and best(sparse, shape, y, 32)[0][1].by == "lists"
    wide, strided = (64, 64, 5, 5), pack.Shape(2, (1, 1))
    for size, other in ((wide, shape), ((64, 64, 3, 3), strided), ((64, 1, 3, 3), pack.Shape(groups=64))):
        assert not patches.fits(size, other, y)
    assert patches.fits((4, 4, 3, 3), shape, Layout.of(14, 14, lanes=16)) == [2]


def test_bounds_are_proved() -> None:
    shape, choice = pack.Shape(padding=(1, 1)), pack.Choice(4, 2, 3, 4, by="winograd")
    y = Layout.of(32, 32, lanes=16)
    x = y.with_halo(1)
    k = patches.kernel(x, y, y, choice)
    starts, _ = patches.starts(x, y, y, shape, k)
    room = [3 * x.plane, 5 * y.plane, 5 * y.plane]
    patches.check_bounds(starts, k, (3, 5), room)
    for i, what in enumerate(("input", "output", "residual")):
        less = [size - (y.plane if j == i else 0) for j, size in enumerate(room)]
        with pytest.raises(InputError, match=f"of its {what}"):
            patches.check_bounds(starts, k, (3, 5), less)
    with pytest.raises(InputError, match="of its input"):  # no halo where the padding reaches into one
        patches.check_bounds(patches.starts(y, y, y, shape, k)[0], k, (3, 5), room)


def test_a_strip_does_not_leave_the_patches() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(1, 3, 27, 45)
    layout = Layout.of(27, 45, lanes=jit.machine().lanes)
    for columns in (1, 3, 4):
        graph = capture(model, Inputs.of(x))
        choice = pack.Choice(2, columns, 3, 3, by="winograd")
        if not allowed(choice, tuple(model.weight.shape), pack.Shape(padding=(1, 1)), layout, jit.machine().registers):
            continue  # this processor has too few registers
        for node in graph.nodes.values():
            if node.kind == "conv":
                node.numbers["choice"] = list(astuple(choice))
        network = CompiledNetwork(graph, images=1, threads=1)
        assert torch.allclose(network(x), model(x), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(cases(), st.integers(0, 99), st.sampled_from(["", "before", "after"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_runs_on_lists_of_channels(case, seed: int, when: str, share: float) -> None:
    lanes, images, size, (c_in, c_out), shape, choice = case
    r = np.random.default_rng(seed)
    x = r.standard_normal((images, c_in, *size)).astype(np.float32)
    weight = r.standard_normal((c_out, c_in, 3, 3)).astype(np.float32)
    bias, factor = (r.random((2, c_out)) - 0.4).astype(np.float32)
    ins, outs = (np.flatnonzero(r.random(c) < share) for c in (c_in, c_out))
    options = {"lanes": lanes, "threads": seed % 3 + 1, "lists": (ins, outs), "mask": factor, "when": when}
    got = run(x, weight, bias, shape, choice, relu=True, **options)
    if got is None:
        return
    want = expected(x[:, ins], weight[:, ins], bias, shape) if len(ins) else bias[:, None, None]
    scale = factor[:, None, None] if when else 1.0
    want = np.maximum(want, 0) * scale if when != "before" else np.maximum(want * scale, 0)
    want = np.broadcast_to(want, got.shape).copy()
    want[:, np.setdiff1d(np.arange(c_out), outs)] = 0
    assert error(got, want) < CLOSE[choice.rows]
