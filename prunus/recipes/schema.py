"""What a recipe may say: one pydantic class a stage, and the recipe itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from prunus.allocators import allocators
from prunus.core import InputError, UnknownNameError, did_you_mean
from prunus.criteria import criteria
from prunus.recipes.dynamic import Dynamic
from prunus.recipes.parts import (
    BasisSpec,
    BudgetSpec,
    DataSpec,
    DistillSpec,
    MeasureSpec,
    RegularizerSpec,
    Strict,
)
from prunus.recipes.sparsity import Mask, SparseTrain, Tickets, Weights
from prunus.recipes.stage import Stage, Training


class Sparsify(Training):
    """Train under a regularizer.

    `initial_scale` sets every normalisation scale before the first step, for networks trained from scratch (0.5 in Liu
    et al. 2017); leave it out for trained ones.
    """

    do: Literal["sparsify"]
    regularizer: RegularizerSpec = RegularizerSpec(name="bn-gamma")
    basis: BasisSpec = BasisSpec()
    initial_scale: float | None = Field(None, gt=0)
    distill: DistillSpec | None = None


class Finetune(Training):
    """Train what is left; with a `basis` (`BasisSpec`) in its coefficients, all of them where nothing was masked."""

    do: Literal["finetune"]
    regularizer: RegularizerSpec | None = None
    basis: BasisSpec = BasisSpec()
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
    round_to: int = Field(1, ge=1, le=65536)
    floor: int | float | None = Field(None, ge=0)
    freeze: list[str] = []
    only: list[str] = []
    absorb: bool = False
    select: bool | Literal["auto"] = False
    repair: bool | Literal["least-squares", "blocks", "bias"] = False
    merge: bool = False
    per: Literal["macs", "params"] | None = None
    verify: bool = True

    @field_validator("budget")
    @classmethod
    def _of_units(cls, budget: BudgetSpec) -> BudgetSpec:
        if budget.density is not None:
            raise InputError("units are cut to macs or params; a density is of weights: do: mask, or sparse-train.")
        return budget

    @field_validator("floor")
    @classmethod
    def _is_a_share_or_whole(cls, floor: int | float | None) -> int | float | None:
        if isinstance(floor, float) and not floor <= 1:
            raise InputError(f"{floor} is neither a share of a group (below 1) nor a whole number of its units.")
        return floor

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, name: str) -> str:
        return criteria[name].name

    @field_validator("allocator")
    @classmethod
    def _known_allocator(cls, name: str) -> str:
        return allocators[name].name


class DropBlocks(Stage):
    """Remove whole residual blocks: `n` of them, or all but `keep` (a number, or a share below 1)."""

    do: Literal["drop-blocks"]
    n: int | None = Field(None, ge=1)
    keep: int | float | None = Field(None, gt=0)
    method: Literal["shortgpt", "contiguous"] = "shortgpt"

    @model_validator(mode="after")
    def _one_of_two(self) -> DropBlocks:
        if (self.n is None) == (self.keep is None):
            raise InputError("give n: how many blocks go, or keep: how many (or which share below 1) stay.")
        return self


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


def basis_of(stages: Iterable[Stage]) -> BasisSpec:
    """The basis that the network is in after these stages."""
    return next((basis for stage in stages if (basis := getattr(stage, "basis", None))), BasisSpec())


def check_bases(stages: Sequence[Stage]) -> None:
    """Raise `InputError` for a second basis, one that comes after masks, and blocks of layers that are cut."""
    for i, stage in enumerate(stages):
        basis, before = getattr(stage, "basis", None), basis_of(stages[:i])
        if not basis or basis == before:
            continue
        if before:
            raise InputError(f"stage '{stage.name}' names another basis than the one that the network is in already.")
        masked = next((s.name for s in stages[:i] if isinstance(s, Weights)), None)
        if masked is not None:
            raise InputError(
                f"stage '{stage.name}' puts the network in a basis after stage '{masked}' has masked its weights, "
                f"which would be lost; give the basis to stage '{masked}'."
            )
        cut = next((s.name for s in stages if isinstance(s, Prune)), None)
        if basis.block is not None and cut is not None:
            raise InputError(f"stage '{cut}' cuts units, and block: {basis.block} ties them together; leave one out.")
        gated = next((s.name for s in stages if isinstance(s, Dynamic)), None)
        if gated is not None:
            raise InputError(f"stage '{gated}' gives the network gates, which know no bases; leave one out.")


STAGES: dict[str, type[Stage]] = {
    "sparsify": Sparsify,
    "prune": Prune,
    "drop-blocks": DropBlocks,
    "finetune": Finetune,
    "recalibrate": Recalibrate,
    "export": Export,
    "mask": Mask,
    "sparse-train": SparseTrain,
    "tickets": Tickets,
    "dynamic": Dynamic,
}
AnyStage = Annotated[
    Sparsify | Prune | DropBlocks | Finetune | Recalibrate | Export | Mask | SparseTrain | Tickets | Dynamic,
    Field(discriminator="do"),
]
STAGE_KEYS = frozenset(key for kind in STAGES.values() for key in kind.model_fields) - {"do", "name"}


class Recipe(Strict):
    """One run: a model, its data, and the stages it goes through, in order.

    Attributes:
        recipe: its name, 1 to 64 letters, digits, dots, dashes and underscores; the folder of runs is called so.
        about: what it is for, one line; "" by default.
        seed: of everything drawn at random, 0 (the default) or more.
        model: as ``prunus ls models`` lists it, or ``file.py:factory``.
        weights: a file of weights to begin with; None: as the model is built.
        classes: how many there are, 1 to 1,000,000; None: as many as the data, or the model, have.
        data: a folder, Parquet files, or a name, with options; None where no stage needs any.
        input: the shape of an input, as of ``--input``; None: that of the data or the model.
        evaluate: ``file.py:function`` that makes a number of a network, in its own unit; None: accuracy on test data.
        loss: ``file.py:function`` of an output and a batch; None: cross-entropy.
        measure: which backends are timed, at which batch sizes, for how long.
        stages: what is done, in order; one at least.
    """

    recipe: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")  # a folder is named so
    about: str = ""
    seed: int = Field(0, ge=0, lt=2**63)
    model: str
    weights: str | None = None
    classes: int | None = Field(None, ge=1, le=10**6)
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
        needy = [
            s.name
            for s in self.stages
            if isinstance(s, (Training, Recalibrate, DropBlocks)) or getattr(s, "repair", False)
        ]
        needy += [s.name for s in self.stages if isinstance(s, Mask) and s.looks_at_data]
        if self.data is None and needy:
            raise InputError(f"stage '{needy[0]}' needs data; give data: (a folder, Parquet files, or a name).")
        gated = [i for i, s in enumerate(self.stages) if isinstance(s, Dynamic)]
        for stage in self.stages[gated[0] + 1 :] if gated else ():
            if not isinstance(stage, Export):
                raise InputError(
                    f"stage '{stage.name}' changes the network after stage '{self.stages[gated[0]].name}' has put "
                    "gates in; prune and train before it, only exports may follow."
                )
        check_bases(self.stages)
        trains = [s.name for s in self.stages if isinstance(s, Training)]
        if self.loss is not None and trains:
            raise InputError(
                f"loss: is for criteria that look at gradients; stage '{trains[0]}' trains on the cross-entropy of the "
                "labels and would not use it. Remove loss:, or prune without training."
            )
        return self


__all__ = [
    "STAGES",
    "STAGE_KEYS",
    "AnyStage",
    "BasisSpec",
    "BudgetSpec",
    "DataSpec",
    "DistillSpec",
    "Dynamic",
    "Export",
    "Finetune",
    "Mask",
    "MeasureSpec",
    "Prune",
    "Recalibrate",
    "Recipe",
    "RegularizerSpec",
    "SparseTrain",
    "Sparsify",
    "Stage",
    "Tickets",
    "Training",
]
