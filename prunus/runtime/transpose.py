"""Between planes of floats, row by row, and tiles: as many vectors as a vector has lanes at once, transposed.

A lane of a tile's row is a stretch of a picture's row.  L such stretches, one a lane, are L vectors to load; their
transpose are L vectors of the tile, and back.  Where a stretch ends or leaves the picture, floats are masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus.runtime.emit import Emitter
from prunus.runtime.layout import FLOAT, Layout

LANES = 16  # of AVX-512, which has masked loads and stores for single floats


LEAST = 6  # vectors in a row of tiles, from which on this is faster than gathering floats


def pays(layout: Layout, *, back: bool = False) -> bool:
    """Whether `emit_tiles` is the fastest way for a layout."""
    return layout.lanes == LANES and layout.tile[1] + (0 if back else 2 * layout.halo) >= LEAST


def blocks(layout: Layout, table: np.ndarray, *, back: bool = False) -> tuple[np.ndarray, int]:
    """The work of a plane, and its rows' width; with `back` without the halo.

    `table`: for every vector and lane the float of the plane, -1 for none (as `layout.pixels`), stretches of rows.
    Gives (blocks, 2 L + 1) int32: every lane's first float, in bytes, its mask, and the tile's vector, in bytes.
    """
    lanes, h = layout.lanes, layout.halo
    rows = table.reshape(layout.tile[0] + 2 * h, -1, lanes)
    vectors = np.arange(rows.shape[0] * rows.shape[1]).reshape(rows.shape[:2])
    if back and h:
        rows, vectors = rows[h:-h, h:-h], vectors[h:-h, h:-h]
    found, width = [], rows.shape[1]
    for start in range(0, width, lanes):
        part = rows[:, start : start + lanes]
        place = np.arange(part.shape[1])[None, :, None]
        valid = part >= 0
        base = np.where(valid, part - place, -(1 << 40)).max(1)
        assert (np.where(valid, base[:, None] + place, -1) == part).all(), "lanes have to be stretches of rows"
        mask = (valid.astype(np.int64) << place).sum(1)
        base, vector = np.where(mask > 0, base, 0) * FLOAT, vectors[:, start, None] * lanes * FLOAT
        found.append(np.concatenate([base, mask, vector], axis=1))
    return np.concatenate(found).astype(np.int32), width


def _transposed(e: Emitter, vectors: list[Any]) -> list[Any]:
    """L vectors, transposed: log2(L) times, the first half is interleaved with the second."""
    half = e.lanes // 2
    index = e.ir.VectorType(e.i32, e.lanes)
    orders = [
        e.ir.Constant(index, [i for j in range(half) for i in (start + j, e.lanes + start + j)]) for start in (0, half)
    ]
    for _ in range(e.lanes.bit_length() - 1):
        pairs = zip(vectors[:half], vectors[half:])
        vectors = [e.b.shuffle_vector(a, b, order) for a, b in pairs for order in orders]
    return vectors


def emit_tiles(lanes: int, width: int, *, back: bool = False) -> str:
    """Planes to tiles, or `back`, in rows of `width` vectors.

    0 x, 1 y, 2 table (`blocks`), 3 its length, 4 planes (int32, the source of each target channel; -1: zeros),
    5 channels, 6 and 7 bytes of a source and a target plane, 8 nothing.
    """
    e = Emitter(lanes)
    x, y, table, count, planes = e.slot(0), e.slot(1), e.slot(2), e.slot(3, e.i64), e.slot(4)
    channels, x_plane, y_plane = (e.slot(i, e.i64) for i in (5, 6, 7))
    zero = e.floats(0.0)
    bit, i1 = e.ir.IntType(lanes), e.ir.VectorType(e.ir.IntType(1), lanes)
    rest = width % lanes or lanes  # vectors of a row's last block
    of_load = e.ir.FunctionType(e.vector, [e.pointer, e.i32, i1, e.vector])
    of_store = e.ir.FunctionType(e.ir.VoidType(), [e.vector, e.pointer, e.i32, i1])
    masked_load = e.ir.Function(e.module, of_load, f"llvm.masked.load.v{lanes}f32.p0")
    masked_store = e.ir.Function(e.module, of_store, f"llvm.masked.store.v{lanes}f32.p0")
    align, size = e.ir.Constant(e.i32, FLOAT), 4 * (2 * lanes + 1)

    def plane(c: Any) -> None:
        number = e.number(planes, c)
        empty = e.b.icmp_signed("<", number, e.const(0))
        xs = e.offset(x, e.b.mul(e.b.select(empty, e.const(0), number), x_plane))
        ys = e.offset(y, e.b.mul(c, y_plane))
        none = e.b.select(empty, e.ir.Constant(bit, 0), e.ir.Constant(bit, -1))

        def some(many: int) -> Any:
            def block(i: Any) -> None:
                record = e.offset(table, e.b.mul(i, e.const(size)))
                vector = e.number(record, e.const(8 * lanes), 1)
                rows, tile = (ys, e.offset(xs, vector)) if back else (xs, e.offset(ys, vector))
                places = [e.offset(rows, e.number(record, e.const(4 * lane), 1)) for lane in range(lanes)]
                masks = []
                for lane in range(lanes):
                    whole = e.b.load(e.offset(record, 4 * (lanes + lane)), typ=e.i32, align=4)
                    mask = e.b.trunc(whole, bit)
                    masks.append(e.b.bitcast(mask if back else e.b.and_(mask, none), i1))
                if back:
                    filled = e.b.bitcast(none, i1)
                    given = [
                        e.b.call(masked_load, [e.offset(tile, 4 * lanes * j), align, filled, zero]) for j in range(many)
                    ]
                    for value, place, mask in zip(_transposed(e, given + [zero] * (lanes - many)), places, masks):
                        e.b.call(masked_store, [value, place, align, mask])
                else:
                    given = [e.b.call(masked_load, [p, align, mask, zero]) for p, mask in zip(places, masks)]
                    for j, value in enumerate(_transposed(e, given)[:many]):
                        e.store(value, tile, 4 * lanes * j)

            return block

        whole = e.b.sdiv(e.b.mul(count, e.const(width // lanes)), e.const(-(-width // lanes)))
        if width >= lanes:
            e.loop(0, whole, some(lanes))
        if width % lanes:
            e.loop(whole, count, some(rest))

    e.loop(*e.share(channels), plane)
    return str(e)
