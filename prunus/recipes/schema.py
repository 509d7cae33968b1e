"""What a recipe may say: one pydantic class a stage, and what is common to all of them."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prunus.allocators import allocators
from prunus.core import Budget, BudgetError, InputError, UnknownNameError, did_you_mean
from prunus.criteria import criteria
from prunus.regularizers import Regularizer, regularizers

FORMATS = ("onnx",)


class Strict(BaseModel):
    """A part of a recipe: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=False)


class BudgetSpec(Strict):
    """What may remain: a fraction of the original network, or an absolute whole number."""

    params: int | float | None = None
    macs: int | float | None = None

    @model_validator(mode="after")
    def _is_a_budget(self) -> BudgetSpec:
        Budget(**self._limits())
        return self

    def at(self, progress: float, original: dict[str, int]) -> Budget:
        """The budget after the share `progress` of the way from the original cost to this budget, in absolute numbers.

        >>> BudgetSpec(macs=0.5).at(0.5, {"macs": 1000, "params": 10})
        Budget(params=None, macs=750)
        """
        ends = Budget(**self._limits()).limits(original)
        return Budget(**{kind: int(original[kind] - progress * (original[kind] - end)) for kind, end in ends.items()})

    def _limits(self) -> dict[str, Any]:
        given = {"params": self.params, "macs": self.macs}
        return {kind: 1.0 if value == 1 else value for kind, value in given.items() if value is not None}


class RegularizerSpec(BaseModel):
    """A regularizer by name, with the arguments of its factory."""

    model_config = ConfigDict(extra="allow")
    name: str

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
            if isinstance(value, str):
                raise InputError(f"regularizer '{self.name}': {argument}={value!r} is not a number.")
        return factory(**given)


class DistillSpec(Strict):
    """Learning from another network of the run.

    `teacher` is the name of a stage (the network as that stage left it), or ``unpruned``: the network that the run
    began with when it had weights, else as it was just before the first cut.
    """

    temperature: float = Field(4.0, gt=0)
    weight: float = Field(0.9, ge=0, le=1)
    teacher: str = "unpruned"


class DataSpec(Strict):
    """Where the data comes from, and how its images become inputs where that is not as the model declares."""

    source: str
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    scale: float | None = None
    size: int | list[int] | None = None
    channels: int | None = None
    crop: float | None = None
    limit: int | None = Field(None, ge=1)
    decide: float = Field(0.1, ge=0, lt=1)

    @property
    def preprocess(self) -> dict[str, Any]:
        """The fields of the preprocessing that are overridden."""
        given = {k: getattr(self, k) for k in ("mean", "std", "scale", "size", "channels", "crop")}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}


class MeasureSpec(Strict):
    """What is timed at the end: every backend at every batch size."""

    backends: list[str] = ["torch", "onnxruntime"]
    batches: list[Annotated[int, Field(ge=1)]] = [1, 64]
    threads: int = Field(1, ge=1)
    seconds: float = Field(0.5, gt=0)

    @field_validator("backends")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        import prunus.export  # noqa: F401 (registers its backends)
        from prunus.measure import backends

        for name in names:
            backends[name]
        return names


