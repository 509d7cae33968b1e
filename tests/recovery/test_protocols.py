"""Learning rates for fine-tuning."""

import math

import pytest

from prunus.core import InputError
from prunus.recovery import cosine, last, rewind


def trained(step: float) -> float:
    """0.1, divided by 10 at steps 80 and 120 of 160."""
    return 0.1 * 0.1 ** ((step >= 80) + (step >= 120))


def test_last_is_the_rate_of_the_last_step() -> None:
    rate = last(trained, 160)
    assert [rate(step) for step in (0, 50)] == [trained(159)] * 2
    assert rate(0) == pytest.approx(1e-3)


def test_rewind_replays_the_end() -> None:
    rate = rewind(trained, 160, steps=60)
    assert [rate(step) for step in range(60)] == [trained(step) for step in range(100, 160)]
    assert rate(0) == pytest.approx(1e-2)


def test_rewind_of_everything_is_the_training_itself() -> None:
    assert [rewind(trained, 160, 160)(s) for s in range(160)] == [trained(s) for s in range(160)]


def test_cosine_solves_its_differential_equation() -> None:
    rate, total = cosine(0.2, 100, end=0.02), 100
    for step in (10, 50, 90):  # second difference of A cos(w t) is -w^2 A cos(w t)
        second = rate(step + 1) - 2 * rate(step) + rate(step - 1)
        assert second == pytest.approx(-2 * (1 - math.cos(math.pi / total)) * (rate(step) - 0.11), abs=1e-12)
    assert rate(0) == pytest.approx(0.2)
    assert rate(100) == rate(150) == pytest.approx(0.02)


def test_more_steps_than_there_were() -> None:
    with pytest.raises(InputError, match="161 steps of fine-tuning, but the original training had only 160"):
        rewind(trained, 160, 161)


def test_no_steps() -> None:
    with pytest.raises(InputError, match="total=0.*expected a whole number of at least 1"):
        cosine(0.1, 0)
