"""The Trainer of transformers: the same as a plain loop."""

from __future__ import annotations

import builtins

import pytest
import torch

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.integrations.transformers import callback
from tests.integrations.problem import STEPS, assert_equal, data, make, plain


@pytest.fixture
def transformers():
    declare_torchvision_operators()
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    return pytest.importorskip("transformers", reason="transformers is not installed")


def run(transformers, given, folder, *, accumulate=1, resume=None, **settings):
    """Train with the Trainer, its batches in order; returns network and pruner."""
    model, optimizer, pruner = make()
    samples = [{"x": x, "labels": y} for batch in given for x, y in zip(batch["x"], batch["labels"], strict=True)]

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(samples)

    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=len(given) // accumulate,
        per_device_train_batch_size=len(given[0]["labels"]),
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"save_strategy": "no", **settings},
    )
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = InOrder(
        model, arguments, train_dataset=samples, optimizers=(optimizer, constant), callbacks=[callback(pruner)]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, pruner


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_it_equals_a_plain_loop(transformers, tmp_path, accumulate, bf16):
    given = data(STEPS * accumulate)
    found = run(transformers, given, tmp_path, accumulate=accumulate, bf16=bf16)
    assert_equal(found, plain(given, accumulate, torch.bfloat16 if bf16 else torch.float32))
    assert found[1].step == STEPS


def test_a_checkpoint_carries_the_masks(transformers, tmp_path):
    given = data()
    expected = run(transformers, given, tmp_path / "whole", save_strategy="steps", save_steps=1)
    for step in (1, 3, 5):
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        assert_equal(run(transformers, given, tmp_path / f"from-{step}", resume=checkpoint), expected)


def test_a_missing_library_is_told(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("transformers"):
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(prunus.core.MissingExtraError, match=r'pip install "prunus\[transformers\]"'):
        callback(make()[2])
