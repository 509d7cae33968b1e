"""Encoded images to one tensor of bytes, once."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.core import InputError
from prunus.data.preprocess import Preprocess

GREY_MODES = {"1", "L"}
_BATCH = 512


def decode(parts: dict[str, Any], column: str, preprocess: Preprocess, source: str) -> dict[str, Tensor]:
    """The images of every part as (N, C, H, W) uint8, with a progress bar.

    Images of one size no larger than the model's input are kept as they are; others are brought to it now.  One
    channel is kept where all images are grey, else three.  Raises: `InputError` for an image that cannot be read, or
    when sizes differ and the model names none.
    """
    from datasets import Image
    from rich.console import Console
    from rich.progress import Progress

    parts = {
        name: part.select_columns([column]).cast_column(column, Image(decode=False)) for name, part in parts.items()
    }
    total = sum(len(part) for part in parts.values())
    console = Console(stderr=True)
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    with progress as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        task = bar.add_task(f"Looking at {source}", total=total)
        step = lambda: bar.advance(task)  # noqa: E731
        kinds = {kind for name, part in parts.items() for kind in _map(pool, _kind, part, column, name, step)}
        shape, fit = _shape(kinds, preprocess, source)
        bar.reset(task, description=f"Decoding {source}")
        read = lambda data: _pixels(data, shape, preprocess if fit else None)  # noqa: E731
        out = {}
        for name, part in parts.items():
            images = out[name] = torch.empty(len(part), *shape, dtype=torch.uint8)
            for row, image in enumerate(_map(pool, read, part, column, name, step)):
                images[row] = image
    return out


def _map(
    pool: ThreadPoolExecutor, read: Callable[[bytes], Any], part: Any, column: str, name: str, step: Callable[[], None]
) -> Iterator[Any]:
    """`read` of the bytes of every image, in order; an image that cannot be read is named."""
    row = 0
    for batch in part.iter(_BATCH):
        results = pool.map(lambda item: _attempt(read, item), batch[column])
        for result in results:
            if isinstance(result, Exception):
                file = batch[column][row % _BATCH]
                raise InputError(f"image {row} of the {name} part{_named(file)} cannot be read ({result}).") from result
            yield result
            step()
            row += 1


def _named(item: dict[str, Any] | None) -> str:
    """The file of an image in brackets, where it is one."""
    path = item.get("path") if item is not None else None
    return f" ({path})" if path else ""


def _attempt(read: Callable[[bytes], Any], item: dict[str, Any]) -> Any:
    try:
        if item is None:
            raise ValueError("the row holds no image")
        data = item["bytes"]
        if data is None:
            with open(item["path"], "rb") as file:
                data = file.read()
        return read(data)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        return error


def _kind(data: bytes) -> tuple[int, int, bool]:
    """(height, width, whether it is grey), from the header alone."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width, image.mode in GREY_MODES


def _shape(kinds: set[tuple[int, int, bool]], preprocess: Preprocess, source: str) -> tuple[tuple[int, int, int], bool]:
    """The shape (C, H, W) of what is stored, and whether images must be brought to it."""
    if not kinds:
        raise InputError(f"{source} holds no images.")
    channels = 1 if all(grey for _, _, grey in kinds) else 3
    sizes = sorted({(h, w) for h, w, _ in kinds})
    size = preprocess.size
    if len(sizes) == 1 and (size is None or sizes[0][0] * sizes[0][1] <= size[0] * size[1]):
        return (channels, *sizes[0]), False
    if size is None:
        few = ", ".join(f"{w}x{h}" for h, w in sizes[:3])
        raise InputError(
            f"the images of {source} differ in size ({few}{', ...' if len(sizes) > 3 else ''}) and the model names no "
            "input size; give one (data.size=224)."
        )
    return (channels, *size), True


def _pixels(data: bytes, shape: tuple[int, int, int], fit: Preprocess | None) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        array = np.array(image.convert("L" if shape[0] == 1 else "RGB"))
    pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
    return fit.fit(pixels[None])[0] if fit else pixels
