"""Labels that are missing or are none: said, never dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunus.core import InputError
from prunus.data import load
from prunus.recipes import check
from prunus.recipes.context import Context
from prunus.recipes.folder import Folder
from tests.data.conftest import Writer


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
