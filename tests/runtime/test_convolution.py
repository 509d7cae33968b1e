"""The convolution kernel against torch: any geometry, any strip, any block, and nothing outside of its buffers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.errors import InputError
from prunus.runtime import convolution, jit, pack
from prunus.runtime.layout import Layout
from tests.runtime.one_layer import error, expected, run

CLOSE = 2e-6


def layer(
    seed: int, shape: pack.Shape, kernel: tuple[int, int], size: tuple[int, int], density: float, images: int = 1
):
    r = np.random.default_rng(seed)
    c_in, c_out = shape.groups * int(r.integers(1, 6)), shape.groups * int(r.integers(1, 6))
    x = r.standard_normal((images, c_in, *size)).astype(np.float32)
    weight = r.standard_normal((c_out, c_in // shape.groups, *kernel)).astype(np.float32)
    weight[r.random(weight.shape) >= density] = 0
    return x, weight, r.standard_normal(c_out).astype(np.float32)


@st.composite
def cases(draw):
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    shape = pack.Shape(
        stride=draw(st.integers(1, 3)),
        padding=(draw(st.integers(0, 3)), draw(st.integers(0, 3))),
        dilation=(draw(st.integers(1, 3)), draw(st.integers(1, 2))),
        groups=draw(st.sampled_from([1, 1, 2, 3])),
    )
    size = tuple(
        draw(st.integers(max(1, (k - 1) * d + 1 - 2 * p), 20)) for k, d, p in zip(kernel, shape.dilation, shape.padding)
    )
    together = draw(st.sampled_from([1, 1, 2, 4]))
    choice = pack.Choice(draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 9)), together)
    choice = replace(choice, unroll=draw(st.integers(1, 3)))
    return shape, kernel, size, choice


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([4, 8, 16]), st.data())
def test_equals_torch_at_any_geometry(case, seed: int, density: float, lanes: int, data) -> None:
    shape, kernel, size, choice = case
    images = data.draw(st.sampled_from([1, 2, 4]))
    x, weight, bias = layer(seed, shape, kernel, size, density, images)
    want = expected(x, weight, bias, shape)
    options = {
        "residual": np.random.default_rng(1).standard_normal(want.shape).astype(np.float32) if seed % 2 else None,
        "relu": bool(seed % 3),
    }
    want = expected(x, weight, bias, shape, **options)
    extra = {"lanes": lanes, "threads": data.draw(st.sampled_from([1, 1, 2, 3])), "extra_halo": seed % 2}
    assert error(run(x, weight, bias, shape, choice, **options, **extra), want) < CLOSE


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("together", [1, 2, 4])
def test_shared_lists_and_small_blocks(density: float, together: int) -> None:
    shape = pack.Shape(padding=(1, 1))
    r = np.random.default_rng(3)
    x = r.standard_normal((1, 24, 28, 28)).astype(np.float32)
    weight = r.standard_normal((18, 24, 3, 3)).astype(np.float32)
    weight[r.random(weight.shape) >= density] = 0
    bias = r.standard_normal(18).astype(np.float32)
    for choice in (pack.Choice(1, 7, 5, together), pack.Choice(1, 4, 24, together, 2), pack.Choice(7, 1, 1, together)):
        got = run(x, weight, bias, shape, choice, threads=2)
        assert error(got, expected(x, weight, bias, shape)) < CLOSE


def test_a_depthwise_layer_is_a_sparse_layer() -> None:
    r = np.random.default_rng(4)
    x, weight = r.standard_normal((2, 8, 9, 9)).astype(np.float32), r.standard_normal((8, 1, 3, 3)).astype(np.float32)
    shape, bias = pack.Shape(2, (1, 1), groups=8), np.zeros(8, dtype=np.float32)
    assert error(run(x, weight, bias, shape, pack.Choice(1, 2, 3)), expected(x, weight, bias, shape)) < CLOSE


def test_what_is_not_a_number_stays_so() -> None:
    x = np.full((1, 1, 4, 4), np.nan, dtype=np.float32)
    one = np.ones((1, 1, 1, 1), dtype=np.float32)
    got = run(x, one, np.zeros(1, dtype=np.float32), pack.Shape(), pack.Choice(1, 1, 1), relu=True)
    assert np.isnan(got).all()


def test_bounds_are_proved_before_a_kernel_runs() -> None:
    weight = np.ones((2, 3, 3, 3), dtype=np.float32)
    shape, choice = pack.Shape(padding=(1, 1)), pack.Choice(1, 2, 3)
    y = Layout.of(8, 8, lanes=16)
    x = y.with_halo(1)
    k, table = pack.kernel(x, y, None, choice, shape), pack.strips(x, y, None, choice, shape)
    lists = pack.pack(weight, shape, x, choice)
    room = 3 * x.plane, 2 * y.plane, None
    pack.check_bounds(lists, table, k, room)
    with pytest.raises(InputError, match="of its input"):
        pack.check_bounds(lists, table, k, (room[0] - x.plane, *room[1:]))
    with pytest.raises(InputError, match="of its output"):
        pack.check_bounds(lists, table, k, (room[0], room[1] - y.plane, None))
    with pytest.raises(InputError, match="of its input"):  # no halo where the padding reaches into one
        pack.check_bounds(pack.pack(weight, shape, y, choice), table, k, room)


GUARDED = """
import ctypes, mmap, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from hypothesis import given, settings, strategies as st
from tests.runtime.one_layer import error, expected, run
from tests.runtime.test_convolution import cases, layer

