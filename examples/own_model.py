"""Prune your own network for a task that is not classification, with your own loss, evaluation and criterion.

A convolutional autoencoder learns to remove noise from handwritten digits; two thirds of its work are cut away.
Run:  python examples/own_model.py
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunus

images = torch.tensor(load_digits().images / 16, dtype=torch.float32)[:, None]  # (1797, 1, 8, 8)
train_part, test_part = images[:1500], images[1500:]


class Denoiser(nn.Module):
    """Two convolutions down, two up, and a shortcut that learns only the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(32, 64, 3, 2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(64, 32, 2, 2), nn.BatchNorm2d(32), nn.ReLU())
        self.out = nn.Conv2d(64, 1, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        wide = self.down1(noisy)
        return noisy - self.out(torch.cat([wide, self.up(self.down2(wide))], dim=1))


def batches(part: Tensor, seed: int, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """(noisy, clean) pairs."""
    generator = torch.Generator().manual_seed(seed)
    clean = part[torch.randperm(len(part), generator=generator)].split(size)
    return [(c + 0.3 * torch.randn(c.shape, generator=generator), c) for c in clean]


def loss(restored: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean square error of every sample: what prunus is given as `loss`."""
    return (restored - batch[1]).square().flatten(1).mean(1)


def evaluate(model: nn.Module) -> float:
    """Peak signal-to-noise ratio in dB on images not trained on; higher is better."""
    with torch.no_grad():
        errors = [loss(model.eval()(noisy), (noisy, clean)) for noisy, clean in batches(test_part, seed=99)]
    return float(-10 * torch.cat(errors).mean().log10())


def train(model: nn.Module, epochs: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(epochs):
        for batch in batches(train_part, seed=epoch):
            optimizer.zero_grad()
            loss(model.train()(batch[0]), batch).mean().backward()
            optimizer.step()


@prunus.criterion("my-taylor", needs={"grad"}, roles={"out", "bias"}, across="sum", finish="square")
def my_taylor(s: prunus.Slice) -> Tensor:
    """How much the loss would change without a unit, to first order: the squared sum of weight times gradient."""
    return s.weight * s.grad


torch.manual_seed(0)
model, example = Denoiser(), images[:1]
train(model, epochs=10, lr=3e-3)
before = evaluate(model)
data = batches(train_part, seed=0)
report = prunus.prune_(model, example, budget=prunus.Budget(macs=0.35), criterion="my-taylor", data=data, loss=loss)
cut = evaluate(report.model)
train(report.model, epochs=6, lr=2e-3)
print(report)
print(f"quality: {before:.2f} dB before, {cut:.2f} dB after the cut, {evaluate(report.model):.2f} dB trained again")
prunus.save(report.model, Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "denoiser.safetensors")
