"""What a cut did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from prunus.core.operators import Fixed
from prunus.core.plan import Plan


@dataclass(frozen=True)
class Verified:
    """The proof of a cut: largest relative difference between the silenced original and the shrunk network.

    `exact` is False when the reference had to recompute statistics over the kept units; `dtype` is the precision.
    `hidden` names parameters that are zero throughout and would hide what lies behind them: one of the comparisons was
    made with random numbers in their place, in both networks.  `sensitive` is False when the outputs did not change
    with the weights that were cut, so that the comparison says nothing.

    Attributes:
        max_relative_error: the largest ``max|a - b| / max|b|`` over all outputs; no unit.
        in_place: False where it was the rewritten network that was compared.
    """

    max_relative_error: float
    exact: bool = True
    in_place: bool = True
    dtype: str = "float64"
    hidden: tuple[str, ...] = ()
    sensitive: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of the proof, as text."""
        out = []
        if self.hidden:
            out.append(
                f"parameters that are zero throughout hide what lies behind them ({len(self.hidden)}, first "
                f"'{self.hidden[0]}'): the proof compared both networks also with random numbers in their place."
            )
        if not self.sensitive:
            out.append(
                "the outputs do not change with the weights that were cut, so that the proof could not have failed: it "
                "says nothing. Load trained weights, or trace with other example inputs."
            )
        return tuple(out)


@dataclass(frozen=True, eq=False)
class Report:
    """What a cut did: `model` is always the network to use.

    `before` and `after` hold ``{"params": int, "macs": int}``; `plan` is the cut just made in the coordinates of the
    network it was made on.

    Attributes:
        in_place: True where `model` is the module that was given, cut; False where it is a new, rewritten one.
        verified: the proof of the cut; None where it was not asked for, or tensors have no values.
        left_alone: what could not be cut, or may not, and why.
        notes: what else has to be known, one sentence each.
    """

    model: nn.Module
    in_place: bool
    before: Mapping[str, int]
    after: Mapping[str, int]
    plan: Plan
    verified: Verified | None = None
    left_alone: tuple[Fixed, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        rows = []
        for kind, old in self.before.items():
            new = self.after[kind]
            rows.append(f"{kind:<7}{old:>15,} -> {new:>15,}  ({new / max(old, 1):6.1%} left)")
        cut = {k: g for k, g in self.plan.groups.items() if len(g.kept) < g.units}
        rows.append(f"{len(cut)} of {len(self.plan.groups)} groups cut, {len(self.left_alone)} things left alone")
        if self.verified is not None:
            rows.append(f"verified: max relative error {self.verified.max_relative_error:.1e} ({self.verified.dtype})")
        return "\n".join(rows + list(self.notes))
