"""Small charts as inline SVG; colours and fonts come from the page, so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 34  # room for ticks, stage names and the axis title


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between `low` and `high`, about `count` of them.

    >>> ticks(0, 1), ticks(0.83, 0.94)
    ([0.0, 0.25, 0.5, 0.75, 1.0], [0.85, 0.875, 0.9, 0.925])
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((s * power for s in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) + 0.0 for n in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(
    values: Sequence[float | None], stages: Sequence[str], *, title: str, show: Callable[[float], str] = "{:g}".format
) -> str:
    """A curve over the epochs of all stages, one colour, a vertical rule and a name where a stage begins.

    Args:
        values: one number an epoch, None where nothing was measured.
        stages: the stage of every epoch.
        title: what the curve shows, for the chart's title and for screen readers.
        show: how a value is written on the axis.
    """
    known = [v for v in values if v is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    x = Scale(0.5, len(values) + 0.5, LEFT, WIDTH - RIGHT)
    y = Scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP)
    parts = [_grid_y(y, ticks(y.low, y.high), show), _stage_bands(x, stages)]
    parts += [_polyline(x, y, run) for run in _unbroken(values)]
    tips = [
        f'<circle class="dot" cx="{x(i + 1)}" cy="{y(v)}" r="3"><title>{escape(stages[i])}, epoch {i + 1} of '
        f"{len(values)}: {escape(show(v))}</title></circle>"
        for i, v in enumerate(values)
        if v is not None and len(values) <= 200
    ]
    whole = [t for t in ticks(1, len(values), 6) if t == int(t) and t >= 1] or [1.0]
    parts += [*tips, _grid_x(x, whole, "{:.0f}".format, "epoch")]
    return _svg("".join(parts), f"{title}: from {show(known[0])} to {show(known[-1])} over {len(values)} epochs")


def histogram(
    values: Sequence[float],
    *,
    upper: float,
    title: str,
    kind: str,
    bins: int = 40,
    of: str = "channels",
    axis: str = "size of the scale",
) -> str:
    """How many values lie where between 0 and `upper`; larger ones are counted in the last bar.

    Args:
        values: the values, none negative.
        upper: the right end of the axis, so that several charts can share it.
        title: what is counted.
        kind: CSS class of the bars, ``"before"`` or ``"after"``.
        of, axis: what has a value, and what the value is.
    """
    upper = upper or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(int(value / upper * bins), bins - 1)] += 1
    top = max(counts, default=0) or 1
    x = Scale(0, upper, LEFT, WIDTH - RIGHT)
    y = Scale(0, top * 1.05, HEIGHT - BOTTOM, TOP)
    bars = []
    for i, n in enumerate(counts):
        if n:
            left, right = x(i * upper / bins), x((i + 1) * upper / bins)
            where = f"{i * upper / bins:.3g} to {(i + 1) * upper / bins:.3g}"
            bars.append(
                f'<rect class="bar {kind}" x="{left + 0.5:.1f}" y="{y(n)}" width="{max(right - left - 1, 1):.1f}" '
                f'height="{y(0) - y(n):.1f}"><title>{n} {of}, {axis} {where}</title></rect>'
            )
    marks = [t for t in ticks(0, y.high) if t == int(t)]
    inner = _grid_y(y, marks, "{:.0f}".format) + "".join(bars)
    inner += _grid_x(x, ticks(0, upper, 5), "{:g}".format, axis)
    return _svg(inner, f"{title}: {len(values)} {of}, most in one bar {top}")


def _svg(inner: str, label: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inner}</svg>'


def _grid_y(y: Scale, at: Sequence[float], show: Callable[[float], str]) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t)}" y2="{y(t)}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y(t) + 4}" text-anchor="end">{escape(show(t))}</text>'
        for t in at
    )


def _grid_x(x: Scale, at: Sequence[float], show: Callable[[float], str], title: str) -> str:
    base = HEIGHT - BOTTOM
    marks = "".join(
        f'<text class="tick" x="{x(t)}" y="{base + 16}" text-anchor="middle">{escape(show(t))}</text>' for t in at
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>{marks}'
        f'<text class="tick" x="{middle}" y="{HEIGHT - 2}" text-anchor="middle">{escape(title)}</text>'
    )


def _stage_bands(x: Scale, stages: Sequence[str]) -> str:
    """Alternating ground for the stages, named at the top where the name fits."""
    starts = [i for i, s in enumerate(stages) if i == 0 or s != stages[i - 1]]
    out = []
    for n, start in enumerate(starts):
        end = starts[n + 1] if n + 1 < len(starts) else len(stages)
        left, right = x(start + 0.5), x(end + 0.5)
        band = "even" if n % 2 == 0 else "odd"
        out.append(
            f'<rect class="stage {band}" x="{left}" y="{TOP}" width="{right - left:.1f}" '
            f'height="{HEIGHT - BOTTOM - TOP}"/>'
        )
        room = int((right - left) / 6.5)
        name = stages[start]
        if room >= 3:
            name = name if len(name) <= room else name[: room - 1] + "…"
            out.append(f'<text class="stage-name" x="{left + 4:.1f}" y="{TOP - 8}">{escape(name)}</text>')
    return "".join(out)


def _unbroken(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The runs of measured values: a gap in the data is a gap in the line.

    >>> _unbroken([1.0, None, 2.0, 3.0])
    [[(1, 1.0)], [(3, 2.0), (4, 3.0)]]
    """
    runs: list[list[tuple[int, float]]] = [[]]
    for i, value in enumerate(values, 1):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((i, value))
    return [run for run in runs if run]


def _polyline(x: Scale, y: Scale, run: Sequence[tuple[int, float]]) -> str:
    points = " ".join(f"{x(i)},{y(v)}" for i, v in run)
    return f'<polyline class="line" points="{points}"/>'
