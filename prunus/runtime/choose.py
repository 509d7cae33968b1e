"""Which strip, which block of input channels, and sparse or dense: a model of the inner loop, in cycles."""

from __future__ import annotations

import numpy as np

from prunus.runtime import patches
from prunus.runtime.layout import Layout
from prunus.runtime.pack import Choice, Shape

FIRST_CACHE = 28 * 1024  # bytes of input that a strip may run over again and again: most of 32 KB
LATENCY = 4  # of a multiply-add, and so the sums that have to be under way
RECORD = 20.0  # cycles to begin and end a list, a mispredicted branch among them
SPILL = 1.6  # cycles to load and store a vector of a sum that goes on in the next block
LISTED = 1.2  # a loop over a list of places, by one over channels: measured
AGAIN = 3.0  # the same for a dense layer, whose sums are too many for the first cache
TOGETHER = (1, 2, 4)
TRANSFORM = {2: 42.0, 4: 150.0}  # cycles to transform a patch, in or out, by its rows
SECOND_CACHE = 640 * 1024  # bytes between Winograd's stages that stay near
CELLS = 1 << 24  # blocks of input channels times lists, at most
STREAM = 8.0  # bytes of weights a cycle: they come from the third cache or from memory


def unions(weight: np.ndarray, together: int) -> int:
    """Entries of the lists when so many output channels share one."""
    used = (weight != 0).reshape(len(weight), -1)
    rest = -len(weight) % together
    if rest:
        used = np.concatenate([used, np.zeros((rest, used.shape[1]), dtype=bool)])
    return int(used.reshape(-1, together, used.shape[1]).any(1).sum())


def _seen(outputs: int, taps: int, shape: Shape, axis: int) -> int:
    """Input pixels that so many outputs read along an axis."""
    return outputs if taps == 1 else (outputs - 1) * shape.stride + (taps - 1) * shape.dilation[axis] + 1


