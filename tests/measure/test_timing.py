"""Timing: threads are put back, turns are fair, and the clock is not fooled."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from prunus.core import InputError, Inputs, UnknownNameError
from prunus.core.running import with_batch
from prunus.measure import Latency, compare_latency, key, latency, race, timing


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


class Spy(nn.Module):
    """Remembers the threads, modes and batches it was run with (in a list that a copy shares)."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __deepcopy__(self, memo):
        return Spy(self.seen)

    def forward(self, x):
        self.seen.append((torch.get_num_threads(), self.training, len(x), torch.is_grad_enabled()))
        return x


def test_threads_are_set_while_timing_and_restored(threads):
    seen = []
    model = Spy(seen).train()
    result = latency(model, torch.zeros(2, 3), batch=5, threads=1, seconds=0.01)
    assert set(seen) == {(1, False, 5, False)}
    assert torch.get_num_threads() == threads
    assert model.training
    assert result.runs >= 5


def test_threads_are_restored_after_an_error(threads):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        latency(Broken(), torch.zeros(1), threads=1)
    assert torch.get_num_threads() == threads


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def passing(self, seconds, mark=lambda: None):
        def call():
            mark()
            self.now += seconds

        return call


def test_medians_are_what_the_clock_says(monkeypatch):
    clock = Clock(monkeypatch)
    result = compare_latency({"long": clock.passing(0.008), "short": clock.passing(0.002)}, seconds=0.1)
    assert result["long"].median_ms == pytest.approx(8)
    assert result["short"].median_ms == pytest.approx(2)
    assert result["short"].runs >= 45  # half a second's share each, however long one run takes


def test_the_warm_up_is_not_timed(monkeypatch):
    clock, count = Clock(monkeypatch), iter(range(1000))

    def cold_first():
        clock.now += 5.0 if next(count) < 3 else 0.001

    assert compare_latency({"a": cold_first}, seconds=0.1)["a"].p90 == pytest.approx(1)


def test_everyone_has_turns_between_the_others(monkeypatch):
    clock, order = Clock(monkeypatch), []
    calls = {n: clock.passing(0.01, lambda n=n: order.append(n)) for n in "ab"}
    compare_latency(calls, seconds=0.15)
    assert sum(a != b for a, b in itertools.pairwise(order)) >= 6
    first_after_warm_up = [order[6 + 8 * turn] for turn in range(3)]  # a turn is one untimed and three timed runs each
    assert first_after_warm_up == ["a", "b", "a"]


def test_percentiles():
    result = Latency.of([n / 1e3 for n in range(1, 12)])
    assert (result.median_ms, result.p10, result.p90, result.runs) == (6.0, 2.0, 10.0, 11)


def test_batches_are_repeated_or_cut_and_other_tensors_stay():
    inputs = Inputs.of((torch.arange(3), torch.zeros(7, 3), torch.tensor(1.0)))
    bigger, smaller = with_batch(inputs, 7), with_batch(inputs, 2)
    assert bigger.args[0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert smaller.args[0].tolist() == [0, 1]
    assert bigger.args[1].shape == (7, 3)
    image = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert with_batch(Inputs.of(image), 5).args[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bad", [{"batch": 0}, {"threads": 0}, {"seconds": 0.0}])
def test_senseless_numbers_are_refused(bad):
    with pytest.raises(InputError, match="expected a"):
        latency(nn.Identity(), torch.zeros(1), **bad)


def test_an_unknown_backend_and_a_file_for_torch_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'torch'"):
        latency(nn.Identity(), torch.zeros(1), backend="torhc")
    with pytest.raises(InputError, match="times a module"):
        latency("model.onnx", torch.zeros(1), backend="torch")


def test_a_backend_is_found_before_its_room_was_imported():
    script = "from prunus.core.backends import backends; print(backends['onnxruntime'].name, len(backends) >= 2)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "onnxruntime True\n"


def test_race_gives_one_result_each_and_key_names_it():
    result = race({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}, torch.zeros(1, 2), seconds=0.02)
    assert set(result) == {"a", "b"}
    assert key("torch", 1, 2) == "torch,b1,t2"
