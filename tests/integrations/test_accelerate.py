"""Accelerate: attaching to the prepared optimizer is all that is needed."""

from __future__ import annotations

import pytest
import torch

from prunus.core.torchvision_ops import declare_torchvision_operators
from tests.integrations.problem import STEPS, assert_equal, data, make, plain


@pytest.fixture
def accelerate():
    declare_torchvision_operators()
    found = pytest.importorskip("accelerate", reason="accelerate is not installed")
    yield found
    found.state.AcceleratorState._reset_state(True)
    found.state.GradientState._reset_state()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_equals_a_plain_loop(accelerate, precision, accumulate):
    given = data(STEPS * accumulate)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    model, optimizer, pruner = make()
    loader = torch.utils.data.DataLoader(given, batch_size=None)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    pruner.attach(optimizer)
    for batch in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    pruner.finish_()
    assert pruner.step == STEPS
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert_equal((model, pruner), plain(given, accumulate, dtype))
