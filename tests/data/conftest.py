"""Data to load: small Parquet files and image folders, and a cache folder of the test's own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test, and no way to the hub."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PRUNUS_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def numbered_image(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """An image whose every pixel says its number: red (or grey) holds it modulo 256, green the rest."""
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = number % 256, number // 256
    return Image.fromarray(pixels if mode == "RGB" else pixels[..., 0])


def numbers(images: np.ndarray) -> list[int]:
    """The number of every image of (N, 3, H, W), read back from its first pixel."""
    return [int(i[0, 0, 0]) + 256 * int(i[1, 0, 0]) for i in images]


def encoded(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


Writer = Callable[..., Path]


@pytest.fixture
def parquet(tmp_path: Path) -> Writer:
    """Write a Parquet file of numbered images: ``parquet("train-00000.parquet", range(20), label=lambda n: n % 4)``."""

    def write(name: str, rows: range, label: Callable[[int], object] = lambda n: n % 4, **columns: str) -> Path:
        import datasets

        image_name, label_name = columns.get("image", "img"), columns.get("labels", "label")
        table = {image_name: [{"bytes": encoded(numbered_image(n)), "path": None} for n in rows]}
        if label_name:
            table[label_name] = [label(n) for n in rows]
        data = datasets.Dataset.from_dict(table).cast_column(image_name, datasets.Image())
        path = tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        data.to_parquet(path)
        return path.parent

    return write
