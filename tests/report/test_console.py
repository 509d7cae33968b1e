"""Terminal tables: the numbers a person looks for, and plain words."""

import pytest

from prunus.core import FileError
from prunus.report import compare, headline, picture, terminal, verdict
from tests.report.sample import result, row_of, shown, write


def test_before_and_after():
    text = shown(terminal(result()))
    assert row_of(text, "parameters") == "parameters 853,018 447,310 52.4 % left"
    assert row_of(text, "multiply-adds") == "multiply-adds per sample 125,485,696 62,716,416 50.0 % left"
    assert row_of(text, "size on") == "size on disk 3.45 MB 1.83 MB 53.0 % left"
    assert row_of(text, "ONNX Runtime, batch 64") == "ONNX Runtime, batch 64, 1 thread 321 ms 178 ms 1.80x faster"
    assert row_of(text, "accuracy") == "accuracy 93.39 % 92.61 % 0.78 points lower"


def test_widths_stages_and_what_was_left_alone():
    text = shown(terminal(result()))
    for name, entry in result()["plan"].items():
        row = row_of(text, name + " ")
        assert row.endswith(f"{entry['kept']} / {entry['units']}")
        length = row.count("█") + row.count("░")
        assert length == entry["units"] // 2  # the widest group, 64, has 32 characters
        assert abs(row.count("█") - entry["kept"] / 2) <= 1
    assert row_of(text, "finetune") == "finetune 42 min 30 s 447,310 62,716,416 92.61 %"
    assert row_of(text, "fc.weight, fc.bias") == "fc.weight, fc.bias its rows are the outputs of the network"


def test_the_verdict_is_plain_words():
    assert verdict(result()) == [
        "resnet56 keeps 52.4 % of its parameters and does 50.0 % of the computation.",
        "It runs 1.7 times faster (ONNX Runtime, batch 1, 1 thread).",
        "Its accuracy went from 93.39 % to 92.61 % (0.78 points lower).",
    ]
    assert headline(result()) == "resnet56: 50 % less computation, 1.7 times faster, 0.78 points less accurate."


def test_the_verdict_of_a_run_that_measured_little():
    bare = {
        "recipe": "r",
        "model": "prunus:net",
        "before": {"params": 10, "macs": 10},
        "after": {"params": 9, "macs": 9},
    }
    assert verdict(bare)[1:] == [
        "How long it takes was not measured.",
        "Its accuracy was not measured before and after.",
    ]
    assert "90.0 % left" in shown(terminal(bare))


def test_markup_of_the_user_is_text():
    content = result() | {"model": "[red]m", "left_alone": [{"what": "[bold]x", "why": "[/]y"}]}
    text = shown(terminal(content))
    assert "[red]m" in text
    assert "[bold]x" in text
    assert "[/]y" in text


def test_compare_has_a_column_a_run(tmp_path):
    other = result()
    other["after"].update(macs=31371424, accuracy=0.9101, latency_ms={"onnxruntime,b1,t1": 1.0})
    folders = [write(tmp_path / "half"), write(tmp_path / "quarter", other)]
    text = shown(compare(folders), width=140)
    assert row_of(text, "half") == "half quarter"
    assert row_of(text, "multiply-adds") == "multiply-adds 62.7 M, 50.0 % left 31.4 M, 25.0 % left"
    assert row_of(text, "ONNX Runtime, batch 1,") == (
        "ONNX Runtime, batch 1, 1 thread 1.63 ms, 1.72x faster 1 ms, 2.81x faster"
    )
    with pytest.raises(FileError, match="no result in"):
        compare([folders[0], tmp_path / "nothing"])


def test_the_picture_is_a_png(run_folder, tmp_path):
    path = picture(run_folder)
    assert path == run_folder / "picture.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    bare = write(tmp_path / "bare", result() | {"before": {}, "after": {}, "plan": {}})
    assert picture(bare, tmp_path / "p.png").stat().st_size > 1000


def test_a_time_that_does_not_follow_the_computation_says_what_to_do():
    slow = result()
    slow["after"]["latency_ms"]["onnxruntime,b1,t1"] = 2.5
    assert any("round_to=16" in sentence for sentence in verdict(slow))
    slow["plan"] = {name: {"units": 64, "kept": 48} for name in slow["plan"]}
    assert not any("round_to" in sentence for sentence in verdict(slow))
