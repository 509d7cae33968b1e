"""Data by name or path, in the three parts every run needs.  Nothing else in prunus splits data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.core import InputError
from prunus.core.checks import a_path, a_portion, a_word, check_arguments, instance, optional
from prunus.data.augment import Augment
from prunus.data.cache import cache_key, read_cache, write_cache
from prunus.data.columns import image_column, label_column
from prunus.data.decode import decode
from prunus.data.order import HOLD_OUT, LIMIT, stratified
from prunus.data.preprocess import Preprocess
from prunus.data.sources import locate, opened
from prunus.data.split import Data, Split

MOST_CLASSES = 1_000_000  #: a class number from here on is none, but an index or a hash
TEST = 0.2  #: the share that tests, the same whatever the seed, of data with a training part alone


def load(
    source: str | Path,
    *,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    decide: float = 0.1,
    limit: int | None = None,
    image: str | None = None,
    label: str | None = None,
) -> Data:
    """Load images with labels, decoded, in three parts that share no sample.

    `source` is ``digits`` (scikit-learn's), a folder of Parquet files or images, a Parquet file, or a name on the hub.
    `preprocess` is the model's: it says what size images are needed.  The share `decide` of the training part, drawn
    with `seed` evenly over the classes, is for decisions.  Of a training part alone a fifth tests; of data without one
    the even rows train and the odd rows test.  `limit` keeps at most so many samples of every part.  `image` and
    `label` name the columns.

    Raises: `InputError` when there are no images or no labels, `FileError` for a path that does not exist.

    >>> print(load("digits"))
    digits: 1,294 train, 144 decide, 359 test; 10 classes, images 1x8x8
    """
    check_arguments(
        locals(),
        source=a_path,
        preprocess=optional(instance("a prunus.data.Preprocess", Preprocess)),
        decide=a_portion,
        image=optional(a_word),
        label=optional(a_word),
    )
    if not 0 <= decide < 1:
        raise InputError(f"decide={decide}: the share of the training part kept for decisions lies in [0, 1).")
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: at least one sample of every part is needed.")
    if str(source) == "digits":
        train, test, classes, name = *_digits(), "digits"
    else:
        parts, classes, name = _decoded(str(source), preprocess or Preprocess(), image, label)
        train, test = _train_and_test(parts)
    if not len(train) or not len(test):
        raise InputError(f"{name} has {len(train)} images to train and {len(test)} to test with; both need some.")
    train, decided = _hold_out(train, decide, seed)
    train, decided, test = (_limited(part, limit) for part in (train, decided, test))
    return Data(train, decided, test, classes, name)


def _digits() -> tuple[Split, Split, tuple[str, ...]]:
    """1,797 handwritten digits of 8x8 pixels in 17 shades; the same fifth tests whatever the seed."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)[:, None]
    whole = Split(images, torch.from_numpy(raw.target).long(), Augment(shift=1))
    train, test = _hold_out(whole, TEST, 0)
    return train, test, tuple(str(n) for n in raw.target_names)


def _decoded(
    source: str, preprocess: Preprocess, image: str | None, label: str | None
) -> tuple[dict[str, Split], tuple[str, ...], str]:
    """Every part of `source` with its decoded images, from the cache where it has them."""
    location = locate(source)
    settings = (image, label, preprocess.size, preprocess.crop)
    key = cache_key(location.files, *settings) if location.files else None
    stored = read_cache(key) if key else None
    if stored is None:
        with opened(location) as found:
            key = key or cache_key((), {n: p._fingerprint for n, p in found.items()}, *settings)
            stored = None if location.files else read_cache(key)
            if stored is None:
                stored = _read(found, preprocess, image, label, location.name)
                write_cache(key, *stored)
    tensors, metadata = stored
    splits = {name: _split(tensors, name) for name in json.loads(metadata["parts"])}
    return splits, tuple(json.loads(metadata["classes"])), location.name


def _split(tensors: dict[str, Tensor], part: str) -> Split:
    images, labels = tensors[f"{part}.images"], tensors[f"{part}.labels"]
    return Split(images, labels, Augment(shift=min(images.shape[2:]) // 8, flip=images.shape[1] == 3))


def _read(
    found: dict[str, Any], preprocess: Preprocess, image: str | None, label: str | None, name: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Decode every labelled part; labels become 0 ... classes - 1."""
    features = next(iter(found.values())).features
    column, target = image_column(features, image, name), label_column(features, label, name)
    raw = {part: list(data[target]) for part, data in found.items()}
    raw = {part: values for part, values in raw.items() if any(v not in (None, -1) for v in values)}
    if not raw:
        raise InputError(f"{name}: the label column '{target}' is empty; labels are needed to train and to evaluate.")
    names = getattr(features[target], "names", None)
    labels, classes = _numbered(raw, names, f"{name}, column '{target}'")
    images = decode({part: found[part] for part in raw}, column, preprocess, name)
    tensors = {f"{part}.images": t for part, t in images.items()} | {f"{part}.labels": t for part, t in labels.items()}
    return tensors, {"parts": json.dumps(list(raw)), "classes": json.dumps(classes)}


def _numbered(raw: dict[str, list[Any]], names: list[str] | None, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Labels as int64 tensors, and the names of the classes; words are numbered in alphabetical order."""
    seen = {value for values in raw.values() for value in values}
    if None in seen or (-1 in seen):
        raise InputError(f"{where}: some rows have no label; remove them or give them one.")
    if all(isinstance(value, int) for value in seen):
        if min(seen) < 0 or max(seen) >= MOST_CLASSES:
            raise InputError(
                f"{where}: the labels go from {min(seen)} to {max(seen)}; expected class numbers from 0 to fewer than "
                f"{MOST_CLASSES:,}. Number the classes from 0, or name another column (data.label=COLUMN)."
            )
        classes = list(names or [str(n) for n in range(max(seen) + 1)])
        return {part: torch.tensor(values) for part, values in raw.items()}, classes
    classes = sorted(str(value) for value in seen)
    number = {name: n for n, name in enumerate(classes)}
    return {part: torch.tensor([number[str(v)] for v in values]) for part, values in raw.items()}, classes


def _train_and_test(parts: dict[str, Split]) -> tuple[Split, Split]:
    """The training and the test part; validation tests where there is no test part.

    A single part is divided: of a training part a fifth of every class tests, of another one the odd rows.
    """
    train = parts.get("train")
    test = parts.get("test", parts.get("validation"))
    if train is not None and test is not None:
        return train, test
    if train is not None:
        return _hold_out(train, TEST, 0)
    whole = next(iter(parts.values())) if test is None else test
    odd = torch.arange(len(whole)) % 2 == 1
    return whole.take((~odd).nonzero()[:, 0]), whole.take(odd.nonzero()[:, 0])


def _hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """(the rest, `share` of `split` drawn evenly over the classes)."""
    held = stratified(split.labels, round(share * len(split)), seed, HOLD_OUT)
    rest = torch.ones(len(split), dtype=torch.bool)
    rest[held] = False
    return split.take(rest.nonzero()[:, 0]), split.take(held)


def _limited(split: Split, limit: int | None) -> Split:
    if limit is None or len(split) <= limit:
        return split
    return split.take(stratified(split.labels, limit, 0, LIMIT))
