"""What cannot be traced or pruned is one clear error, and nothing is changed."""

from __future__ import annotations

import traceback

import pytest
import torch
from torch import nn

import prunus
from tests.tracing.test_models_users_have import Fn, mlp

A = torch.randn(2, 4)
HALF = prunus.Budget(params=0.5)


def test_a_forward_that_fails_keeps_the_users_own_traceback():
    def forward(self, x):
        raise KeyError("the user's own mistake")

    with pytest.raises(prunus.TraceError) as caught:
        prunus.trace(Fn(forward, a=nn.Linear(4, 2)), A)
    assert str(caught.value) == (
        "the model's forward failed on the example inputs [[2, 4]]: KeyError: \"the user's own mistake\". "
        "Give example_inputs that `model(*example_inputs)` accepts."
    )
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    frames = traceback.extract_tb(cause.__traceback__)
    assert any(frame.name == "forward" and frame.filename == __file__ for frame in frames)


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda x: x + torch.randn_like(x), "randn_like"),
        (lambda x: nn.functional.dropout(x, 0.5, training=True), "dropout|bernoulli"),
        (lambda x: x[:, torch.randperm(x.shape[1])], "randperm"),
    ],
)
def test_random_outputs_name_what_draws(draw, named):
    net = nn.Sequential(nn.Linear(4, 8), Fn(lambda s, x: draw(x)), nn.Linear(8, 2))
    state = torch.get_rng_state()
    with pytest.raises(prunus.TraceError, match=rf"random in evaluation mode.*draws by .*({named}).* in '1'"):
        prunus.prune_(net, A, budget=HALF)
    assert net[0].out_features == 8
    torch.set_rng_state(state)


def test_drawing_is_no_fault_where_the_output_does_not_depend_on_it():
    def forward(self, x):
        self.noise = torch.rand(3)
        return self.net(x), torch.full((2,), float("nan"))

    net = Fn(forward, net=mlp())
    assert prunus.prune_(net, A, budget=prunus.Budget(params=0.7)).verified.max_relative_error < 1e-7


def test_inputs_that_forward_changes_stay_as_they_were():
    def forward(self, x, extra):
        x.mul_(2).add_(extra.pop("shift"))
        return self.net(x.clamp_(-1, 1))

    x, shift = A.clone(), torch.ones(4)
    extra = {"shift": shift}
    report = prunus.prune_(Fn(forward, net=mlp()), (x, extra), budget=prunus.Budget(params=0.7))
    assert report.verified.max_relative_error < 1e-7
    assert torch.equal(x, A) and torch.equal(shift, torch.ones(4)) and list(extra) == ["shift"]


@pytest.mark.parametrize("verb", ["prune_", "Pruner"])
def test_nothing_to_prune_is_an_error_with_the_reasons(verb):
    def prune(net, example, **options):
        return getattr(prunus, verb)(net, example, budget=options.pop("budget", HALF), **options)

    net = mlp()
    before = {name: p.clone() for name, p in net.named_parameters()}
    for budget in (HALF, prunus.Budget(params=1.0)):
        with pytest.raises(prunus.InputError, match=r"nothing to prune \(0: 16 of 16 channels: frozen by the user"):
            prune(net, A, freeze="*", budget=budget)
    with pytest.raises(prunus.InputError, match=r"nothing to prune \(2: 2 of 2 channels: it is an output.*not under"):
        prune(net, A, only="2")
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    ordered = nn.Sequential(nn.Linear(4, 7), Fn(lambda s, x: x.sort(-1)[0]), nn.Linear(7, 2))
    with pytest.raises(prunus.InputError, match=r"nothing to prune \(0: 7 of 7 channels: the code counts positions"):
        prune(ordered, A)
    with pytest.raises(prunus.InputError, match=r"nothing to prune \(it has no parameters\)"):
        prune(nn.Sequential(nn.ReLU(), nn.Flatten()), A)


@pytest.mark.parametrize("example", [(), prunus.Inputs(kwargs={"x": 3}), [1.0], {"x": None}, "x"])
def test_an_example_without_a_tensor(example):
    with pytest.raises(prunus.InputError, match="example_inputs holds no tensor|expected what forward takes: a tensor"):
        prunus.trace(Fn(lambda s, *x, **k: s.net(A), net=mlp()), example)