class Stage(Strict):
    """One step of a run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


class Training(Stage):
    """What stages that train have in common."""

    epochs: int = Field(ge=1)
    lr: float = Field(0.1, gt=0)
    schedule: str | dict[str, Any] = "cosine"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    decay: Literal["all", "weights"] = "all"
    batch: int = Field(128, ge=1)
    augment: str = "auto"
    precision: str = "auto"
    clip: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _has_a_rate(self) -> Training:
        from prunus.train.rates import learning_rate

        learning_rate(self.schedule, self.lr, self.epochs, 100)
        return self

    @field_validator("augment")
    @classmethod
    def _known_augment(cls, name: str) -> str:
        from prunus.data import Augment

        Augment.of(name, Augment())
        return name

    @field_validator("precision", mode="before")
    @classmethod
    def _known_precision(cls, name: Any) -> str:
        import torch

        from prunus.train import choose_precision

        choose_precision(str(name), torch.device("cpu"))
        return str(name)


class Sparsify(Training):
    """Train under a regularizer.

    `initial_scale` sets every normalisation scale before the first step, for networks trained from scratch (0.5 in Liu
    et al. 2017); leave it out for trained ones.
    """

    do: Literal["sparsify"]
    regularizer: RegularizerSpec = RegularizerSpec(name="bn-gamma")
    initial_scale: float | None = Field(None, gt=0)
    distill: DistillSpec | None = None


class Finetune(Training):
    """Train what is left."""

    do: Literal["finetune"]
    regularizer: RegularizerSpec | None = None
    distill: DistillSpec | None = None


class Prune(Stage):
    """Cut the network down to its budget, for good.

    `progress` is how far on the way from the original cost to the budget this cut goes: 1 is all the way.
    """

    do: Literal["prune"]
    criterion: str = "l2"
    allocator: str = "global"
    budget: BudgetSpec
    progress: float = Field(1.0, gt=0, le=1)
    round_to: int = Field(1, ge=1)
    floor: int | float | None = Field(None, ge=0)
    freeze: list[str] = []
    only: list[str] = []
    absorb: bool = False
    select: bool | Literal["auto"] = False
    verify: bool = True

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, name: str) -> str:
        return criteria[name].name

    @field_validator("allocator")
    @classmethod
    def _known_allocator(cls, name: str) -> str:
        return allocators[name].name


class Recalibrate(Stage):
    """Set the batch-norm statistics anew from training data."""

    do: Literal["recalibrate"]
    batches: int = Field(100, ge=1)
    batch: int = Field(128, ge=1)


class Export(Stage):
    """Write the network in other formats."""

    do: Literal["export"]
    to: list[str] = ["onnx"]

    @field_validator("to")
    @classmethod
    def _known_formats(cls, names: list[str]) -> list[str]:
        from prunus.export import exporters

        for name in names:
            exporters[name]
        return names


STAGES: dict[str, type[Stage]] = {
    "sparsify": Sparsify,
    "prune": Prune,
    "finetune": Finetune,
    "recalibrate": Recalibrate,
    "export": Export,
}
AnyStage = Annotated[Sparsify | Prune | Finetune | Recalibrate | Export, Field(discriminator="do")]
STAGE_KEYS = frozenset(key for kind in STAGES.values() for key in kind.model_fields) - {"do", "name"}


class Recipe(Strict):
    """One run: a model, its data, and the stages it goes through, in order."""

    recipe: str
    about: str = ""
    seed: int = Field(0, ge=0)
    model: str
    weights: str | None = None
    classes: int | None = Field(None, ge=1)
    data: DataSpec | None = None
    input: str | None = None
    evaluate: str | None = None
    loss: str | None = None
    measure: MeasureSpec = MeasureSpec()
    stages: list[AnyStage] = Field(min_length=1)

    @field_validator("data", mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"source": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        names: list[str] = []
        for stage in self.stages:
            if stage.name in names:
                raise InputError(f"two stages are named '{stage.name}'; give each its own name:.")
            teacher = getattr(getattr(stage, "distill", None), "teacher", "unpruned")
            if teacher not in (*names, "unpruned"):
                hint = did_you_mean(teacher, names)
                raise UnknownNameError(f"stage '{stage.name}': no earlier stage is named '{teacher}'.{hint}")
            names.append(stage.name)
        needy = [s.name for s in self.stages if isinstance(s, (Training, Recalibrate))]
        if self.data is None and needy:
            raise InputError(f"stage '{needy[0]}' needs data; give data: (a folder, Parquet files, or a name).")
        return self


__all__ = [
    "STAGES",
    "STAGE_KEYS",
    "AnyStage",
    "BudgetError",
    "BudgetSpec",
    "DataSpec",
    "DistillSpec",
    "Export",
    "Finetune",
    "MeasureSpec",
    "Prune",
    "Recalibrate",
    "Recipe",
    "RegularizerSpec",
    "Sparsify",
    "Stage",
    "Training",
]
