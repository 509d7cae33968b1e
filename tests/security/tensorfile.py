"""Safetensors files taken apart and put together again, with prunus' own checksum made right, as an attacker would."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load

from prunus.surgery import files
from prunus.surgery.packed import unpack
from tests.security.mutate import dumped, mangled, mutated

Change = Callable[[dict[str, Any], dict[str, str]], None]


def parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, and the bytes of all tensors."""
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def whole(header: dict[str, Any], data: bytes) -> bytes:
    """A file of a header (with whatever is in it) and bytes."""
    text = dumped(header).encode(errors="surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def signed(header: dict[str, Any], data: bytes) -> bytes:
    """The file with the checksum of `prunus.save` over what is in it, where one can be computed."""
    meta = header.get("__metadata__", {})
    try:
        shapes = json.loads(meta.get(files.PACKED) or "{}")
        if sum(math.prod(shape) for shape in shapes.values()) < 1 << 22:
            tensors = unpack(load(whole(header, data)), meta.get(files.PACKED, ""))
            meta[files.DIGEST] = files.digest(tensors, meta)
    except Exception:  # no checksum fits what is no file of prunus any more
        pass
    return whole(header, data)


def changed(rng: random.Random, source: Path, key: str, texts: Any = (), prefer: Any = ()) -> bytes:
    """A file of `prunus.save` whose JSON under `key` is changed; sometimes its bytes, or its tensors' header."""
    raw, kind = source.read_bytes(), rng.random()
    if kind < 0.08:
        return mangled(rng, raw)
    header, data = parts(raw)
    if kind < 0.14:
        return whole(mutated(rng, header), data)
    meta = header["__metadata__"]
    key = rng.choice([files.HELD, key]) if files.HELD in meta else key
    text = json.loads(meta[key])
    if kind < 0.18:
        meta[key] = mangled(rng, meta[key].encode()).decode(errors="replace")
    else:
        meta[key] = dumped(mutated(rng, text, texts, prefer))
    return signed(header, data)


def edited(change: Callable[[Any], Any], key: str, which: int = 0) -> Callable[[list[Path]], bytes]:
    """A crafted file for a corpus: the JSON under `key` of an honest file changed in place by a function."""

    def make(honest: list[Path]) -> bytes:
        header, data = parts(honest[which].read_bytes())
        value = json.loads(header["__metadata__"][key])
        value = change(value) or value
        header["__metadata__"][key] = dumped(value)
        return signed(header, data)

    return make
