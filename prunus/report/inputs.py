"""Networks that prune themselves: which inputs took how much computation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prunus.report import charts, words

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def inputs(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The histogram of what inputs took, and those that took least and most; None for a network without gates."""
    found = result.get("dynamic")
    if not isinstance(found, Mapping):
        return None
    bars, dense = found["histogram"], found["dense"]
    width = (bars["to"] - bars["from"]) / max(len(bars["counts"]), 1)
    values = [bars["from"] + (i + 0.5) * width for i, count in enumerate(bars["counts"]) for _ in range(count)]
    low, middle, high = (found["quantiles"][i] for i in (0, 2, 4))
    return {
        "mean": words.short(found["mean"]),
        "dense": words.short(dense),
        "gates": words.short(found["gates"]),
        "count": f"{found['inputs']:,}",
        "range": f"{100 * low:.0f} % to {100 * high:.0f} %, half of them at most {100 * middle:.0f} %",
        "chart": charts.histogram(
            values,
            upper=1.0,
            title="Share of the whole network's computation",
            kind="after",
            of="inputs",
            axis="share of the computation",
        ),
        "rows": [
            {"title": title, "pictures": [_picture(p, dense) for p in found.get(key) or ()]}
            for key, title in (("easy", "Least computation"), ("hard", "Most computation"))
        ],
        "floored": ", ".join(f"{layer} ({share:.1%} of inputs)" for layer, share in found.get("floored", {}).items()),
    }


def _picture(entry: Mapping[str, Any], dense: int) -> dict[str, str]:
    """One input: its picture, and what is written below it."""
    png = str(entry.get("png") or "")
    told = f"{100 * entry['macs'] / dense:.0f} %"
    label = str(entry.get("label") or "")
    return {"png": png if PICTURE.fullmatch(png) else "", "text": told, "label": label}
