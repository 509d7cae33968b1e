"""What the tests of rewritten networks share: plans, the silenced original, and small networks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import prunus
from prunus.core import Inputs
from prunus.core.nested import tensors_in
from prunus.surgery.kept import Kept
from prunus.surgery.reference import silenced
from prunus.tracing.apply import named_tensors, run
from prunus.tracing.build import build
from prunus.tracing.recording import record
from tests.keeping import random_keep


def unconstrained(model: nn.Module, x: object) -> prunus.Groups:
    """The groups of a network as no in-place cut restrains them."""
    inputs = Inputs.of(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own flags
        with torch.backends.mkldnn.flags(enabled=False):
            return build(record(model, inputs), inputs).groups


def half(model: nn.Module, x: object, seed: int = 0) -> tuple[prunus.RewrittenModule, prunus.Groups, Tensor]:
    """The network rewritten without about half of its units."""
    groups = unconstrained(model, x)
    keep = random_keep(groups, seed, 0.5)
    assert not keep.all()
    return prunus.rewrite(model, groups, groups.plan(keep)), groups, keep


def whole(model: nn.Module, x: object) -> prunus.RewrittenModule:
    """The network rewritten with nothing removed."""
    groups = unconstrained(model, x)
    return prunus.rewrite(model, groups, groups.plan(torch.ones(groups.units, dtype=torch.bool)))


def silent_original(model: nn.Module, groups: prunus.Groups, keep: Tensor, x: object) -> list[Tensor]:
    """The float64 outputs of the original with the removed units at zero, norms over the kept ones."""
    tensors = {n: t.detach().double() if t.is_floating_point() else t for n, t in named_tensors(model).items()}
    with torch.backends.mkldnn.flags(enabled=False):
        return run(model, silenced(tensors, groups, keep), Inputs.of(x).to(torch.float64), Kept(groups, keep))


def in_double(model: nn.Module, x: object) -> list[Tensor]:
    """The float64 outputs of a rewritten network."""
    with torch.no_grad():
        return list(tensors_in(Inputs.of(x).to(torch.float64)(model.double())))


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Equal up to the rounding of float64, and not for want of anything to compare."""
    assert any(bool(e.any()) for e in expected)
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, expected)
    )


class Fixed(nn.Module):
    """A network whose code writes its sizes out, so that no cut in place can be right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.conv(x)), inplace=True)
        return self.head(self.drop(x.view(-1, 8, 36).mean(2)))


class Recurrent(nn.Module):
    """The last step of a recurrent layer, and a classifier."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(5, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Attention(nn.Module):
    """Attention between two inputs, the second by name, and its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.embed(x)
        memory = x if memory is None else self.embed(memory)
        out, weights = self.attention(x, memory, memory)
        return self.head(out), weights


@dataclass
class Answer:
    """An output with fields."""

    logits: Tensor
    hidden: tuple[Tensor, ...]
    count: int
    loss: Tensor | None = None


class Structured(nn.Module):
    """Inputs and outputs in nested containers, a tied weight, buffers of both kinds and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight
        self.mid = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)
        self.register_buffer("shift", torch.ones(6))
        self.register_buffer("scale", torch.full((6,), 2.0), persistent=False)
        self.constant = torch.arange(6.0)

    def forward(self, batch: dict[str, list[Tensor]], times: int = 1) -> Answer:
        x = batch["x"][0] + torch.tensor(1.0).add_(batch["x"][1].shape[1])
        x = self.b(self.a(x)) * self.scale + self.shift + self.constant
        mid = self.mid(x)
        return Answer(self.head(mid.relu()) * times, (x,), x.shape[0])
