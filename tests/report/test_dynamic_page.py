"""The page of a run with gates speaks of gates: nothing was cut, and time is that of the engine."""

from __future__ import annotations

from pathlib import Path

from prunus.report import charts, page, times, words
from prunus.report.reading import Run

DYNAMIC = {
    "inputs": 3,
    "mean": 50,
    "dense": 100,
    "gates": 1,
    "quantiles": [0.4, 0.45, 0.5, 0.55, 0.6],
    "histogram": {"from": 0.4, "to": 0.6, "counts": [2, 1]},
    "ungated": [{"what": "conv1", "why": "it is the stem"}],
}
SIDES = {
    "before": {"params": 10, "macs": 100, "accuracy": 0.9, "density": 1.0},
    "after": {"params": 12, "macs": 50, "accuracy": 0.89, "density": 1.0},
}


def result() -> dict[str, object]:
    before, after = {"onnxruntime,b1,t1": 2.0, "sparse,b1,t1": 2.5}, {"onnxruntime,b1,t1": 3.0, "sparse,b1,t1": 1.0}
    sides = {side: {**SIDES[side], "latency_ms": ms} for side, ms in (("before", before), ("after", after))}
    return {"recipe": "manidp", "model": "prunus:resnet20", "stages": [], "plan": {}, "dynamic": DYNAMIC, **sides}


def test_time_is_the_engine_with_gates_beside_the_fastest_dense_one() -> None:
    timing = times.main_timing(result())
    assert timing is not None and (timing.before, timing.after) == (2.0, 1.0)
    assert "Only an engine that skips channels that are off gains by them" in " ".join(words.verdict(result()))

    assert "the same engine takes 2.5 ms, with them 1 ms: 2.5 times faster." in " ".join(words.verdict(result()))

    assert "the others compute them all" in " ".join(words.verdict(result()))


def test_gates_that_gain_nothing_are_said_to() -> None:
    slow = result()
    slow["before"]["latency_ms"]["sparse,b1,t1"] = 1.05  # type: ignore[index]
    said = " ".join(words.verdict(slow))
    assert "takes 1.05 ms, with them 1 ms: on this network deciding takes about as long as it saves" in said


def test_sections_of_cut_networks_do_not_appear() -> None:
    html = page.page(Run(Path("run"), result()))
    assert "Where it became narrower" not in html and "learned which channels" not in html
    assert "Nothing was cut: gates choose channels anew for every input" in html
    assert "it is the stem" in html and "Which inputs took how much" in html
    assert "1 inputs, share of the computation 0.5" in html
    without = {k: v for k, v in result().items() if k != "dynamic"}
    html = page.page(Run(Path("run"), without))
    assert "Where it became narrower" in html and "learned which channels" in html


def test_a_histogram_names_what_it_counts() -> None:
    assert "channels, size of the scale" in charts.histogram([0.1], upper=1.0, title="t", kind="before")
