"""What a proof runs: as few forwards as it compares, and raises precision where there is any to raise."""

import torch
from torch import nn

import prunus
from prunus.surgery.precise import Precise


class Seen(nn.Module):
    """A small network that notes the width and precision of every forward."""

    def __init__(self, lower: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.lower = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), lower

    def forward(self, x):
        ran.append((self.a.weight.shape[0], x.dtype))
        x = self.a(x).relu()
        if self.lower:
            x = (x.float() * 1.1).to(x.dtype)
        return self.b(x)


ran: list = []


def proven(model):
    groups = prunus.trace(model, torch.randn(1, 3, 8, 8))
    plan = prunus.Plan({"a": prunus.GroupPlan(8, (0, 3, 5))})
    ran.clear()
    return prunus.shrink_(model, groups, plan).verified


def test_both_networks_run_once_on_the_example_and_once_on_noise():
    verified = proven(Seen())
    whole, cut = (8, torch.float64), (3, torch.float64)
    assert ran == [whole, whole, cut, cut, (3, torch.float32)]  # the last one: would the outputs have shown it?
    assert verified.dtype == "float64" and verified.sensitive


def test_operators_are_watched_for_lower_precision_in_the_first_run_alone(monkeypatch):
    seen = []
    original = Precise.__torch_dispatch__

    def dispatch(self, func, types, args=(), kwargs=None):
        seen.append(len(ran))
        return original(self, func, types, args, kwargs)

    monkeypatch.setattr(Precise, "__torch_dispatch__", dispatch)
    proven(Seen())
    assert set(seen) == {1}  # while the first forward runs
    seen.clear()
    assert proven(Seen(lower=True)).max_relative_error < 1e-12  # which single precision does not reach
    assert {1, 2, 3, 4} <= set(seen)


def test_weights_are_silenced_in_copies_that_nothing_else_reads():
    for model in (Seen(), Seen().double()):
        example = torch.randn(1, 3, 8, 8, dtype=model.a.weight.dtype)
        groups = prunus.trace(model, example)
        before = {n: p.clone() for n, p in model.named_parameters()}
        prunus.surgery.reference.reference(model, groups, torch.arange(8) < 3)
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
