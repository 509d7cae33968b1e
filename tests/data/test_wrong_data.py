"""What is wrong with the data: labels that are missing or none, damaged files, names that do not exist."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from prunus.core import InputError
from prunus.data import load
from prunus.recipes import check
from prunus.recipes.context import Context
from prunus.recipes.folder import Folder
from tests.data.conftest import Writer, encoded, numbered_image


@pytest.mark.parametrize("missing", [None, -1])
def test_a_part_whose_first_label_is_missing_is_not_dropped(parquet: Writer, missing: int | None) -> None:
    parquet("test-0.parquet", range(8))
    source = parquet("train-0.parquet", range(20), label=lambda n: missing if n == 0 else n % 4)
    with pytest.raises(InputError, match="some rows have no label"):
        load(str(source))


@pytest.mark.parametrize("label", [-7, 1_000_000, 2**40])
def test_numbers_that_are_no_class_are_refused(parquet: Writer, label: int) -> None:
    source = parquet("train-0.parquet", range(20), label=lambda n: label if n == 3 else n % 4)
    with pytest.raises(InputError, match=f"the labels go from .*{label}.*column"):
        load(str(source))


def test_a_recipe_names_the_columns(parquet: Writer, tmp_path: Path) -> None:
    source = parquet("train-0.parquet", range(40), image="scan", labels="grade")
    data = {"source": str(source), "label": "grade", "image": "scan", "size": 8, "channels": 1}
    raw = {"recipe": "r", "model": "prunus:digits_net", "data": data, "stages": [{"do": "recalibrate"}]}
    assert len(Context.of(check(raw, {}, "r"), Folder(tmp_path)).needed().classes) == 4
    raw["data"] = {**data, "label": None}
    with pytest.raises(InputError, match="data.label=COLUMN"):
        Context.of(check(raw, {}, "r"), Folder(tmp_path))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for n in range(4):
        path = tmp_path / f"class{n % 2}" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(numbered_image(n))[: 45 if n == 3 else None])
    with pytest.raises(InputError, match=r"\(.*class1.3\.png\) cannot be read"):
        load(tmp_path)


def test_a_name_that_the_hub_does_not_have_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    heard: list[str] = []
    noisy = logging.getLogger("huggingface_hub.utils._http")
    ear = logging.Handler()
    ear.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]

    def unknown(name: str, **_: object) -> None:
        noisy.warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", unknown)
    noisy.addHandler(ear)
    try:
        with pytest.raises(InputError, match="'digts' is neither .*Did you mean 'digits'"):
            load("digts")
    finally:
        noisy.removeHandler(ear)
    assert heard == [] and noisy.isEnabledFor(logging.WARNING)
