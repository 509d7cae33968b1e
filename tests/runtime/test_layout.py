"""Layouts: every pixel has one place, halos hold their neighbours' pixels."""

from __future__ import annotations

import numpy as np
import pytest

from prunus.runtime.layout import Layout, pixels, places, remap


@pytest.mark.parametrize("images", [1, 2, 4, 16])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 14), (5, 19), (33, 2)])
@pytest.mark.parametrize("halo", [0, 1, 3])
def test_every_pixel_has_one_place_and_its_taps_are_neighbours(images: int, size: tuple[int, int], halo: int) -> None:
    layout = Layout.of(*size, lanes=16, images=images).with_halo(halo)
    assert layout.lanes == 16
    table = pixels(layout)
    flat = places(layout)
    assert (table.reshape(-1)[flat] == np.arange(images * size[0] * size[1])).all()
    # the vector `dy, dx` away holds, in the same lane, the pixel `dy, dx` away, or none where the picture ends
    y, x = np.divmod(np.arange(size[0] * size[1]), size[1])
    across = layout.tile[1] + 2 * halo
    for dy in (-halo, 0, halo):
        for dx in (-halo, 0, halo):
            there = table.reshape(-1)[flat[: y.size] + (dy * across + dx) * 16]
            inside = (y + dy >= 0) & (y + dy < size[0]) & (x + dx >= 0) & (x + dx < size[1])
            assert (there == np.where(inside, (y + dy) * size[1] + x + dx, -1)).all()


def test_planes_do_not_fall_on_the_same_cache_set() -> None:
    for size in (7, 8, 14, 28, 56):
        for halo in (0, 1):
            assert Layout.of(size, size, lanes=16).with_halo(halo).plane // 64 % 2 == 1


def test_a_map_between_layouts_moves_every_pixel() -> None:
    a, b = Layout.of(14, 14, lanes=16), Layout.of(7, 7, lanes=16).before(2, 14, 14).with_halo(1)
    assert a.tile != b.tile
    picture = np.random.default_rng(0).standard_normal(14 * 14 + 1)
    picture[-1] = 0
    held = np.zeros(a.plane // 4)
    held[places(a)] = picture[:-1]
    table = remap(a, b)
    assert (np.where(table >= 0, held[table], 0) == picture[pixels(b)]).all()
