"""What all stages of a recipe have in common, and what those that train have."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prunus.recipes.parts import Strict


class Stage(Strict):
    """One step of a run."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


class Training(Stage):
    """What stages that train have in common."""

    epochs: int = Field(ge=1, le=10**6)
    lr: float = Field(0.1, gt=0)
    schedule: str | dict[str, Any] = "cosine"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    decay: Literal["all", "weights"] = "all"
    batch: int = Field(128, ge=1, lt=2**31)
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
