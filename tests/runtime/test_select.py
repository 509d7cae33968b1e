"""The kernel that decides which channels are on, beside the same in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.runtime import gating, jit, memory, select


def run(saliency: np.ndarray, rule: str, number: float, many: int, scales: bool) -> tuple[np.ndarray, ...]:
    """The mask, and the channels that are on and off."""
    n = len(saliency)
    padded = np.full(-(-n // 64) * 64, 1e30, dtype=np.float32)  # what lies behind the channels does not count
    padded[:n] = saliency
    held, mask = memory.aligned(padded), memory.buffer(4 * n + 4 + 64)
    lists = memory.buffer(select.size(n) + 64)
    mask[:], lists[:] = 0xA5, 0xA5
    code = jit.address(select.emit_select(jit.machine().lanes, rule, scales))
    memory.call(code, memory.slots([held, mask, lists, float(number), n, many]))
    assert (mask[4 * n + 4 :] == 0xA5).all() and (lists[select.size(n) :] == 0xA5).all()
    numbers, floats = lists[: select.size(n)].view(np.int32), mask[: 4 * n + 4].view(np.float32)
    on, off = numbers[:2]
    assert on + off == n and floats[n] == 0
    return floats[:n], numbers[4 : 4 + on], numbers[4 + n : 4 + n + off]


values = st.one_of(st.sampled_from([0.0, 0.0, 1.0, 2.5]), st.floats(0, 1000, width=32))


@settings(max_examples=150, deadline=None)
@given(st.lists(values, min_size=1, max_size=70), st.sampled_from(gating.RULES), st.booleans(), st.data())
def test_decides_as_torch_does(numbers: list[float], rule: str, scales: bool, data: st.DataObject) -> None:
    saliency = np.array(numbers, dtype=np.float32)
    if not scales:
        saliency -= np.float32(1.0)  # log odds have both signs
    floor = data.draw(st.integers(1, len(saliency)))
    number = data.draw(st.integers(1, len(saliency)) if rule == "largest" else st.sampled_from([-1e4, 0.5, 1.0, 1e4]))
    many = max(int(number), floor) if rule == "largest" else floor
    want = gating.decide(torch.from_numpy(saliency)[None], rule, number, floor, scales)[0].numpy()
    mask, on, off = run(saliency, rule, number, many, scales)
    assert (mask == want).all()
    assert on.tolist() == np.flatnonzero(mask).tolist() and off.tolist() == np.flatnonzero(mask == 0).tolist()


def test_the_largest_of_many() -> None:
    rng = np.random.default_rng(0)
    saliency = rng.normal(size=1000).astype(np.float32)
    for many in (1, 17, 500, 1000):
        _, on, _ = run(saliency, "largest", many, many, False)
        assert on.tolist() == sorted(np.argsort(-saliency)[:many].tolist())


def test_what_is_not_a_number_is_seen() -> None:
    mask, _, _ = run(np.array([1.0, np.nan, 3.0], dtype=np.float32), "largest", 1, 1, True)
    assert np.isnan(mask[1])
