"""A plan is read field by field: what no prunus wrote is refused, with what was expected; what it wrote comes back."""

from __future__ import annotations

import json

import pytest

from prunus.core import Added, Dropped, Edit, FileError, GroupPlan, Mask, Plan, TensorPlan

WHOLE = Plan(
    {"a": GroupPlan(4, (0, 2))},
    {"a.weight": TensorPlan((4, 3), {0: (0, 2), 1: (1,)})},
    (Edit("a", "num_heads", 4, 2), Edit("", "config.hidden_size", 8, 4), Edit("n", "normalized_shape[0]", 4, 2)),
    (Added("a.bias", "bias", (4,)), Added("n.select", "select", (4,), "int64")),
    (Dropped("block.1", "hidden", 2),),
    (("a.weight", "b.weight"),),
    ({"shape": [1, 3], "dtype": "float32"},),
    "channels_last",
    "0.1.0",
    {"a.weight": Mask((1, 3), "oA==")},
)
WRONG = [
    ("edits", 0, "old", None),
    ("edits", 0, "old", True),
    ("edits", 0, "new", 2.0),
    ("edits", 0, "new", 0),
    ("edits", 0, "new", 10**12),
    ("edits", 0, "attribute", "_forward_hooks"),
    ("edits", 0, "attribute", "forward.__globals__"),
    ("edits", 0, "attribute", "a.b.c"),
    ("edits", 0, "attribute", "a[-1]"),
    ("edits", 0, "module", 3),
    ("edits", 1, {"module": "a", "attribute": "num_heads", "old": 4, "new": 3}),
    ("added", 0, "kind", "hook"),
    ("added", 0, "dtype", "Tensor"),
    ("added", 0, "shape", [10**20]),
    ("added", 0, "shape", [-1]),
    ("added", 0, "shape", [4, 4]),
    ("dropped", 0, "module", ""),
    ("dropped", 0, "length", 10**9),
    ("dropped", 0, "given", None),
    ("ties", 0, 0, 1),
    ("inputs", 0, "shape", "x"),
    ("memory_format", "upside_down"),
    ("groups", "a", "kept", ["0", "2"]),
    ("groups", "a", "kept", [0.0, 2.0]),
    ("groups", "a", "kept", [2, 0]),
    ("groups", "a", "kept", [0, 0]),
    ("groups", "a", "kept", [-1]),
    ("groups", "a", "kept", [4]),
    ("groups", "a", "units", "4"),
    ("tensors", "a.weight", "kept", {"2": [0]}),
    ("tensors", "a.weight", "kept", {"-1": [0]}),
    ("tensors", "a.weight", "shape", [2**32, 2**32]),
    ("masks", "a.weight", "bits", ""),
    ("masks", "a.weight", "bits", "o!=="),
    ("masks", "a.weight", "shape", [2**32, 2**32]),
    ("hooks", {}),
]
TEXTS = ["", "[]", "nan", "[" * 10**6, '{"format": 1, "format": 1}', '{"format": ' + "9" * 9999]


def test_what_prunus_writes_comes_back():
    assert Plan.from_json(WHOLE.to_json()) == WHOLE


@pytest.mark.parametrize("change", WRONG, ids=lambda c: "-".join(map(str, c)))
def test_what_it_does_not_write_is_refused(change):
    data = json.loads(WHOLE.to_json())
    *way, last, value = change
    holder = data
    for step in way:
        holder = holder[step]
    holder[last] = value
    with pytest.raises(FileError, match="not a plan that prunus wrote"):
        Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("field", json.loads(WHOLE.to_json()))
def test_a_field_that_is_missing_or_of_another_type_is_refused(field):
    data = json.loads(WHOLE.to_json())
    for value in (None, 7, [3], {"": 1}):
        with pytest.raises(FileError):
            Plan.from_json(json.dumps({**data, field: value}))
    del data[field]
    if field not in ("dropped", "masks"):
        with pytest.raises(FileError):
            Plan.from_json(json.dumps(data))


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_json_of_a_plan_is_refused(text):
    with pytest.raises(FileError):
        Plan.from_json(text)
