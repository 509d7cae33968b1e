"""Loading by path and name: parts that share nothing, columns, the cache, and one clear message for what is wrong."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunus.core import FileError, InputError
from prunus.data import Data, Preprocess, Split, load
from prunus.data.cache import read_cache
from tests.data.conftest import Writer, encoded, numbered_image, numbers


def ids(split: Split) -> list[int]:
    return numbers(split.images.numpy())


def parts(data: Data) -> tuple[set[int], set[int], set[int]]:
    """The image numbers of train, decide and test, after checking that no part holds an image twice."""
    for split in (data.train, data.decide, data.test):
        assert len(set(ids(split))) == len(split)
    return set(ids(data.train)), set(ids(data.decide)), set(ids(data.test))


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_and_complete(parquet: Writer, seed: int) -> None:
    parquet("train-00000-of-00002.parquet", range(60))
    parquet("train-00001-of-00002.parquet", range(60, 100))
    folder = parquet("test-00000-of-00001.parquet", range(300, 340))
    data = load(folder, seed=seed, decide=0.2)
    train, decide, test = parts(data)
    assert test == set(range(300, 340))
    assert train | decide == set(range(100))
    assert not train & decide
    assert len(decide) == 20
    assert Counter(data.decide.labels.tolist()) == dict.fromkeys(range(4), 5)
    for split in (data.train, data.decide, data.test):
        assert split.labels.tolist() == [n % 4 for n in ids(split)]
        assert split.images.dtype == torch.uint8
    assert data.classes == ("0", "1", "2", "3")
    assert str(data) == "set: 80 train, 20 decide, 40 test; 4 classes, images 3x8x8"


def test_decide_follows_the_seed_and_test_does_not(parquet: Writer) -> None:
    folder = parquet("val.parquet", range(100))
    first, again, other = (parts(load(folder, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first[1] != other[1]
    assert first[2] == other[2]


def test_without_a_training_part_even_rows_train(parquet: Writer) -> None:
    folder = parquet("val.parquet", range(50))
    for source in (folder, folder / "val.parquet"):
        train, decide, test = parts(load(source))
        assert train | decide == set(range(0, 50, 2))
        assert test == set(range(1, 50, 2))


def test_of_a_training_part_alone_a_fifth_of_every_class_tests(parquet: Writer) -> None:
    folder = parquet("train.parquet", range(100), label=lambda n: n // 25)
    train, decide, test = parts(load(folder))
    assert [len({n for n in test if n // 25 == c}) for c in range(4)] == [5, 5, 5, 5]
    assert train | decide == set(range(100)) - test
    assert parts(load(folder, seed=5))[2] == test
    with pytest.raises(InputError, match="1 images to train and 0 to test"):
        load(parquet("train.parquet", range(1)))


def test_validation_tests_where_test_has_no_labels(parquet: Writer) -> None:
    parquet("train.parquet", range(20))
    parquet("test.parquet", range(100, 110), label=lambda n: -1)
    folder = parquet("validation.parquet", range(50, 60))
    assert parts(load(folder))[2] == set(range(50, 60))


def test_digits_are_the_real_ones_and_the_same_fifth_tests() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    known = {(raw.images[i].tobytes(), int(raw.target[i])) for i in range(len(raw.target))}
    data, other = load("digits", seed=0), load("digits", seed=1)
    found = [
        ((image[0].double() * 16 / 255).round().numpy().tobytes(), int(label))
        for split in (data.train, data.decide, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert len(found) == 1797
    assert set(found) == known
    assert torch.equal(data.test.images, other.test.images)
    assert not torch.equal(data.decide.images, other.decide.images)
    assert not data.train.augment.flip


def test_limit_keeps_a_few_of_every_class(parquet: Writer) -> None:
    parquet("train.parquet", range(100))
    data = load(parquet("test.parquet", range(200, 240)), limit=8)
    assert [len(s) for s in (data.train, data.decide, data.test)] == [8, 8, 8]
    assert Counter(data.test.labels.tolist()) == dict.fromkeys(range(4), 2)


def test_words_as_labels_and_columns_by_name(parquet: Writer) -> None:
    folder = parquet("val.parquet", range(20), label=lambda n: ["pear", "plum", "apple"][n % 3], image="photo")
    data = load(folder)
    assert data.classes == ("apple", "pear", "plum")
    expected = [["pear", "plum", "apple"][n % 3] for n in ids(data.test)]
    assert [data.classes[n] for n in data.test.labels] == expected
    odd = parquet("val.parquet", range(20), labels="kind")
    with pytest.raises(InputError, match="no label column: its columns are img, kind"):
        load(odd)
    assert len(load(odd, label="kind").classes) == 4
    with pytest.raises(InputError, match="no column 'kinf'. Did you mean 'kind'"):
        load(odd, label="kinf")


@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_parquet_of_any_writer(tmp_path: Path, kind: str) -> None:
    """Without the metadata of `datasets`: encoded bytes in a struct, or alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [encoded(numbered_image(n)) for n in range(20)]
    images = {
        "struct": pa.array(
            [{"bytes": f, "path": None} for f in files], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        ),
        "binary": pa.array(files, pa.binary()),
        "large_binary": pa.array(files, pa.large_binary()),
    }[kind]
    pq.write_table(pa.table({"image": images, "label": [n % 2 for n in range(20)]}), tmp_path / "val.parquet")
    train, decide, test = parts(load(tmp_path))
    assert (train | decide, test) == (set(range(0, 20, 2)), set(range(1, 20, 2)))


