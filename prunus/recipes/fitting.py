"""The loop of training with what a stage says."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunus.recipes.context import Context
from prunus.recipes.stage import Stage, Training


def fit(context: Context, stage: Training, model: nn.Module, name: str | None = None, **settings: Any) -> Any:
    """`prunus.train.fit` with what a training stage says, or `settings` in its place; `name` is that of checkpoints."""
    from prunus.train import fit

    own = Training.model_fields.keys() - Stage.model_fields.keys()
    return fit(
        model,
        context.needed(),
        preprocess=context.preprocess,
        seed=context.recipe.seed,
        folder=context.folder.path,
        stage=name or stage.name,
        resume=True,
        quiet=context.quiet,
        **{key: getattr(stage, key) for key in own} | settings,
    )