def candidates(
    kernel: tuple[int, int],
    shape: Shape,
    c_in: int,
    c_out: int,
    entries: dict[int, int],
    y: Layout,
    registers: int,
) -> list[tuple[float, Choice]]:
    """(cycles, choice), the cheapest first, for a layer with so many `entries` by the channels that share lists."""
    found = []
    height, width = y.tile
    for together, many in entries.items():
        lists = -(-c_out // together)
        for rows in range(1, min(height, 8) + 1):
            for columns in range(1, min(width, 30) + 1):
                size = rows * columns
                if size * together > registers - 2 - (together > 1) * 2:
                    continue
                strips = -(-height // rows) * -(-width // columns)
                unroll = next(u for u in (1, 2, 4) if u * size * together >= LATENCY or u == 4)
                loads = size + together if together > 1 else size + 1
                each = max(size * together, loads, LATENCY / unroll) + 1.0 / unroll
                seen = _seen(rows, kernel[0], shape, 0) * _seen(columns, kernel[1], shape, 1)
                per_group = c_in // shape.groups
                for budget in (FIRST_CACHE, 2 * FIRST_CACHE, 1 << 40):
                    channels = max(1, min(c_in, budget // (seen * 4 * y.lanes)))
                    blocks = -(-c_in // channels)
                    channels = -(-c_in // blocks)
                    if blocks * lists > CELLS:
                        continue
                    held = channels * seen * 4 * y.lanes
                    # what does not fit the first cache comes from the second at half the rate, if it is used again
                    slow = 1.0 if held <= FIRST_CACHE else 1.05 if held <= 2 * FIRST_CACHE else 1.5
                    touched = min(blocks if shape.groups == 1 else -(-per_group // channels), max(1.0, many / lists))
                    cycles = many * each * slow
                    cycles += lists * touched * (RECORD + SPILL * size * together)
                    cycles += lists * touched * (unroll - 1) / 2 * each
                    found.append((cycles * strips * LISTED, Choice(rows, columns, channels, together, unroll)))
    found.sort(key=lambda pair: pair[0])
    return found


def dense(
    kernel: tuple[int, int], shape: Shape, c_in: int, c_out: int, y: Layout, registers: int
) -> list[tuple[float, Choice]]:
    """(cycles, choice) of the dense kernel, the cheapest first."""
    found, taps = [], kernel[0] * kernel[1]
    per_in, per_out = c_in // shape.groups, c_out // shape.groups
    height, width = y.tile
    for together in range(1, min(per_out, max(TOGETHER)) + 1):
        for rows in range(1, min(height, 7) + 1):
            for columns in range(1, min(width, 14) + 1):
                size = rows * columns
                # a row of the input is kept in registers from tap to tap; what does not fit is spilt in every tap
                row = columns + kernel[1] if taps > 1 else 0
                if size * together + max(together + 1, row) > registers:
                    continue
                strips = -(-height // rows) * -(-width // columns)
                seen = _seen(rows, kernel[0], shape, 0) * _seen(columns, kernel[1], shape, 1)
                channels = max(1, min(per_in, FIRST_CACHE // (seen * 4 * y.lanes)))
                blocks = -(-per_in // channels)

                def group(k: int, size: int = size, blocks: int = blocks) -> float:
                    each = max(k * size, size + k / 2 + 1, LATENCY)
                    return per_in * (taps * each + 3) + blocks * (RECORD + AGAIN * k * size)

                cycles = per_out // together * group(together) + per_out % together * group(1)
                # rows of a strip come from more places than columns do: of equals, the longer
                cycles *= strips * shape.groups * (1 + 0.005 * rows)
                found.append((cycles, Choice(rows, columns, -(-per_in // blocks), together, 1, "dense")))
    found.sort(key=lambda pair: pair[0])
    return found


def by_winograd(weight: tuple[int, ...], shape: Shape, y: Layout, registers: int) -> list[tuple[float, Choice]]:
    """(cycles, choice) by Winograd's transforms, the cheapest first; none where a layer cannot be run by them."""
    found, (c_out, c_in) = [], weight[:2]
    for m in patches.fits(weight, shape, y):
        places = (m + 2) ** 2
        many = -(-y.tile[0] // m) * -(-y.tile[1] // m)
        for at_once in range(1, min(many, 8) + 1):
            for together in range(1, min(c_out, 16) + 1):
                if (at_once * together) + at_once + 1 > registers:
                    continue
                strips, groups = -(-many // at_once), -(-c_out // together)
                each = max(at_once * together, at_once + together / 2 + 1, LATENCY)
                cycles = strips * places * groups * (c_in * each + RECORD)
                cycles += strips * at_once * (c_in + c_out) * TRANSFORM[m]
                held = places * at_once * 4 * y.lanes * (c_in + c_out)
                cycles *= 1.05 if held <= SECOND_CACHE else 1.15
                # the weights are run through again for every strip
                cycles += strips * groups * together * c_in * places * 4 / STREAM
                found.append((cycles, Choice(m, at_once, c_in, together, 1, "winograd")))
    found.sort(key=lambda pair: pair[0])
    return found


def allowed(choice: Choice, weight: tuple[int, ...], shape: Shape, y: Layout, registers: int) -> bool:
    """Whether a choice that was read is one that `candidates`, `dense` or `by_winograd` could make for a layer.

    Kernels of such choices are short, and their lists no longer than the weights ask for.
    """
    (c_out, c_in, kh, kw), (height, width) = weight, y.tile
    numbers = (choice.rows, choice.columns, choice.channels, choice.together, choice.unroll)
    if any(type(n) is not int or n < 1 for n in numbers) or choice.channels > c_in * shape.groups:
        return False
    size, together = choice.rows * choice.columns, choice.together
    if choice.by == "lists":
        fits = choice.rows <= min(height, 8) and choice.columns <= min(width, 30) and choice.unroll in (1, 2, 4)
        cells = -(-c_in * shape.groups // choice.channels) * -(-c_out // together)
        few = size * together <= registers - 2 - (together > 1) * 2
        return fits and few and cells <= CELLS and together in (TOGETHER if shape.groups == 1 else (1,))
    if choice.by == "dense":
        fits = choice.rows <= min(height, 7) and choice.columns <= min(width, 14) and choice.unroll == 1
        row = choice.columns + kw if kh * kw > 1 else 0
        few = size * together + max(together + 1, row) <= registers
        return fits and few and together <= min(c_out // shape.groups, max(TOGETHER))
    m, many = choice.rows, choice.columns
    if choice.by != "winograd" or m not in patches.fits(weight, shape, y) or choice.unroll != 1:
        return False
    fits = many <= min(8, -(-height // m) * -(-width // m)) and together <= min(c_out, 16)
    return fits and many * together + many + 1 <= registers


def best(weight: np.ndarray, shape: Shape, y: Layout, registers: int) -> list[tuple[float, Choice]]:
    """Every way to run a layer of these weights (C_out, C_in / groups, kh, kw), with its cycles, the cheapest first."""
    c_out, c_in, kh, kw = weight.shape
    shares = TOGETHER if shape.groups == 1 else (1,)
    entries = {k: unions(weight, k) for k in shares}
    found = candidates((kh, kw), shape, c_in * shape.groups, c_out, entries, y, registers)
    found += dense((kh, kw), shape, c_in * shape.groups, c_out, y, registers)
    found += by_winograd(weight.shape, shape, y, registers)
    return sorted(found, key=lambda pair: pair[0])


def variants(found: list[tuple[float, Choice]], many: int) -> list[Choice]:
    """The cheapest few that are not alike: no kernel more than twice, and then with other outputs together."""
    some: dict[tuple[str, int], Choice] = {}
    for _, choice in found:
        if sum(by == choice.by for by, _ in some) < 2:
            some.setdefault((choice.by, choice.together), choice)
    return list(some.values())[:many]
