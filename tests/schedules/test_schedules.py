"""Schedules at their ends, against closed forms, and what they import."""

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunus.schedules
from prunus.schedules import SCHEDULES, constant, cosine, exponential, linear, multi_step, progress, rewind, warmup

STEPS = st.integers(1, 1000)


@pytest.mark.parametrize("make", [linear, cosine, exponential])
@given(start=st.floats(1e-3, 10), end=st.floats(1e-3, 10), steps=STEPS)
def test_it_goes_from_start_to_end_without_turning_and_stays(make, start, end, steps):
    schedule = make(start, end, steps)
    values = [schedule(t) for t in range(steps + 3)]
    assert math.isclose(values[0], start) and math.isclose(values[steps], end) and values[-1] == values[steps]
    rising = values if end >= start else values[::-1]
    assert all(b >= a - 1e-9 for a, b in zip(rising, rising[1:], strict=False))


@given(start=st.floats(0.1, 1), steps=st.integers(2, 100))
def test_halfway_is_the_mean_or_the_geometric_mean(start, steps):
    half = steps / 2
    assert math.isclose(linear(start, 0.01, steps)(half), (start + 0.01) / 2)
    assert math.isclose(cosine(start, 0.01, steps)(half), (start + 0.01) / 2)
    assert math.isclose(exponential(start, 0.01, steps)(half), math.sqrt(start * 0.01))


def test_the_step_schedule_of_resnet():
    schedule = multi_step(0.1, (80, 120))
    assert [round(schedule(t), 9) for t in (0, 79, 80, 119, 120, 159)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert multi_step(1.0, (2, 1), factor=0.5)(3) == 0.25


def test_warmup_joins_without_a_jump_and_shifts_what_follows():
    schedule = warmup(cosine(1.0, 0.0, 10), 5, start=0.2)
    assert [schedule(0), schedule(5)] == [0.2, 1.0]
    assert math.isclose(schedule(4), 0.84)
    assert schedule(10) == cosine(1.0, 0.0, 10)(5) and schedule(15) == 0.0
    assert warmup(constant(3.0), 0)(0) == 3.0


@given(to=st.integers(0, 50), step=st.integers(0, 50))
def test_rewinding_replays_the_schedule(to, step):
    schedule = cosine(1.0, 0.0, 100)
    assert rewind(schedule, to)(step) == schedule(to + step)


def test_a_schedule_over_no_steps_is_over():
    assert [make(1.0, 0.5, 0)(0) for make in (linear, cosine, exponential)] == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="a number above 0"):
        exponential(1.0, 0.0, 3)


@pytest.mark.parametrize("how", progress.PROGRESS.values(), ids=progress.PROGRESS)
@given(steps=STEPS)
def test_progress_goes_from_nothing_to_the_budget(how, steps):
    values = [how(t, steps) for t in range(steps + 2)]
    assert values[0] == 0 and values[steps] == 1 == values[-1]
    assert all(0 <= a <= b <= 1 for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("shape", progress.PROGRESS)
@given(start=st.integers(0, 50), length=st.integers(1, 60), every=st.integers(1, 70))
def test_a_gradual_pruning_jumps_every_so_many_steps_and_ends_on_time(shape, start, length, every):
    schedule = prunus.schedules.gradual(start, start + length, every=every, shape=shape)
    values = [schedule(t) for t in range(start + length + 5)]
    assert values[: start + 1] == [0] * (start + 1) and values[start + length :] == [1] * 5
    jumps = [t for t in range(1, len(values)) if values[t] != values[t - 1]]
    assert all((t - start) % every == 0 or t == start + length for t in jumps)
    assert all(a <= b for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize(("start", "stop", "every"), [(-1, 5, 1), (5, 5, 1), (0, 5, 0)])
def test_a_gradual_pruning_of_no_length_is_refused(start, stop, every):
    with pytest.raises(ValueError, match="gradual"):
        prunus.schedules.gradual(start, stop, every=every)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_a_name_and_a_sentence(name):
    assert SCHEDULES[name].__name__.replace("_", "-") == name
    assert SCHEDULES[name].__doc__.split("\n")[0].endswith((".", "5)."))


def test_schedules_import_nothing_but_math_and_the_door():
    for file in Path(prunus.schedules.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            allowed = ("math", "collections.abc", "__future__", "prunus.schedules", "prunus.core.checks")
            assert all(name.startswith(allowed) for name in names), (file.name, names)
