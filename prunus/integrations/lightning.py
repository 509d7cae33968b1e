"""Pruning in a training by Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus.core import missing_extra
from prunus.core.torchvision_ops import declare_torchvision_operators

if TYPE_CHECKING:
    from prunus.pruner import Pruner


def callback(pruner: Pruner) -> Any:
    """The ``lightning.Callback`` that attaches `pruner` when training starts, and finishes it when it has ended.

    Make the pruner of the network inside the LightningModule, whose forward takes the example.  Its state lies in
    Lightning's checkpoints, so that ``fit(ckpt_path=...)`` goes on where it was; the report is ``pruner.report``.  A
    training that is interrupted or fails is not finished: nothing is cut.

    Raises: `MissingExtraError` when Lightning is not installed, by ``fit``: `InputError` as `Pruner.attach`.

    Example::

        pruner = prunus.Pruner(module.net, x, budget=prunus.Budget(macs=0.5), schedule=gradual(0, 1000, every=100))
        trainer = lightning.Trainer(callbacks=[prunus.integrations.lightning.callback(pruner)])
    """
    declare_torchvision_operators()
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "lightning":
            raise
        raise missing_extra("lightning", "lightning") from None

    class PrunusCallback(Callback):
        """Attach, carry the state, finish."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """After a checkpoint was loaded, before the first step."""
            pruner.attach(trainer.optimizers)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            """After the last checkpoint was written."""
            pruner.finish_()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            """The network stays whole."""
            pruner.detach()

        def state_dict(self) -> dict[str, Any]:
            """For the checkpoint."""
            return pruner.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """From the checkpoint."""
            pruner.load_state_dict(state_dict)

    return PrunusCallback()
