"""What may remain of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunus.core.checks import Kind, a_portion, a_text, check_arguments, is_int
from prunus.core.errors import BudgetError, did_you_mean

KINDS = ("params", "macs", "density")


COSTS_BEFORE = Kind(
    "the costs of the original network, as groups.costs() gives them",
    lambda v: isinstance(v, Mapping) and all(isinstance(k, str) and is_int(n) and n >= 0 for k, n in v.items()),
)


@dataclass(frozen=True)
class Budget:
    """What may *remain*: a float in (0, 1] is a fraction of the original, an int is absolute.

    `params` counts parameter elements, `macs` multiply-adds per sample, `density` weights that may be masked (of
    `prunus.tensors`).  Several at once must all hold.

    >>> Budget(macs=0.5).limits({"macs": 1001, "params": 10})
    {'macs': 500}
    >>> Budget(macs=2.0)
    Traceback (most recent call last):
    prunus.core.errors.BudgetError: budget macs=2.0: a fraction must lie in (0, 1]; an absolute budget is an int.
    """

    params: float | int | None = None
    macs: float | int | None = None
    density: float | int | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, kind) is None for kind in KINDS):
            raise BudgetError(f"a budget needs at least one of {', '.join(KINDS)}, e.g. Budget(macs=0.5).")
        for kind in KINDS:
            value = getattr(self, kind)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise BudgetError(f"budget {kind}={value!r}: expected a fraction in (0, 1] or a positive int.")
            if isinstance(value, float) and not 0 < value <= 1:
                raise BudgetError(
                    f"budget {kind}={value}: a fraction must lie in (0, 1]; an absolute budget is an int."
                )
            if isinstance(value, int) and value < 1:
                raise BudgetError(f"budget {kind}={value}: an absolute budget must be at least 1.")

    def limits(self, original: dict[str, int]) -> dict[str, int]:
        """The absolute limit of every kind that is set, given the cost of the original network.

        Raises: `BudgetError` for a kind that the groups do not count.
        """
        check_arguments(locals(), original=COSTS_BEFORE)
        out: dict[str, int] = {}
        for kind in KINDS:
            value = getattr(self, kind)
            if value is not None:
                if kind not in original:
                    raise BudgetError(
                        f"budget {kind}={value}: these groups count {', '.join(original)}. Weights are masked to a "
                        "density, prunus.tensors(model); units are cut to macs or params, prunus.trace(model, ...)."
                    )
                out[kind] = value if isinstance(value, int) else int(value * original[kind])
        return out

    def on_the_way(self, progress: float, original: dict[str, int]) -> Budget:
        r"""The budget :math:`C - p (C - B)` at `progress` :math:`p` in [0, 1] from the `original` cost to this one.

        >>> Budget(macs=0.5).on_the_way(0.5, {"macs": 1000, "params": 10})
        Budget(params=None, macs=750, density=None)
        """
        check_arguments(locals(), progress=a_portion, original=COSTS_BEFORE)
        if progress == 1:
            return self
        limits = {k: original[k] - progress * max(original[k] - n, 0) for k, n in self.limits(original).items()}
        return Budget(**{kind: max(int(limit), 1) for kind, limit in limits.items()})

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a `text`, ``"macs=0.5"`` or ``"macs=0.5,params=100000"``, as on the command line.

        >>> Budget.parse("macs=0.5,params=1000")
        Budget(params=1000, macs=0.5, density=None)
        >>> Budget.parse("mac=0.5")
        Traceback (most recent call last):
        prunus.core.errors.BudgetError: unknown budget 'mac'. Did you mean 'macs'? Known: params, macs, density.
        """
        check_arguments(locals(), text=a_text)
        values: dict[str, float | int] = {}
        for item in text.split(","):
            kind, _, number = item.strip().partition("=")
            if kind not in KINDS:
                raise BudgetError(f"unknown budget '{kind}'.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}.")
            try:
                values[kind] = int(number) if number.strip().isdigit() and int(number) > 1 else float(number)
            except ValueError:
                raise BudgetError(f"budget {kind}={number!r} is not a number, e.g. {kind}=0.5.") from None
        return cls(**values)
