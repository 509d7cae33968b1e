"""Everything that decides how a stage is trained, apart from the network and the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from prunus.core.errors import InputError
from prunus.recovery.distillation import check_distill
from prunus.train.rates import Rate


@dataclass(frozen=True)
class Settings:
    """The settings of a stage; a run is resumed only with equal ones."""

    stage: str
    epochs: int
    lr: float
    schedule: Any
    optimizer: str
    momentum: float
    weight_decay: float
    decay: str
    batch: int
    regularizer: Any
    distill: Mapping[str, float] | None
    precision: str
    clip: float | None
    augment: Any
    channels_last: bool
    seed: int
    every: float
    sparse: Mapping[str, Any] | None = None
    periods: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: expected a whole number of at least 1.")
        for name in ("lr", "every"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)!r}: expected a number above 0.")
        for name in ("momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)!r}: expected a number of at least 0.")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip={self.clip!r}: expected a gradient norm above 0, or nothing.")
        if not self.stage or "/" in self.stage or self.stage.startswith("."):
            raise InputError(f"stage={self.stage!r}: the name of a stage is also a file name; use letters and '-'.")
        if self.distill is not None:
            unknown = set(self.distill) - {"temperature", "weight"}
            if unknown:
                raise InputError(f"distill has no {', '.join(sorted(map(str, unknown)))}. Known: temperature, weight.")
            check_distill(self.distill.get("temperature", 4.0), self.distill.get("weight", 0.9))

    def fingerprint(self, precision: str, steps: int, world: int, rate: Rate) -> dict[str, Any]:
        """What has to be equal when a run is resumed, as primitives; functions are shown by what they return."""
        total = self.epochs * steps
        skipped = ("every", "precision", "schedule")
        out = {f.name: _primitive(getattr(self, f.name)) for f in fields(self) if f.name not in skipped}
        probes = [float(rate(step)) for step in (0, total // 3, total // 2, total - 1)]
        return out | {"precision": precision, "steps": steps, "world": world, "learning rates": probes}


def _primitive(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _primitive(v) for k, v in value.items()}
    return type(value).__name__
