"""Numbers and findings in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunus.core.checks import check_arguments
from prunus.core.words import a_result
from prunus.report.times import BACKENDS, CLEARLY, in_engine, main_timing, skipped_zeros, sparse, times, timings

VECTOR = 16  # channels in a vector register: the step that every CPU runtime's speed moves in


def short(n: float | None) -> str:
    """A count a person can hold in mind.

    >>> short(855770), short(1.26e8), short(640), short(None)
    ('856 k', '126 M', '640', 'not measured')
    """
    if n is None:
        return "not measured"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(n) >= size:
            value = n / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return f"{n:.0f}"


def size(n: float | None) -> str:
    """Bytes.

    >>> size(3_500_000)
    '3.50 MB'
    """
    return "not measured" if n is None else short(n) + "B" if n >= 1e3 else f"{n:.0f} B"


def milliseconds(ms: float | None) -> str:
    """Three significant digits.

    >>> milliseconds(0.01234), milliseconds(123.4)
    ('0.0123 ms', '123 ms')
    """
    if ms is None:
        return "not measured"
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms:,.0f} ms"


def percent(x: float | None, digits: int = 1) -> str:
    """A fraction in per cent.

    >>> percent(0.93389, 2)
    '93.39 %'
    """
    return "not measured" if x is None else f"{100 * x:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them.

    >>> duration(3725), duration(42.3)
    ('1 h 2 min', '42 s')
    """
    if seconds is None:
        return "not measured"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def left(before: float | None, after: float | None) -> float | None:
    """What remains, as a fraction; None when either is not known."""
    return None if before is None or after is None or before <= 0 else after / before


def faster(ratio: float) -> str:
    """A speed-up in words; within 3 % counts as equal.

    >>> faster(1.72), faster(0.5), faster(1.01)
    ('1.7 times faster', '2.0 times slower', 'as fast as before')
    """
    if abs(ratio - 1) <= 0.03:
        return "as fast as before"
    return (
        f"{ratio:.{_digits(ratio)}f} times faster" if ratio > 1 else f"{1 / ratio:.{_digits(1 / ratio)}f} times slower"
    )


def _digits(ratio: float) -> int:
    return 2 if ratio < 1.2 else 1


def points(before: float, after: float) -> str:
    """A change of accuracy in percentage points.

    >>> points(0.9339, 0.9261), points(0.9, 0.9), points(0.9, 0.901)
    ('0.78 points lower', 'unchanged', '0.10 points higher')
    """
    change = 100 * (after - before)
    if abs(change) < 0.005:
        return "unchanged"
    return f"{abs(change):.2f} point{'' if abs(change) == 1 else 's'} {'higher' if change > 0 else 'lower'}"


def quality(result: Mapping[str, Any]) -> tuple[str, float | None, float | None]:
    """The name of what is scored, and its value before and after: accuracy, else the user's own metric."""
    before, after = result["before"], result["after"]
    if before.get("accuracy") is not None or after.get("accuracy") is not None:
        return "accuracy", before.get("accuracy"), after.get("accuracy")
    metrics = [side.get("metric") or {} for side in (before, after)]
    name = next((m["name"] for m in metrics if m.get("name")), "accuracy")
    return name, metrics[0].get("value"), metrics[1].get("value")


def quality_text(result: Mapping[str, Any]) -> tuple[str, str, str]:
    """Before, after and the change of `quality`, for people."""
    name, before, after = quality(result)
    if name == "accuracy":
        change = points(before, after) if before is not None and after is not None else ""
        return percent(before, 2), percent(after, 2), change
    shown = ["not measured" if v is None else f"{v:.4g}" for v in (before, after)]
    change = "" if before is None or after is None else "unchanged" if before == after else f"{after - before:+.3g}"
    return shown[0], shown[1], change


def verdict(result: Mapping[str, Any]) -> list[str]:
    """What happened in the run of `result`, in sentences for a person who knows nothing of pruning."""
    check_arguments(locals(), result=a_result)
    name, model = quality(result)[0], short_name(str(result["model"]))
    kept = {k: left(result["before"].get(k), result["after"].get(k)) for k in ("params", "macs")}
    sentences = [
        f"{model} keeps {percent(kept['params'])} of its parameters and does {percent(kept['macs'])} of the "
        "computation."
        if None not in kept.values()
        else f"What {model} costs was not measured completely."
    ]
    if sparse(result):
        sentences.append(f"{percent(result['after'].get('density'))} of its weights are not zero.")
    timing = main_timing(result)
    if timing is not None and timing.ratio is not None:
        sentences.append(f"It runs {faster(timing.ratio)} ({timing.where}).")
        if timing == skipped_zeros(result):
            what = "channels that are off" if result.get("dynamic") else "zeros"
            sentences.append(f"Only an engine that skips {what} gains by them; the others compute them all.")
            sentences += _what_gates_gain(result)
        else:
            sentences += _in_engine(result)
        sentences += _odd_widths(result, kept["macs"], timing.ratio)
    else:
        sentences.append("How long it takes was not measured.")
    old, new, change = quality_text(result)
    if change == "unchanged":
        sentences.append(f"Its {name} is unchanged at {new}.")
    elif change:
        sentences.append(f"Its {name} went from {old} to {new} ({change}).")
    else:
        sentences.append(f"Its {name} was not measured before and after.")
    return sentences