def test_class_names_come_from_the_file(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"img": [numbered_image(n) for n in range(6)], "label": [0, 1] * 3}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "val.parquet")
    assert load(tmp_path / "val.parquet").classes == ("no", "yes")


def test_without_labels_one_clear_message(parquet: Writer) -> None:
    folder = parquet("val.parquet", range(4), labels="")
    with pytest.raises(InputError, match="set has no label column: its columns are img"):
        load(folder)
    folder = parquet("val.parquet", range(4), label=lambda n: -1)
    with pytest.raises(InputError, match="'label' is empty"):
        load(folder)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for n in range(10):
            path = tmp_path / part / ("plum" if n % 2 else "pear") / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            numbered_image(n + (100 if part == "test" else 0)).save(path)
    data = load(tmp_path)
    train, decide, test = parts(data)
    assert train | decide == set(range(10))
    assert test == set(range(100, 110))
    assert data.classes == ("pear", "plum")
    assert data.test.labels.tolist() == [n % 2 for n in ids(data.test)]
    with pytest.raises(InputError, match="sort the images into one folder a class"):
        load(tmp_path / "train" / "plum")


def test_sizes_that_differ_need_a_size(tmp_path: Path) -> None:
    for n, height in enumerate((8, 9, 12, 16)):
        path = tmp_path / f"class{n % 2}" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        numbered_image(n, (height, 10)).save(path)
    with pytest.raises(InputError, match="differ in size"):
        load(tmp_path)
    data = load(tmp_path, preprocess=Preprocess(size=(6, 6)))
    assert data.train.images.shape[1:] == (3, 6, 6)
    assert {n for part in parts(data) for n in part} == {0, 1, 2, 3}


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    for n in range(20):
        path = tmp_path / f"class{n % 2}" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        numbered_image(n, mode="L").save(path)
    data = load(tmp_path)
    assert data.test.images.shape[1:] == (1, 8, 8)
    x, _ = next(iter(data.test.batches(2, Preprocess(channels=3, scale=255))))
    assert x.shape == (2, 3, 8, 8)


def test_the_second_load_decodes_nothing(parquet: Writer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parquet("val.parquet", range(20))
    first = load(folder)
    assert len(list(cache.iterdir())) == 1

    def fail(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(sys.modules["prunus.data.load"], "opened", fail)
    second = load(folder)
    assert ids(first.train) == ids(second.train)
    assert first.classes == second.classes
    parquet_again = folder / "val.parquet"
    parquet_again.touch()
    with pytest.raises(AssertionError, match="read again"):
        load(folder)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_cache_is_rebuilt(parquet: Writer, cache: Path, damage: str) -> None:
    folder = parquet("val.parquet", range(20))
    first = load(folder)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "garbage": b"\xff" * 64, "empty": b""}[damage]
    file.unlink()
    file.write_bytes(broken)
    assert ids(load(folder).train) == ids(first.train)
    (rebuilt,) = cache.iterdir()
    assert len(rebuilt.read_bytes()) == len(whole)
    assert read_cache(rebuilt.stem) is not None


def test_a_cache_that_cannot_be_written_is_a_warning(
    parquet: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("PRUNUS_CACHE", str(blocked / "cache"))
    with pytest.warns(UserWarning, match="set PRUNUS_CACHE"):
        data = load(parquet("val.parquet", range(20)))
    assert len(data.test) == 10


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    import datasets

    good = encoded(numbered_image(0))
    rows = {"img": [{"bytes": b, "path": None} for b in (good, good[:45], good)], "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows).cast_column("img", datasets.Image()).to_parquet(tmp_path / "val.parquet")
    with pytest.raises(InputError, match="image 1 of the validation part cannot be read"):
        load(tmp_path)


def test_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    import datasets

    def offline(name: str, **_: Any) -> datasets.DatasetDict:
        assert name == "someone/fruit"
        rows = {"image": [numbered_image(n) for n in range(20)], "label": [n % 2 for n in range(20)]}
        data = datasets.Dataset.from_dict(rows)
        return datasets.DatasetDict({"train": data.select(range(12)), "test": data.select(range(12, 20))})

    monkeypatch.setattr(datasets, "load_dataset", offline)
    train, decide, test = parts(load("someone/fruit"))
    assert (train | decide, test) == (set(range(12)), set(range(12, 20)))
    assert len(list(cache.iterdir())) == 1


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(FileError, match="neither Parquet files nor images"):
        load(tmp_path)
    with pytest.raises(FileError, match="Did you mean 'cifar10'"):
        load(tmp_path / "cifar1")
    with pytest.raises(InputError, match="neither a folder or file here"):
        load("no-such-data-set")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileError, match="no Parquet file"):
        load(tmp_path / "notes.txt")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "broken.parquet")


@pytest.mark.parametrize("wrong", [{"decide": 1.0}, {"decide": -0.1}, {"limit": 0}])
def test_what_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        load("digits", **wrong)  # type: ignore[arg-type]


def test_pixels_are_exact_and_the_model_gets_its_own(shared: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(shared / "data/cifar10/test-00000-of-00001.parquet").slice(0, 40)
    pq.write_table(rows, tmp_path / "val.parquet")
    pixels = [np.array(Image.open(io.BytesIO(r["bytes"])).convert("RGB")) for r in rows["img"].to_pylist()]
    data = load(tmp_path, decide=0.0)
    for offset, split in ((0, data.train), (1, data.test)):
        assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), np.stack(pixels[offset::2]))
        assert split.labels.tolist() == rows["label"].to_pylist()[offset::2]
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert len(data.decide) == 0
