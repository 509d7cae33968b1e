"""Charts put the data where it belongs."""

import re

import pytest

from prunus.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, histogram, lines, ticks


def test_a_histogram_counts_in_the_right_places():
    svg = histogram([0.0, 0.1, 0.1, 0.3, 0.9, 7.0], upper=1.0, title="t", kind="before", bins=4)
    assert [int(n) for n in re.findall(r"<title>(\d+) channels", svg)] == [3, 1, 2]  # the empty third bar is not drawn
    left = [float(x) for x in re.findall(r'class="bar before" x="([\d.]+)"', svg)]
    quarter = (WIDTH - LEFT - RIGHT) / 4
    assert left == pytest.approx([LEFT + n * quarter + 0.5 for n in (0, 1, 3)], abs=0.2)
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"><title>', svg)]
    assert heights == pytest.approx([3 * heights[1], heights[1], 2 * heights[1]], abs=0.3)


def test_a_curve_goes_where_the_values_are():
    svg = lines([0.0, 1.0, 0.5], ["a", "a", "b"], title="t")
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    (x0, low), (x1, high), (x2, middle) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert TOP < high < middle < low < HEIGHT - BOTTOM  # pixels grow downwards
    assert middle == pytest.approx((low + high) / 2, abs=0.2)
    assert svg.count('class="stage ') == 2


def test_nothing_measured_is_no_chart():
    assert lines([None, None], ["a", "a"], title="t") == ""


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [-3e-9, 2e12]])
def test_odd_ranges_stay_in_the_frame(values):
    svg = lines(values, ["a"] * len(values), title="t")
    for place in re.findall(r'c[xy]="([^"]+)"', svg):
        assert 0 <= float(place) <= WIDTH


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.83, 0.94), (1e-9, 3e-9), (0, 1234567), (-5, 5)])
def test_ticks_are_round_inside_and_about_four(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert all(low - 1e-12 <= t <= high + 1e-12 for t in found)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in zip(found, found[1:])}
    assert steps == {1.0}


def test_scale_is_linear():
    scale = Scale(0, 10, 100, 200)
    assert (scale(0), scale(5), scale(10)) == (100, 150, 200)
