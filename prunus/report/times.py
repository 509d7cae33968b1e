"""How long it took before and after, where, and what to speak of first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLEARLY = 1.1  # times faster
BACKENDS = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "sparse": "prunus engine"}


def times(before: float | None, after: float | None) -> float | None:
    """How many times faster: old time over new time."""
    return None if before is None or after is None or after <= 0 else before / after


@dataclass(frozen=True)
class Timing:
    """One latency before and after, in one backend at one batch size."""

    backend: str
    batch: int
    threads: int
    before: float | None
    after: float | None

    @property
    def ratio(self) -> float | None:
        """How many times faster."""
        return times(self.before, self.after)

    @property
    def where(self) -> str:
        """For people: ``ONNX Runtime, batch 1, 1 thread``."""
        return f"{self.backend}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def timings(result: Mapping[str, Any]) -> list[Timing]:
    """Every latency of a result, ordered by backend, threads and batch.

    >>> timings({"before": {"latency_ms": {"torch,b1,t2": 4.0}}, "after": {"latency_ms": {"torch,b1,t2": 2.0}}})
    [Timing(backend='PyTorch', batch=1, threads=2, before=4.0, after=2.0)]
    """
    before = result["before"].get("latency_ms") or {}
    after = result["after"].get("latency_ms") or {}
    out = []
    for key in {**before, **after}:
        backend, batch, threads = _parts(key)
        out.append(Timing(BACKENDS.get(backend, backend), batch, threads, before.get(key), after.get(key)))
    return sorted(out, key=lambda t: (t.backend != "ONNX Runtime", t.backend, t.threads, t.batch))


def _parts(key: str) -> tuple[str, int, int]:
    """``"torch,b1,t2"`` taken apart; a key of another form is a backend of batch 1 and one thread."""
    name, *rest = key.split(",")
    numbers = {part[:1]: int(part[1:]) for part in rest if part[1:].isdigit()}
    return name, numbers.get("b", 1), numbers.get("t", 1)


def main_timing(result: Mapping[str, Any]) -> Timing | None:
    """The latency to speak of first: a deployment runtime before PyTorch, one sample before many."""
    skipping = skipped_zeros(result)
    if skipping is not None:
        return skipping
    known = [t for t in timings(result) if t.ratio is not None]
    return min(known, key=lambda t: (t.backend == "PyTorch", t.batch, t.threads), default=None)


def skipped_zeros(result: Mapping[str, Any]) -> Timing | None:
    """What zeros, or gates, buy: prunus's engine after the run, the fastest dense runtime before it, one sample first.

    >>> before, after = {"onnxruntime,b1,t1": 4.0, "openvino,b1,t1": 3.0, "sparse,b1,t1": 5.0}, {"sparse,b1,t1": 1.0}
    >>> sides = {"before": {"density": 1.0, "latency_ms": before}, "after": {"density": 0.1, "latency_ms": after}}
    >>> skipped_zeros(sides).where
    'prunus engine after, OpenVINO before, batch 1, 1 thread'
    """
    if not sparse(result) and not result.get("dynamic"):
        return None
    known = timings(result)
    ours = [t for t in known if t.backend == BACKENDS["sparse"] and t.after is not None]
    for t in sorted(ours, key=lambda t: (t.batch, t.threads)):
        others = [o for o in known if (o.batch, o.threads) == (t.batch, t.threads) and o.before is not None]
        dense = [o for o in others if o.backend not in (BACKENDS["torch"], BACKENDS["sparse"])]
        if dense:
            fastest = min(dense, key=lambda o: o.before or 0.0)
            name = f"{BACKENDS['sparse']} after, {fastest.backend} before"
            return Timing(name, t.batch, t.threads, fastest.before, t.after)
    return None


def in_engine(result: Mapping[str, Any]) -> tuple[Timing, Timing] | None:
    """The times in prunus's engine and in the fastest other runtime, where the engine runs the new network faster.

    The smallest batch at which it clearly is; None where it never is.
    """
    known = [t for t in timings(result) if t.after is not None]
    for ours in (t for t in known if t.backend == BACKENDS["sparse"]):
        others = [o for o in known if (o.batch, o.threads) == (ours.batch, ours.threads) and o is not ours]
        fastest = min(others, key=lambda o: o.after or 0.0, default=None)
        ratio = times(fastest.after, ours.after) if fastest else None
        if fastest and ratio and ratio > CLEARLY:
            return ours, fastest
    return None


def sparse(result: Mapping[str, Any]) -> bool:
    """Whether single weights were masked: more zeros than the network began with."""
    before, after = (result[side].get("density") for side in ("before", "after"))
    return before is not None and after is not None and after < before and not result.get("plan")