def _in_engine(result: Mapping[str, Any]) -> list[str]:
    """Where prunus's own engine runs it faster than the runtimes: by how much, and how to get that."""
    found = in_engine(result)
    if found is None:
        return []
    ours, other = found
    ratio = times(other.after, ours.after) or 1.0
    return [
        f"prunus's own engine runs it in {ours.after:.3g} ms, {faster(ratio)} than {other.backend} "
        f"(batch {ours.batch}): export it --to sparse."
    ]


def _what_gates_gain(result: Mapping[str, Any]) -> list[str]:
    """How the engine runs the network with its gates and without any, since it may be the faster one in both."""
    known = [t for t in timings(result) if t.backend == BACKENDS["sparse"]]
    own = min(known, key=lambda t: (t.batch, t.threads), default=None)
    if own is None or own.ratio is None or not result.get("dynamic"):
        return []
    without = f"Without gates the same engine takes {own.before:.3g} ms, with them {own.after:.3g} ms"
    if own.ratio > CLEARLY:
        return [f"{without}: {faster(own.ratio)}."]
    return [
        f"{without}: on this network deciding takes about as long as it saves. Try to cut channels for all inputs "
        "alike, e.g. by the recipe network-slimming."
    ]


def _odd_widths(result: Mapping[str, Any], macs: float | None, ratio: float) -> list[str]:
    """What to do about a network whose time did not follow its computation: round its widths."""
    widths = [group["kept"] for group in (result.get("plan") or {}).values()]
    if macs is None or ratio * macs > 0.7 or all(kept % VECTOR == 0 for kept in widths):
        return []
    return [
        f"That is less than the computation saved, because processors work on {VECTOR} channels at a time and some "
        f"widths are not multiples of {VECTOR}: say round_to={VECTOR} (--round-to {VECTOR}) at the cut."
    ]


def headline(result: Mapping[str, Any]) -> str:
    """The finding of `result` in one line: smaller, faster, at which price."""
    check_arguments(locals(), result=a_result)
    parts = []
    work = left(result["before"].get("macs"), result["after"].get("macs"))
    if sparse(result):
        parts.append(f"{percent(1 - result['after']['density'], 0)} of the weights zero")
    elif work is not None:
        parts.append("the same computation" if work > 0.995 else f"{percent(1 - work, 0)} less computation")
    timing = main_timing(result)
    if timing is not None and timing.ratio is not None:
        parts.append(faster(timing.ratio))
    price = _price(result)
    if price:
        parts.append(price)
    return f"{short_name(str(result['model']))}: " + (", ".join(parts) or "nothing was measured") + "."


def short_name(model: str) -> str:
    """The model without the library in front, or the folder.

    >>> short_name("prunus:resnet56"), short_name("nets/mine.py:build"), short_name("transformers:a/b.json#BertModel")
    ('resnet56', 'mine.py:build', 'BertModel')
    """
    library, _, name = model.partition(":")
    if library in ("prunus", "torchvision", "timm", "transformers") and name:
        return name.rpartition("/")[2].rpartition("#")[2] if library == "transformers" else name
    return model.rpartition("/")[2]


def _price(result: Mapping[str, Any]) -> str:
    """What it cost, for the headline."""
    name, before, after = quality(result)
    if before is None or after is None:
        return ""
    change = quality_text(result)[2]
    if name != "accuracy":
        return f"{name} {change}"
    if change == "unchanged":
        return "equally accurate"
    return change.replace("lower", "less accurate").replace("higher", "more accurate")


def proof(result: Mapping[str, Any]) -> str:
    """How the cut was verified, in words."""
    verified = result.get("verified")
    if not verified and result.get("dynamic"):
        return "Nothing was cut: gates choose channels anew for every input, and every tensor has the size it had."
    if not verified and sparse(result):
        return "Nothing was cut: weights were set to zero, and every tensor has the size it had."
    if not verified or verified.get("max_relative_error") is None:
        return "The cut was not verified: no comparison with the original network is recorded."
    error = float(verified["max_relative_error"])
    how = "to the last bit" if error == 0 else f"up to a relative difference of {error:.1e}"
    text = (
        "Before the cut, the original network was run with the removed parts silenced; after the cut, the smaller "
        f"network gave the same outputs {how}."
    )
    if verified.get("exact") is False:
        text += " Statistics that span removed parts had to be computed on the remaining ones for this comparison."
    if verified.get("in_place") is False:
        text += " The network was rewritten as a new graph, because it could not be cut in place."
    elif verified.get("in_place"):
        text += " The network was cut in place: same class, same names, smaller tensors."
    return text


def exports(result: Mapping[str, Any]) -> list[str]:
    """How every exported file was compared with the network.

    >>> exports({"exported": {"onnx": 2.4e-7}})[0][:37]
    'The onnx file was run beside PyTorch '
    """
    same = "was run beside PyTorch and gave the same outputs up to a relative difference of"
    return [
        f"The {name} file was written, but not compared with PyTorch."
        if error is None
        else f"The {name} file {same} {error:.1e}."
        for name, error in (result.get("exported") or {}).items()
    ]


def alone(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What was left alone, gathered by reason: ``[(why, [what, ...]), ...]``.

    >>> alone({"left_alone": [{"what": "fc", "why": "output"}, {"what": "aux", "why": "output"}]})
    [('output', ['fc', 'aux'])]
    """
    reasons: dict[str, list[str]] = {}
    ungated = (result.get("dynamic") or {}).get("ungated") or []
    for entry in [*(result.get("left_alone") or []), *ungated]:
        reasons.setdefault(str(entry.get("why", "no reason given")), []).append(str(entry.get("what", "?")))
    return list(reasons.items())
