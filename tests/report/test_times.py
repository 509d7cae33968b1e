"""What a run that leaves zeros says of time: the engine that skips them beside the runtimes that do not."""

from __future__ import annotations

from prunus.recipes.parts import MeasureSpec
from prunus.report import times, words
from prunus.report.console import before_after
from prunus.report.page import content
from prunus.report.reading import Run, read
from tests.report.sample import result, write


def with_zeros() -> dict:
    found = result() | {"plan": {}}
    found["before"] |= {"density": 1.0, "latency_ms": {"torch,b1,t1": 1, "onnxruntime,b1,t1": 4, "openvino,b1,t1": 3}}
    found["after"] |= {"density": 0.1, "latency_ms": {"torch,b1,t1": 1, "onnxruntime,b1,t1": 4, "openvino,b1,t1": 3}}
    found["before"]["latency_ms"]["sparse,b1,t1"], found["after"]["latency_ms"]["sparse,b1,t1"] = 5.0, 0.5
    return found


def test_the_engine_is_compared_with_the_fastest_dense_runtime() -> None:
    found = with_zeros()
    timing = times.main_timing(found)
    assert (timing.before, timing.after, timing.ratio) == (3, 0.5, 6)
    said = " ".join(words.verdict(found))
    assert "It runs 6.0 times faster (prunus engine after, OpenVINO before, batch 1, 1 thread). Only an engine" in said
    assert "6.0 times faster" in words.headline(found)


def test_without_zeros_or_without_the_engine_the_usual_runtime_speaks() -> None:
    for without in (with_zeros() | {"plan": {"a": {"units": 2, "kept": 1}}}, with_zeros()):
        if not without["plan"]:
            del without["after"]["latency_ms"]["sparse,b1,t1"]
        assert times.main_timing(without).backend == "ONNX Runtime"
        assert "skips zeros" not in " ".join(words.verdict(without))


def test_page_and_terminal_show_every_runtime(tmp_path) -> None:
    run = read(write(tmp_path / "run"))
    shown = content(Run(**(run.__dict__ | {"result": with_zeros()})))
    assert [t["where"].split(",")[0] for t in shown["timings"]] == [
        "ONNX Runtime", "OpenVINO", "PyTorch", "prunus engine",
    ]  # fmt: skip
    assert before_after(with_zeros()).row_count == 3 + 1 + 4 + 1


def test_what_is_timed_unless_the_recipe_says() -> None:
    assert MeasureSpec().chosen(zeros=False) == ["torch", "onnxruntime", "sparse"]
    found = MeasureSpec().chosen(zeros=True)
    assert found[:2] == ["torch", "onnxruntime"] and found[-1] == "sparse"
    assert MeasureSpec(backends=["sparse"]).chosen(zeros=False) == ["sparse"]


def test_the_engine_is_spoken_of_where_it_is_the_fastest() -> None:
    result = with_zeros()
    result["after"]["density"] = result["before"]["density"]
    for ours, said in ((1.0, True), (3.9, False)):
        result["after"]["latency_ms"] = {"onnxruntime,b1,t1": 4.0, "torch,b1,t1": 9.0, "sparse,b1,t1": ours}
        engine = "prunus's own engine runs it in 1 ms, 4.0 times faster than ONNX Runtime (batch 1)"
        assert (engine in " ".join(words.verdict(result))) is said
