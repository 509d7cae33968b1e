"""Pruning in a training by the Trainer of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus.core import missing_extra
from prunus.core.torchvision_ops import declare_torchvision_operators

if TYPE_CHECKING:
    from prunus.pruner import Pruner

NAME = "PrunusCallback"  # by which the Trainer stores the state


def callback(pruner: Pruner) -> Any:
    """The ``transformers.TrainerCallback`` that attaches `pruner` when training starts, and finishes it at its end.

    Make the pruner of the very model that the Trainer gets.  Its state lies in the Trainer's checkpoints
    (``trainer_state.json``), so that ``train(resume_from_checkpoint=...)`` goes on where it was; the report is
    ``pruner.report``.  ``load_best_model_at_end`` may bring back a network from before the last units were masked: the
    cut is then one that was not trained for.

    Raises: `MissingExtraError` when transformers is not installed, by ``train``: `InputError` as `Pruner.attach`.

    Example::

        pruner = prunus.Pruner(model, prunus.Inputs(kwargs={"input_ids": ids}), budget=prunus.Budget(params=0.7))
        trainer = transformers.Trainer(model, args, ..., callbacks=[prunus.integrations.transformers.callback(pruner)])
    """
    declare_torchvision_operators()
    try:
        from transformers import TrainerCallback
        from transformers.trainer_callback import ExportableState
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "transformers":
            raise
        raise missing_extra("transformers", "transformers") from None

    class PrunusCallback(TrainerCallback, ExportableState):
        """Attach, carry the state, finish."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """After a checkpoint was loaded, before the first step; the Trainer keeps what `state` gave."""
            saved = state.stateful_callbacks.get(NAME)
            if saved is not None:
                pruner.load_state_dict(saved["attributes"])
            pruner.attach(kwargs["optimizer"])

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """After the last step."""
            pruner.finish_()

        def state(self) -> dict[str, Any]:
            """For the checkpoint."""
            return {"args": {}, "attributes": pruner.state_dict()}

    return PrunusCallback()
