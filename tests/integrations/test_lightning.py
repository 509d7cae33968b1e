"""Lightning: the same as a plain loop."""

from __future__ import annotations

import builtins
import warnings

import pytest
import torch

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.integrations.lightning import callback
from tests.integrations.problem import STEPS, assert_equal, data, make, plain

declare_torchvision_operators()
lightning = pytest.importorskip("lightning", reason="lightning is not installed")


def fit(given, *, checkpoint=None, stop_after=None, callbacks=(), accumulate=1, **settings):
    """Train under Lightning; returns network, pruner and trainer."""
    model, optimizer, pruner = make()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = model

        def configure_optimizers(self):
            return optimizer

        def training_step(self, batch, index):
            return self.inner(**batch)["loss"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=stop_after or len(given) // accumulate,
            accumulate_grad_batches=accumulate,
            callbacks=[callback(pruner), *callbacks],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"enable_checkpointing": False, **settings},
        )
        loader = torch.utils.data.DataLoader(given, batch_size=None)
        trainer.fit(Module(), loader, ckpt_path=checkpoint)
    return model, pruner, trainer


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_equals_a_plain_loop(precision, accumulate):
    given = data(STEPS * accumulate)
    model, pruner, _ = fit(given, precision=precision, accumulate=accumulate)
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    assert_equal((model, pruner), plain(given, accumulate, dtype))
    assert pruner.step == STEPS


def test_a_checkpoint_carries_the_masks(tmp_path):
    given = data()
    expected = fit(given)[:2]
    saver = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(given, callbacks=[saver], enable_checkpointing=True)
    for step in (1, 3, 5):
        (path,) = tmp_path.glob(f"*step={step}.ckpt")
        rest = given[step:] + given[:step]  # Lightning begins a loader that has no state at its first batch
        assert_equal(fit(rest, checkpoint=path)[:2], expected)


def test_an_interrupted_training_is_not_cut():
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("power cut")

    model, optimizer, pruner = make()
    shapes = [p.shape for p in model.parameters()]

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = model

        def configure_optimizers(self):
            return optimizer

        def training_step(self, batch, index):
            return self.inner(**batch)["loss"]

    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[callback(pruner), Stop()],
        logger=False,
        max_steps=9,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="power cut"):
        warnings.simplefilter("ignore")
        trainer.fit(Module(), torch.utils.data.DataLoader(data(), batch_size=None))
    assert pruner.step == 4 and pruner.report is None and [p.shape for p in model.parameters()] == shapes
    assert not optimizer._optimizer_step_pre_hooks


def test_a_missing_library_is_told(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("lightning"):
            raise ModuleNotFoundError("No module named 'lightning'", name="lightning")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(prunus.core.MissingExtraError, match="lightning is not installed"):
        callback(make()[2])
