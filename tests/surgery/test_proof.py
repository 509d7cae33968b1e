"""A proof that could not have failed is none: in every kind of network the right cut passes, and a wrong one fails."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.surgery.agreement import relative_error, worst_error
from prunus.surgery.prove import prove
from prunus.surgery.reference import reference
from prunus.surgery.shrink import apply_
from prunus.tracing.apply import Decided
from tests.keeping import random_keep

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
NONE, INF = float("nan"), float("inf")


class Net(nn.Module):
    """Two hidden layers, and a function of the logits."""

    def __init__(self, ending=lambda y: y, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, classes)
        self.ending = ending

    def forward(self, x: Tensor):
        return self.ending(self.head(self.b(self.a(x).sigmoid()).sigmoid()))


class Residual(nn.Module):
    """A stem, and a branch that something multiplies."""

    def __init__(self, scale: Tensor, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.scale = nn.Parameter(scale)
        if norm:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.scale * self.norm(self.b(self.a(x).sigmoid())))


class Lora(nn.Module):
    """A hidden layer with an update of rank four whose second factor is zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.down, self.up = nn.Linear(6, 8), nn.Linear(6, 4, bias=False), nn.Linear(4, 8, bias=False)
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.base(x) + self.up(self.down(x))).sigmoid())


class AdaLN(nn.Module):
    """A block of DiT: shift, scale and gate of a condition, from a layer that is zero; the last layer is zero too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False)
        self.modulation, self.head = nn.Linear(6, 24), nn.Linear(8, 3)
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 8)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(x).chunk(3, -1)
        x = self.stem(x)
        return self.head(x + gate * self.b(self.a(self.norm(x) * (1 + scale) + shift).sigmoid()))


def masked(y: Tensor, by: float) -> Tensor:
    return y.masked_fill(torch.tensor([False, True, False, True, False]), by)


def zeroed(net: nn.Module, *names: str) -> nn.Module:
    for name in names:
        nn.init.zeros_(net.get_parameter(name))
    return net


NOT_FINITE = {
    "masked logits": lambda: Net(lambda y: masked(y, -INF)),
    "NaN for padded places": lambda: Net(lambda y: torch.cat([y[:2], torch.full_like(y[2:], NONE)])),
    "infinities of both signs": lambda: Net(lambda y: torch.stack([masked(y, INF), masked(y, -INF)])),
    "a mask beside the logits": lambda: Net(lambda y: (y, masked(torch.zeros_like(y), -INF)[:, 1::2])),
    "a logarithm of what may be negative": lambda: Net(torch.log),
}
DECISIONS = {
    "predicted classes": lambda: Net(lambda y: y.argmax(-1)),
    "thresholds": lambda: Net(lambda y: y > 0.1),
    "the best two": lambda: Net(lambda y: y.topk(2)[1]),
    "an order": lambda: Net(lambda y: y.argsort(-1)),
    "a class and whether it is certain": lambda: Net(lambda y: (y.argmax(-1), y.softmax(-1).amax(-1) > 0.5)),
    "rounded": lambda: Net(lambda y: (8 * y).round().int() + 1),
}
HIDDEN = {
    "a head of zeros": lambda: zeroed(Net(), "head.weight", "head.bias"),
    "a head of zeros with a bias": lambda: zeroed(Net(), "head.weight"),
    "classes of a head of zeros": lambda: zeroed(Net(lambda y: y.argmax(-1)), "head.weight", "head.bias"),
    "masked logits of zeros": lambda: zeroed(Net(lambda y: masked(y, -INF)), "head.weight", "head.bias"),
    "LayerScale": lambda: Residual(torch.zeros(8)),
    "a gain": lambda: Residual(torch.zeros(())),
    "the last norm of a block": lambda: Residual(torch.ones(()), norm=True),
    "LoRA": Lora,
    "adaLN-zero": AdaLN,
}
KINDS = NOT_FINITE | DECISIONS | HIDDEN | {"LayerScale that is small": lambda: Residual(torch.full((8,), 1e-9))}


def wrong(groups: prunus.Groups, id: str) -> prunus.Groups:
    """The groups where the layers that read a group are said to read the unit beside."""
    group = groups[id]
    slices = tuple(replace(s, index=s.index.roll(1, 0)) if s.role == "in" else s for s in group.slices)
    return replace(groups, members=tuple(replace(g, slices=slices) if g.id == id else g for g in groups))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_cut_passes_and_any_wrong_one_fails(kind):
    model = KINDS[kind]().eval()
    groups = prunus.trace(model, X)
    keep, before = random_keep(groups, 1), state_of(model)
    broken = [group.id for group in groups if group.with_role("in")]
    assert broken and not keep.all()
    for id in broken:
        alone = torch.ones_like(keep)
        rows = slice(groups[id].offset, groups[id].offset + groups[id].units)
        alone[rows] = keep[rows]
        with pytest.raises(prunus.VerificationError, match=f"Groups that fail when cut alone: '{id}'"):
            prunus.shrink_(model, wrong(groups, id), groups.plan(alone))
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    report = prunus.shrink_(model, groups, groups.plan(keep))
    assert report.verified.max_relative_error < 1e-9 and report.verified.sensitive
    told = [note for note in report.notes if "zero throughout" in note]
    assert bool(told) == bool(report.verified.hidden) == (kind in HIDDEN)
    if kind == "a head of zeros":
        assert not model.head.weight.any() and report.verified.hidden == ("head.weight",)  # the model has its zeros


def test_rewritten_networks_are_compared_with_the_same_numbers():
    model = AdaLN().eval()
    groups = prunus.trace(model, X, in_place=False)
    keep = random_keep(groups, 1)
    report = prunus.shrink_(model, groups, groups.plan(keep))
    assert not report.in_place and report.verified.hidden and report.verified.max_relative_error < 1e-9
    with pytest.raises(prunus.VerificationError):
        id = next(g.id for g in groups if g.with_role("in") and not keep[g.offset : g.offset + g.units].all())
        prunus.shrink_(model, wrong(groups, id), groups.plan(keep))


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (lambda y: y * NONE, "NaN or infinity only"),
        (lambda y: (y * 0, torch.arange(3)), "zeros only"),
        (lambda y: torch.tensor(y.shape), "no real numbers"),
    ],
)
def test_nothing_to_compare_is_a_failure(ending, said):
    model = Net(ending)
    groups = prunus.trace(model, X)
    with pytest.raises(prunus.VerificationError, match=f"gives {said}.*nothing can be proven"):
        prunus.shrink_(model, groups, groups.plan(random_keep(groups, 1)))
    assert model.a.out_features == 12


@pytest.mark.parametrize(
    "ending", [lambda y: y * 0 + 1, lambda y: 1 + 1e-9 * y, lambda y: F.relu(y - 1e6) + torch.ones(5)]
)
def test_a_proof_that_could_not_have_failed_says_so(ending):
    """The outputs do not move, whatever is cut."""
    model = Net(ending)
    groups = prunus.trace(model, X)
    report = prunus.shrink_(model, groups, groups.plan(random_keep(groups, 1)))
    assert not report.verified.sensitive and any("could not have failed" in note for note in report.notes)


def test_ties_may_fall_either_way_and_nothing_else():
    """Which of two sums over the same numbers is larger is rounding; a class that is wrong is no tie."""
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(3))
    model = Net(lambda y: (y.sum(-1) > y.flip(-1).sum(-1), y.argmax(-1)))
    groups = prunus.trace(model, x)
    assert prunus.shrink_(model, groups, groups.plan(random_keep(groups, 1))).verified.max_relative_error < 1e-9
    groups = prunus.trace(model, x)
    keep = random_keep(groups, 2)
    ref = reference(model, groups, keep)
    first, second = (t.clone() for t in ref.runs[0].outputs)
    second[3] += 1
    wrongly = replace(ref, runs=(replace(ref.runs[0], outputs=(first, second)), *ref.runs[1:]))
    apply_(model, groups.plan(keep))
    with pytest.raises(prunus.VerificationError):
        prove(model, wrongly)
    assert prove(model, ref).max_relative_error < 1e-9


def test_errors_look_at_the_numbers_and_at_where_there_are_none():
    a = torch.tensor([1.0, NONE, -INF, 2.0])
    assert relative_error(a, a) == 0.0 and relative_error(a[1:2], a[1:2]) == INF
    for other in ([1.0, NONE, INF, 2.0], [1.0, -INF, NONE, 2.0], [NONE, NONE, -INF, 2.0], [1.0, 0.0, -INF, 2.0]):
        assert relative_error(torch.tensor(other), a) == INF == relative_error(a, torch.tensor(other))
    assert relative_error(torch.tensor([1.0, NONE, -INF, 4.0]), a) == 1.0
    z = torch.tensor([3 + 4j, NONE])
    assert relative_error(z, z) == 0.0 and relative_error(torch.tensor([3 + 8j, NONE]), z) == 1.0
    assert relative_error(torch.tensor([1.0, NONE]), torch.complex(torch.ones(2), torch.zeros(2))) == INF
    assert worst_error([a, a[1:2]], [a, a[1:2]]) == 0.0 and worst_error([a], [a, a]) == INF


class Deciding(nn.Module):
    """Two orders, one of which takes from the other, behind a product that torch does otherwise at a size of one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.w, self.head = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.head(torch.einsum("bi,io->bo", self.a(x).sigmoid(), self.w).sigmoid())
        best, _ = y.topk(3)
        return best, (-y).topk(2)[0]


@pytest.mark.parametrize("left", [1, 2])
def test_decisions_are_made_again_whatever_else_torch_calls(left):
    model = Deciding()
    groups = prunus.trace(model, X)
    keep = torch.zeros(groups.units, dtype=torch.bool)
    for group in groups:
        keep[group.offset : group.offset + left] = True
    assert [op.name for op in groups.operators].count("bmm") == 1 and len(groups) == 2
    verified = prunus.shrink_(model, groups, groups.plan(keep)).verified
    assert verified.max_relative_error < 1e-7 and verified.sensitive


def test_each_decision_is_that_of_its_own_call():
    model = Deciding()
    operators = prunus.trace(model, X).operators
    made = [op.decided[1] for op in operators if op.decided is not None]
    with torch.no_grad(), Decided(operators):
        y = torch.arange(20.0).reshape(4, 5).sin()
        best, order = torch.mul(y, 1).topk(3)
        assert torch.equal(order, made[0]) and torch.equal(best, y.gather(1, made[0]))
        assert torch.equal(y.topk(2)[1], made[1]) and not torch.equal(made[0][:, :2], made[1])
        with pytest.raises(prunus.VerificationError, match="topk where it had not"):
            y.topk(2)