libc, page, kept = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE, []
AT_END = True

def guarded(size):
    whole = -(-size // page) * page
    held = mmap.mmap(-1, whole + 2 * page)
    memory = np.frombuffer(held, dtype=np.uint8)
    kept.append((held, memory))
    for edge in (memory.ctypes.data, memory.ctypes.data + page + whole):
        assert libc.mprotect(ctypes.c_void_p(edge), page, 0) == 0
    start = page + (whole - size if AT_END else 0)
    return memory[start : start + size]

if len(sys.argv) > 2:  # the guard itself: a write beyond the end has to kill this process
    array = guarded(128)
    ctypes.memset(array.ctypes.data, 0, 129)

@settings(max_examples=25, deadline=None, database=None)
@given(cases(), st.integers(0, 99), st.booleans())
def check(case, seed, at_end):
    global AT_END
    AT_END = at_end
    shape, kernel, size, choice = case
    x, weight, bias = layer(seed, shape, kernel, size, 0.4)
    residual = np.ones_like(expected(x, weight, bias, shape), dtype=np.float32)
    got = run(x, weight, bias, shape, choice, residual=residual, allocate=guarded)
    assert error(got, expected(x, weight, bias, shape, residual)) < 2e-6
check()
print("unharmed")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with mprotect")
def test_nothing_outside_of_the_buffers_is_touched() -> None:
    from pathlib import Path

    here = str(Path(__file__).parents[2])
    ran = subprocess.run([sys.executable, "-c", GUARDED, here], capture_output=True, text=True)
    assert ran.stdout.split() == ["unharmed"], ran.stderr[-2000:]
    broken = subprocess.run([sys.executable, "-c", GUARDED, here, "break"], capture_output=True, text=True)
    assert broken.returncode < 0 and broken.stdout == ""


@pytest.mark.parametrize(
    ("triple", "cpu", "lanes", "multiply_add"),
    [
        ("x86_64-unknown-linux-gnu", "haswell", 8, "vfmadd"),
        ("x86_64-unknown-linux-gnu", "skylake-avx512", 16, "vfmadd"),
        ("aarch64-unknown-linux-gnu", "cortex-a76", 4, "fmla"),
    ],
)
def test_the_inner_loop_is_one_multiply_add_a_vector(triple: str, cpu: str, lanes: int, multiply_add: str) -> None:
    of = jit.Machine(triple, cpu, "", lanes)
    k = convolution.Kernel(lanes, 1, 7, 64 * lanes, 4 * lanes, 64 * lanes, 1024 * lanes)
    text = jit.target(of).emit_assembly(jit.llvm().parse_assembly(convolution.emit(k)))
    assert text.count(multiply_add) == 7
    if lanes == 16:
        assert "%zmm" in text


def test_a_processor_without_vectors_is_refused() -> None:
    with pytest.raises(InputError, match="has none of them"):
        jit.lanes_of({"avx": True}, "x86_64")
    assert jit.lanes_of({"avx2": True, "fma": True}, "x86_64") == 8
    assert jit.lanes_of({}, "aarch64") == 4
