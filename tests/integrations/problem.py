"""What every loop of this folder trains: the same network on the same batches, pruned in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.schedules import gradual
from tests.hand_built import batches, chain

STEPS = 6
X = torch.zeros(1, 3, 6, 6)


class Classifier(nn.Module):
    """A network with its loss, as the Trainer of transformers wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = chain(8, 10)[0]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def make() -> tuple[Classifier, torch.optim.Optimizer, prunus.Pruner]:
    """Network, optimizer and a pruner that removes at steps 2 and 4, not yet attached."""
    model = Classifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = prunus.Pruner(
        model,
        X,
        budget=prunus.Budget(macs=0.5),
        allocator="uniform",
        regularizer={"name": "bn-gamma", "strength": 0.05},
        schedule=gradual(0, 4, every=2, shape="linear"),
    )
    return model, optimizer, pruner


def data(count: int = STEPS) -> list[dict[str, Tensor]]:
    """Batches as keyword inputs."""
    return [{"x": x, "labels": y} for x, y in batches(count)]


def plain(given: list[dict[str, Tensor]], accumulate: int = 1, precision: torch.dtype = torch.float32) -> Any:
    """The loop everyone writes, with the pruner; returns the cut network and the pruner."""
    model, optimizer, pruner = make()
    pruner.attach(optimizer)
    for number, batch in enumerate(given):
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            loss = model(**batch)["loss"] / accumulate
        loss.backward()
        if number % accumulate == accumulate - 1:
            optimizer.step()
            optimizer.zero_grad()
    pruner.finish_()
    return model, pruner


def assert_equal(a: tuple[Classifier, prunus.Pruner], b: tuple[Classifier, prunus.Pruner], **tolerance: float) -> None:
    """The same units were removed in the same steps, and the same weights are left."""
    (model, pruner), (other, theirs) = a, b
    assert pruner.step == theirs.step and pruner.report is not None and theirs.report is not None
    assert pruner.report.plan.groups == theirs.report.plan.groups
    assert pruner.report.after["macs"] <= 0.5 * pruner.report.before["macs"]
    for (name, p), q in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(
            p, q, **(tolerance or {"rtol": 0, "atol": 0}), msg=lambda t, name=name: f"{name}: {t}"
        )
