"""Budgets on the way from the original cost."""

from __future__ import annotations

import pytest

from prunus import Budget

ORIGINAL = {"params": 1000, "macs": 20000}


@pytest.mark.parametrize(
    ("budget", "progress", "limits"),
    [
        (Budget(macs=0.5), 0.0, {"macs": 20000}),
        (Budget(macs=0.5), 0.25, {"macs": 17500}),
        (Budget(macs=5000, params=0.9), 0.5, {"macs": 12500, "params": 950}),
        (Budget(macs=5000, params=0.9), 1.0, {"macs": 5000, "params": 900}),
        (Budget(macs=50000), 0.5, {"macs": 20000}),  # more than there is asks for nothing
        (Budget(params=1), 0.999, {"params": 1}),
    ],
)
def test_the_limits_move_in_a_straight_line(budget, progress, limits):
    assert budget.on_the_way(progress, ORIGINAL).limits(ORIGINAL) == limits
