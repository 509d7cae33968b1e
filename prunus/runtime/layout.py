"""Where the pixels of a plane lie in memory, so that every tap of every convolution is a whole aligned vector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

import numpy as np

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Layout:
    """A channel of `images` pictures of height x width, cut into a grid of tiles; a lane of a vector is one tile.

    Lane ``(n * rows + r) * columns + c`` holds tile (r, c) of picture n, vector ``(y, x)`` holds the pixel (y, x) of
    every tile.  A tap (ky, kx) of a convolution, at any stride, is then another vector, and no load is ever split.
    Tiles are stored with a `halo` of their neighbours' pixels, zero outside of the picture; so are the pixels by which
    the grid overhangs the picture.

    >>> Layout.of(56, 56, lanes=16).tile, Layout.of(14, 14, lanes=16).grid
    ((14, 14), (2, 8))
    """

    images: int
    height: int
    width: int
    grid: tuple[int, int]
    tile: tuple[int, int]
    halo: int = 0

    @classmethod
    def of(cls, height: int, width: int, *, lanes: int, images: int = 1) -> Layout:
        """The grid that overhangs the picture least; of equals, the one with the squarest tiles (the least halo)."""
        choices = []
        for rows in (1 << i for i in range((lanes // images).bit_length())):
            columns = lanes // images // rows
            tile = (ceil(height / rows), ceil(width / columns))
            choices.append((tile[0] * tile[1], tile[0] + tile[1], (rows, columns), tile))
        _, _, grid, tile = min(choices)
        return cls(images, height, width, grid, tile)

    @property
    def lanes(self) -> int:
        """Floats in a vector."""
        return self.images * self.grid[0] * self.grid[1]

    @property
    def row(self) -> int:
        """Bytes from a pixel to the one below it."""
        return (self.tile[1] + 2 * self.halo) * self.lanes * FLOAT

    @property
    def vectors(self) -> int:
        """Vectors of one channel."""
        return (self.tile[0] + 2 * self.halo) * (self.tile[1] + 2 * self.halo)

    @property
    def plane(self) -> int:
        """Bytes from channel to channel: an odd number of vectors, so that channels do not share a cache set."""
        return (self.vectors | 1) * self.lanes * FLOAT

    @property
    def exact(self) -> bool:
        """Whether the grid covers the picture without overhang."""
        return (self.grid[0] * self.tile[0], self.grid[1] * self.tile[1]) == (self.height, self.width)

    @property
    def covers(self) -> bool:
        """Whether the tiles hold every pixel; what a convolution reads of a picture may be less."""
        return self.grid[0] * self.tile[0] >= self.height and self.grid[1] * self.tile[1] >= self.width

    def at(self, y: int, x: int) -> int:
        """Bytes from the channel's start to the vector of pixel (y, x) of the tiles; the halo has negative indices."""
        return (y + self.halo) * self.row + (x + self.halo) * self.lanes * FLOAT

    def with_halo(self, halo: int) -> Layout:
        """The same tiles, stored with this halo."""
        return replace(self, halo=halo)

    def before(self, stride: int, height: int, width: int) -> Layout:
        """The layout that the input of a convolution with this stride must have for an output laid out like this."""
        return replace(self, height=height, width=width, tile=(self.tile[0] * stride, self.tile[1] * stride), halo=0)


@lru_cache(maxsize=256)
def pixels(layout: Layout) -> np.ndarray:
    """For every vector and lane the pixel (n * height + y) * width + x that it holds, -1 for none: (vectors, lanes)."""
    h = layout.halo
    y = np.arange(-h, layout.tile[0] + h)[:, None, None, None, None]
    x = np.arange(-h, layout.tile[1] + h)[None, :, None, None, None]
    n = np.arange(layout.images)[None, None, :, None, None]
    y = y + layout.tile[0] * np.arange(layout.grid[0])[None, None, None, :, None]
    x = x + layout.tile[1] * np.arange(layout.grid[1])[None, None, None, None, :]
    inside = (y >= 0) & (y < layout.height) & (x >= 0) & (x < layout.width)
    table = np.where(inside, (n * layout.height + y) * layout.width + x, -1)
    return table.reshape(layout.vectors, layout.lanes)


@lru_cache(maxsize=256)
def places(layout: Layout) -> np.ndarray:
    """The inverse of `pixels`: for every pixel the float of the channel that holds it, the tile's own, not a halo's."""
    inner = pixels(layout.with_halo(0)).reshape(*layout.tile, layout.lanes)
    h = layout.halo
    across = layout.tile[1] + 2 * h
    y, x, lane = np.nonzero(inner >= 0)
    found = np.full(layout.images * layout.height * layout.width, -1, dtype=np.int64)
    found[inner[y, x, lane]] = ((y + h) * across + x + h) * layout.lanes + lane
    return found


def remap(source: Layout, target: Layout) -> np.ndarray:
    """For every float of a channel in `target` the float of a channel in `source` that it equals, -1 for zero.

    >>> line = Layout.of(1, 4, lanes=4)
    >>> remap(line, line.with_halo(0)).tolist()
    [[0, 1, 2, 3]]
    """
    index = pixels(target)
    return np.where(index >= 0, places(source)[index], -1).astype(np.int32)
