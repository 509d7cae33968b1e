"""What the stages of weight sparsity may say."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prunus.allocators import allocators
from prunus.core import InputError, UnknownNameError, did_you_mean
from prunus.criteria import criteria, of_data
from prunus.masks import FAMOUS, methods, repairs
from prunus.masks.tensors import check_grain
from prunus.masks.training import made
from prunus.recipes.parts import BasisSpec, BudgetSpec, Strict
from prunus.recipes.stage import Stage, Training


class Weights(Strict):
    """Which weights, and how many may stay: ``budget.density`` 0.05 keeps 5 %.

    With a `basis` (`BasisSpec`) it is coefficients that are masked.

    `grain` is ``element``, ``kernel``, ``filter``, an N:M pattern such as ``2:4``, or a block of outputs and inputs,
    ``[4, 1]``.
    """

    budget: BudgetSpec
    basis: BasisSpec = BasisSpec()
    grain: str | tuple[int, int] = "element"
    only: list[str] = []
    skip: list[str] = []

    @field_validator("budget")
    @classmethod
    def _is_a_density(cls, budget: BudgetSpec) -> BudgetSpec:
        if budget.density is None or budget.params is not None or budget.macs is not None:
            raise InputError("weights are masked to a density; write budget: {density: 0.05}, which keeps 5 %.")
        return budget

    @field_validator("grain")
    @classmethod
    def _known_grain(cls, grain: Any) -> Any:
        check_grain(grain)
        return grain

    @property
    def density(self) -> float:
        """Which fraction of the weights stays."""
        value = self.budget.density
        assert value is not None
        return float(value)


class Mask(Weights, Stage):
    """Choose which weights stay, by a criterion asked once or in rounds, and set the others to zero.

    `criterion` is a criterion of weights, or one of the names of papers: ``iterative-snip``, ``force``, ``erk``,
    ``magnitude`` ...; what is left out (`rounds`, `back`, `shape`, `allocator`, `temperature`, `norms`, `per_class`) is
    then as in the paper.  A network that was trained keeps its batch norms' statistics, whatever `norms` says.
    """

    do: Literal["mask"]
    criterion: str = "magnitude"
    allocator: str | None = None
    rounds: int | None = Field(None, ge=1)
    back: bool | None = None
    shape: Literal["exponential", "linear"] | None = None
    temperature: float | None = Field(None, gt=0)
    norms: Literal["batch", "data", "running"] | None = None
    per_class: int | None = Field(None, ge=1)
    control: Literal["none", "shuffle", "redraw", "invert"] = "none"
    repair: bool | str = False
    samples: int = Field(256, ge=1)

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, name: str) -> str:
        if name in FAMOUS:
            return name
        if name not in criteria:
            known = (*FAMOUS, *(entry.name for entry in criteria))
            raise UnknownNameError(f"there is no criterion '{name}'.{did_you_mean(name, known)} See: prunus ls.")
        if criteria[name].declares["weights"] is None:
            raise InputError(f"criterion '{name}' compares channels; of weights: {', '.join(FAMOUS)}, wanda, obc ...")
        return name

    @field_validator("allocator")
    @classmethod
    def _known_allocator(cls, name: str | None) -> str | None:
        return None if name is None else allocators[name].name

    @field_validator("repair")
    @classmethod
    def _known_repair(cls, name: bool | str) -> bool | str:
        return repairs[name].name if isinstance(name, str) else name

    @property
    def asked(self) -> dict[str, Any]:
        """The arguments of `prunus.masks.at_init`: those of the paper, and over them what the recipe says."""
        own = ("allocator", "rounds", "back", "shape", "temperature", "norms", "per_class")
        given = {key: getattr(self, key) for key in own if getattr(self, key) is not None}
        return {**FAMOUS.get(self.criterion, {"criterion": self.criterion}), **given}

    @property
    def looks_at_data(self) -> bool:
        """Whether the criterion or the repair looks at data."""
        return bool(of_data(self.asked["criterion"])) or bool(self.repair)


class SparseTrain(Weights, Training):
    """Train under masks that move by a `method`; `options` are those of the method."""

    do: Literal["sparse-train"]
    method: str = "rigl"
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _can_be_made(self) -> SparseTrain:
        known = list(inspect.signature(methods[self.method].call).parameters)[2:]
        for option in self.options:
            if option not in known:
                hint = did_you_mean(option, known)
                raise InputError(f"method '{self.method}' has no '{option}'.{hint} Known: {', '.join(known)}.")
        made(self.method, self.density, 1000, self.options)
        return self


class Tickets(Weights, Training):
    """Lottery tickets: train, prune the least of what is left, rewind; again and again, and train at the end.

    Every training takes `epochs`; `early` is the epoch that is rewound to.
    """

    do: Literal["tickets"]
    criterion: str = "magnitude"
    allocator: str = "global"
    rounds: int | None = Field(None, ge=1)
    rewind: Literal["weights", "rate"] = "weights"
    early: int = Field(0, ge=0)
    control: Literal["none", "shuffle", "redraw"] = "none"

    @field_validator("criterion")
    @classmethod
    def _of_weights(cls, name: str) -> str:
        found = str(FAMOUS.get(name, {"criterion": name})["criterion"])
        if criteria[found].declares["weights"] is None or of_data(found):
            raise InputError(
                f"criterion '{name}' is not of weights alone; between rounds choose one such as magnitude."
            )
        return name

    @field_validator("allocator")
    @classmethod
    def _known_allocator(cls, name: str) -> str:
        return allocators[name].name

    @model_validator(mode="after")
    def _rewinds_to_before_the_end(self) -> Tickets:
        if self.early >= self.epochs:
            raise InputError(f"early: {self.early}: the epoch to rewind to lies before the end, epochs: {self.epochs}.")
        if self.control == "redraw" and self.rewind == "rate":
            raise InputError("control: redraw draws the weights that are rewound to: it needs rewind: weights.")
        return self
