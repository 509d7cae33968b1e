"""Convolutions over lists of channels give what torch gives of those channels, whatever the geometry and the lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.errors import InputError
from prunus.runtime import DynamicConv2d, channels, dynamic, jit, pack, transpose
from prunus.runtime.layout import Layout, pixels

CLOSE = 1e-5


@st.composite
def layers(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c_in, c_out = (groups * draw(st.integers(1, 9)) for _ in range(2))
    if draw(st.booleans()) and groups > 1:
        c_in = c_out = groups  # depthwise
    padding, dilation = (draw(st.integers(0, 2)), draw(st.integers(0, 2))), draw(st.integers(1, 2))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 6)))
    torch.manual_seed(draw(st.integers(0, 99)))
    options = {"groups": groups, "bias": draw(st.booleans())}
    return nn.Conv2d(c_in, c_out, kernel, draw(st.integers(1, 3)), padding, dilation, **options)


@settings(max_examples=40, deadline=None)
@given(layers(), st.tuples(st.integers(11, 37), st.integers(11, 37)), st.integers(1, 5), st.booleans(), st.data())
def test_equals_torch_on_the_active_channels(conv, size, n: int, own: bool, data) -> None:
    x = torch.randn(n, conv.in_channels, *size)
    run = DynamicConv2d(conv, x, low=0.0, threads=data.draw(st.sampled_from([1, 2, 3])))
    share = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    ins, outs = (torch.rand(n if own else 1, c) < share for c in (conv.in_channels, conv.out_channels))
    given_in, given_out = (ins, outs) if own else (ins[0], outs[0].nonzero()[:, 0].tolist())
    got = run(x, given_in, given_out)
    with torch.no_grad():
        masked = (x * ins[:, :, None, None]).double()
        want = conv.double()(masked).relu() * outs[:, :, None, None]
    conv.float()
    assert got.shape == want.shape and float((got - want).abs().max()) < CLOSE
    assert bool((got[~outs.expand(n, -1)] == 0).all())
    compact = run(x, given_in, given_out, compact=True)
    assert len(compact) == n
    assert all(torch.equal(c, g[o]) for c, g, o in zip(compact, got, outs.expand(n, -1)))
    if not own:
        assert torch.equal(run(x[:, ins[0]], given_in, given_out), got)


def test_channels_that_are_not_active_are_not_read() -> None:
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 9, 9)
    x[:, 1] = float("nan")
    run = DynamicConv2d(conv, x)
    assert run(x, [0, 2, 3], [0, 1, 2, 3]).isfinite().all() and run(x, [1], [0]).isnan().any()


def test_weights_are_copied_and_copied_again() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9)
    run, all_in, all_out = DynamicConv2d(conv, x), range(3), range(4)
    before = run(x, list(all_in), list(all_out))
    conv.weight.data.mul_(2)
    conv.bias.data.mul_(2)
    assert torch.equal(run(x, list(all_in), list(all_out)), before)
    run.update()
    assert torch.allclose(run(x, list(all_in), list(all_out)), 2 * before, atol=1e-6)


def test_many_pictures_are_run_in_pieces(monkeypatch) -> None:
    conv, x = nn.Conv2d(5, 6, 3, padding=1), torch.randn(7, 5, 12, 12)
    whole = DynamicConv2d(conv, x)
    monkeypatch.setattr(dynamic, "HELD", 1)
    pieces = DynamicConv2d(conv, x)
    assert whole.at_once > 7 and pieces.at_once == 1
    ins, outs = torch.rand(7, 5) < 0.6, torch.rand(7, 6) < 0.6
    assert torch.equal(whole(x, ins, outs), pieces(x, ins, outs))


@pytest.mark.parametrize("wrong", [[2, 1], [1, 1], [-1], [4], [0.5], np.ones(3, dtype=bool)])
def test_wrong_lists_are_refused(wrong) -> None:
    run = DynamicConv2d(nn.Conv2d(4, 4, 3), (1, 4, 9, 9))
    with pytest.raises(InputError, match="active_in of .* ascending"):
        run(torch.randn(1, 4, 9, 9), wrong, [0])
    with pytest.raises(InputError, match="active_out has 1 lists for 2 pictures"):
        run(torch.randn(2, 4, 9, 9), [0], [[0]])


def test_wrong_inputs_and_layers_are_refused() -> None:
    run = DynamicConv2d(nn.Conv2d(4, 4, 3), (1, 4, 9, 9))
    for wrong in (torch.randn(1, 3, 9, 9), torch.randn(1, 4, 8, 9), torch.randn(1, 4, 9, 9).double()):
        with pytest.raises(InputError, match="was made for float32"):
            run(wrong, [0, 1], [0])
    with pytest.raises(InputError, match="the layer reads"):
        DynamicConv2d(nn.Conv2d(4, 4, 3), (1, 3, 9, 9))
    with pytest.raises(InputError, match="smaller than the window"):
        DynamicConv2d(nn.Conv2d(4, 4, 3), (1, 4, 2, 9))
    for layer in (nn.Conv2d(4, 4, 3, (1, 2)), nn.Conv2d(4, 4, 3, padding="same")):
        with pytest.raises(InputError, match="has no kernel for"):
            DynamicConv2d(layer, (1, 4, 9, 9))


def test_bounds_are_proved() -> None:
    shape, choice, size = pack.Shape(padding=(1, 1)), pack.Choice(1, 2, 3, 2, by="dense"), (5, 3, 3, 3)
    y = Layout.of(8, 8, lanes=16)
    x = y.with_halo(1)
    k, strips = channels.kernel(x, y, y, choice, shape, size), pack.strips(x, y, y, choice, shape)
    lists, planes = [(np.arange(3), np.arange(5))], (x.plane, y.plane, y.plane)
    tables = channels.tables(size, 1, lists, planes)
    room, weights = [3 * x.plane, 5 * y.plane, 5 * y.plane], 4 * 5 * 27
    channels.check_bounds(tables, strips, k, weights, tuple(room))
    for i, what in enumerate(("input", "output", "residual")):
        less = [size - (64 * 8 if j == i else 0) for j, size in enumerate(room)]
        with pytest.raises(InputError, match=f"of its {what}"):
            channels.check_bounds(tables, strips, k, weights, tuple(less))
    with pytest.raises(InputError, match="of its weights"):
        channels.check_bounds(tables, strips, k, weights - 4, tuple(room))
    tables.jobs[0, 3] += 1
    with pytest.raises(InputError, match="leaves its lists"):
        channels.check_bounds(tables, strips, k, weights, tuple(room))


def test_threads_get_whole_layers_in_parts() -> None:
    spans = np.array([[0, 4, 0, 10]])
    jobs, segments = channels.shares(spans, 3, 3)
    assert jobs[:, 2:4].tolist() == [[0, 3], [3, 6], [6, 10]] and segments.tolist() == [0, 1, 2, 3]
    many = np.array([[i, i + 1, i, i + 1] for i in range(12)])
    jobs, segments = channels.shares(many, 3, 3)
    assert len(jobs) == 12 and segments.tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize("size", [(5, 5), (14, 14), (9, 37), (70, 33)])
@pytest.mark.parametrize("halo", [0, 2])
def test_pictures_are_brought_into_tiles_by_stretches(size: tuple[int, int], halo: int) -> None:
    layout = Layout.of(*size, lanes=16).with_halo(halo)
    table, seen = pixels(layout), np.full((layout.vectors, 16), -1)
    work, width = transpose.blocks(layout, table)
    assert width == layout.tile[1] + 2 * halo
    for row in work:
        vector = row[32] // 64
        for lane in range(16):
            for j in range(16):
                if row[16 + lane] >> j & 1:
                    seen[vector + j, lane] = row[lane] // 4 + j
    assert (seen == table).all()


@pytest.mark.parametrize(
    ("triple", "cpu", "lanes", "multiply_add"),
    [
        ("x86_64-unknown-linux-gnu", "skylake-avx512", 16, "vfmadd"),
        ("aarch64-unknown-linux-gnu", "cortex-a76", 4, "fmla"),
    ],
)
def test_the_inner_loop_keeps_its_sums_in_registers(triple: str, cpu: str, lanes: int, multiply_add: str) -> None:
    step = 4 * lanes
    taps = tuple(tuple(9 * step * y + step * x for x in range(3)) for y in range(3))
    k = channels.DenseKernel(lanes, 1, 7, 9 * step, step, 7 * step, taps, 3)
    text = jit.target(jit.Machine(triple, cpu, "", lanes)).emit_assembly(jit.llvm().parse_assembly(channels.emit(k)))
    assert text.count(multiply_add) == 9 * 7 * (3 + 1)  # of three channels together, and of one alone


def test_eight_lanes_are_run_where_there_are_sixteen(tmp_path) -> None:
    if jit.machine().lanes != 16:
        pytest.skip("this processor has no other lanes than its own")
    import subprocess
    import sys
    from pathlib import Path

    ran = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert ran.stdout.split() == ["8", "lanes"], ran.stderr[-2000:]


EIGHT = """
import os, sys
os.environ["PRUNUS_CACHE"] = sys.argv[1]
sys.path.insert(0, ".")
import torch
from torch import nn
from prunus.runtime import DynamicConv2d, compile, jit

real = jit.machine()
features = ",".join(f for f in real.features.split(",") if "avx512" not in f) + ",-avx512f"
made = jit.Machine(real.triple, "haswell", features, 8)
jit.machine = lambda: made
text = jit.target(made).emit_assembly(jit.llvm().parse_assembly("declare void @f()"))
torch.manual_seed(0)
layers = [nn.Conv2d(3, 9, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(9, 8, 3, 2, groups=1), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
for sparsity in (0.0, 0.9):
    for p in model.parameters():
        p.data[torch.rand_like(p) < sparsity] = 0
    for n in (1, 3):
        x = torch.randn(n, 3, 17, 19)
        got, want = compile(model, x)(x), model(x).detach()
        assert (got - want).abs().max() < 1e-5 * want.abs().max(), (sparsity, n)
conv, x = nn.Conv2d(6, 7, 3, padding=1), torch.randn(2, 6, 12, 11)
outs = [0, 2, 6]
got, want = DynamicConv2d(conv, x)(x, range(6), outs, compact=True), conv(x)[:, outs].detach()
assert (got - want).abs().max() < 1e-5
print(made.lanes, "lanes")
"""
