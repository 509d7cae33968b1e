"""What is common to the stages of a recipe: budget, regularizer, teacher, data, and what is timed."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from prunus.core import Budget, BudgetError, InputError, UnknownNameError, did_you_mean
from prunus.regularizers import Regularizer, regularizers


class Strict(BaseModel):
    """A part of a recipe: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=False, allow_inf_nan=False)


class BudgetSpec(Strict):
    """What may remain: a fraction of the original network, or an absolute whole number."""

    params: int | float | None = None
    macs: int | float | None = None
    density: int | float | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_kinds(cls, given: Any) -> Any:
        if not isinstance(given, (dict, BudgetSpec)):
            raise BudgetError(f"expected what may remain, e.g. {{macs: 0.5}}, which keeps half; given {given!r}.")
        return given

    @field_validator("params", "macs", "density", mode="before")
    @classmethod
    def _is_a_number(cls, given: Any, info: ValidationInfo) -> Any:
        kind = info.field_name
        if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float))):
            raise BudgetError(f"{given!r} is not a number; a fraction is written 0.5 ({kind}=0.5 keeps half).")
        if isinstance(given, int) and 1 < given <= 100:
            raise BudgetError(
                f"{given} would be an absolute number of {kind}; a fraction is written 0.5 ({kind}=0.5 keeps half)."
            )
        return given

    @model_validator(mode="after")
    def _is_a_budget(self) -> BudgetSpec:
        Budget(**self._limits())
        return self

    def at(self, progress: float, original: dict[str, int]) -> Budget:
        """The budget after the share `progress` of the way from the original cost to this budget, in absolute numbers.

        >>> BudgetSpec(macs=0.5).at(0.5, {"macs": 1000, "params": 10})
        Budget(params=None, macs=750, density=None)
        """
        ends = Budget(**self._limits()).limits(original)
        return Budget(**{kind: int(original[kind] - progress * (original[kind] - end)) for kind, end in ends.items()})

    def _limits(self) -> dict[str, Any]:
        given = {"params": self.params, "macs": self.macs, "density": self.density}
        return {kind: 1.0 if value == 1 else value for kind, value in given.items() if value is not None}


class RegularizerSpec(BaseModel):
    """A regularizer by name, with the arguments of its factory."""

    model_config = ConfigDict(extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _can_be_made(self) -> RegularizerSpec:
        self.make()
        return self

    def make(self) -> Regularizer:
        """The regularizer itself; raises `InputError` for an argument it does not take."""
        factory = regularizers[self.name].call
        given = dict(self.model_extra or {})
        known = list(inspect.signature(factory).parameters)
        for argument, value in given.items():
            if argument not in known:
                hint = did_you_mean(argument, known)
                raise InputError(f"regularizer '{self.name}' has no '{argument}'.{hint} Known: {', '.join(known)}.")
            if not isinstance(value, (int, float)):
                raise InputError(f"regularizer '{self.name}': {argument}={value!r} is not a number.")
        return factory(**given)


BASES = ("none", "fine", "medium", "coarse")


class BasisSpec(Strict):
    """In which basis filters are, or the name of who shares one alone: ``fine``.

    `sharing`: filters share a basis in a layer (``fine``), in a stage of the network (``medium``), or in all of it
    (``coarse``); ``none`` leaves the network as it is.  `init`, `unit` and `block` are as of `prunus.interspace_`.
    """

    sharing: str = "none"
    init: str = "standard"
    unit: bool = True
    block: int | None = Field(None, ge=2)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        return {"sharing": given} if isinstance(given, str) else given

    @field_validator("sharing")
    @classmethod
    def _known_sharing(cls, name: str) -> str:
        if name not in BASES:
            raise UnknownNameError(f"there is no basis '{name}'.{did_you_mean(name, BASES)} Known: {', '.join(BASES)}.")
        return name

    @field_validator("init")
    @classmethod
    def _known_init(cls, name: str) -> str:
        from prunus.bases import inits

        return inits[name].name

    @model_validator(mode="after")
    def _is_of_a_basis(self) -> BasisSpec:
        said = [key for key in ("init", "unit", "block") if getattr(self, key) != type(self).model_fields[key].default]
        if said and not self:
            raise InputError(f"{said[0]}: is of a basis, and there is none; write basis: {{sharing: fine, ...}} too.")
        return self

    def __bool__(self) -> bool:
        return self.sharing != "none"


class DistillSpec(Strict):
    """Learning from another network of the run.

    `teacher` is the name of a stage (the network as that stage left it), or ``unpruned``: the network that the run
    began with when it had weights, else as it was just before the first cut.
    """

    temperature: float = Field(4.0, gt=0)
    weight: float = Field(0.9, ge=0, le=1)
    teacher: str = "unpruned"


class DataSpec(Strict):
    """Where the data comes from, its columns, and how images become inputs where that is not as the model declares."""

    source: str
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    scale: float | None = None
    size: int | list[int] | None = None
    channels: int | None = None
    crop: float | None = None
    image: str | None = None
    label: str | None = None
    limit: int | None = Field(None, ge=1, lt=2**31)
    decide: float = Field(0.1, ge=0, lt=1)

    @property
    def preprocess(self) -> dict[str, Any]:
        """The fields of the preprocessing that are overridden."""
        given = {k: getattr(self, k) for k in ("mean", "std", "scale", "size", "channels", "crop")}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}


class MeasureSpec(Strict):
    """What is timed at the end: every backend at every batch size.

    ``auto``: torch, ONNX Runtime and prunus's engine; where the run leaves zeros, OpenVINO too if it is installed.
    """

    backends: list[str] | Literal["auto"] = "auto"
    batches: list[Annotated[int, Field(ge=1, le=65536)]] = [1, 64]
    threads: int = Field(1, ge=1, le=1024)
    seconds: float = Field(0.5, gt=0, le=3600)

    @field_validator("backends")
    @classmethod
    def _known(cls, names: list[str] | Literal["auto"]) -> list[str] | Literal["auto"]:
        from prunus.core.backends import backends

        for name in names if isinstance(names, list) else ():
            backends[name]
        return names

    def chosen(self, *, zeros: bool) -> list[str]:
        """The names of the backends, for a run that leaves zeros or does not."""
        if isinstance(self.backends, list):
            return self.backends
        from prunus.export.openvino import installed

        return ["torch", "onnxruntime", *(["openvino"] if zeros and installed() else []), "sparse"]
