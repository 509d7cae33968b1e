"""Estimates of the curvature against Hessians and gradients of one sample at a time."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.core import InputError
from prunus.observe import collect
from prunus.observe import samples as rules
from prunus.observe.average import parameters_of
from prunus.observe.base import Seen, untouched
from prunus.observe.sample_grad import sample_grad
from tests.traced import batches, chain, residual


def regression(samples: int = 64, features: int = 3, classes: int = 3) -> tuple:
    """A softmax regression behind an identity layer, in float64: its Hessian in the last weights is known."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, 4), nn.Linear(4, classes)).double()
    x, y = torch.randn(samples, features, dtype=torch.float64), torch.randint(classes, (samples,))
    return model, prunus.trace(model, x[:2]), x, y


def known(model, x) -> torch.Tensor:
    """E[x_j^2 p_k (1 - p_k)] of the weight (k, j) of the last layer: Hessian, Gauss-Newton and expected Fisher."""
    with torch.no_grad():
        a, p = model[0](x), model(x).softmax(1)
    return torch.einsum("nj,nk->kj", a.square(), p * (1 - p)) / len(x)


def test_gauss_newton_is_the_hessian_of_a_softmax_regression():
    model, groups, x, y = regression()
    found = collect(model, groups, [x[:40], x[40:]], {"gauss-newton"}).kinds["gauss-newton"]["1.weight"]
    torch.testing.assert_close(found, known(model, x))
    hessian = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(model[0](x) @ w.T + model[1].bias, y), model[1].weight.detach()
    )
    torch.testing.assert_close(found, torch.einsum("kjkj->kj", hessian))


def test_the_fisher_of_drawn_labels_tends_to_gauss_newton_and_the_probes_to_the_hessian():
    model, groups, x, y = regression()
    many = x.repeat(200, 1)
    drawn = collect(model, groups, [many], {"mc-fisher"}).kinds["mc-fisher"]["1.weight"]
    torch.testing.assert_close(drawn, known(model, x), rtol=0.1, atol=0.01)
    probed = collect(model, groups, [(x, y)] * 200, {"hutchinson"}).kinds["hutchinson"]["1.weight"]
    torch.testing.assert_close(probed, known(model, x), rtol=0.2, atol=0.03)


def test_gauss_newton_of_a_deeper_network_is_that_of_its_jacobian():
    model, groups, x, _ = regression(samples=7)
    found = collect(model, groups, [x], {"gauss-newton"}).kinds["gauss-newton"]["0.weight"]
    weight = model[0].weight.detach()
    jacobian = torch.autograd.functional.jacobian(lambda w: model[1](x @ w.T + model[0].bias), weight)  # (n, k, i, j)
    p = model(x).softmax(1).detach()
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(found, torch.einsum("nkij,nkl,nlij->ij", jacobian, middle, jacobian) / 7)


def test_probes_are_exact_for_a_diagonal_hessian_with_uneven_batches():
    model, groups, x, y = regression()
    scale = torch.rand_like(model[0].weight)

    def loss(out, batch):  # every sample's Hessian is diagonal, and they differ
        return batch[1] * (scale * model[0].weight ** 3).sum() + 0 * out.sum(1)

    data = [(x[:40], y[:40].double()), (x[40:43], y[40:43].double())]
    found = collect(model, groups, data, {"hutchinson"}, loss).kinds["hutchinson"]["0.weight"]
    torch.testing.assert_close(found, 6 * scale * model[0].weight.detach() * y[:43].double().mean())


def test_hessian_times_gradient_is_that_of_the_explicit_hessian():
    model, groups, x, y = regression()
    data = [(x[:50], y[:50]), (x[50:], y[50:])]
    parameters = parameters_of(groups)
    sizes, shapes = [t.numel() for t in parameters.values()], [t.shape for t in parameters.values()]

    def loss(flat):
        parts = [part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes)]
        return F.cross_entropy(torch.func.functional_call(model, dict(zip(parameters, parts)), (x,)), y)

    flat = torch.cat([t.detach().flatten() for t in parameters.values()])
    g, h = torch.autograd.functional.jacobian(loss, flat), torch.autograd.functional.hessian(loss, flat)
    found = collect(model, groups, data, {"hessian-gradient"}).kinds["hessian-gradient"]
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in parameters]), h @ g)


def alone(model, groups, x, y) -> list[dict[str, torch.Tensor]]:
    """The gradients of one sample after the other."""
    parameters = parameters_of(groups)
    model.eval()
    return [
        dict(zip(parameters, torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]),
                                                 list(parameters.values()))))
        for i in range(len(x))
    ]  # fmt: skip


class Mixed(nn.Module):
    """Strides, groups, dilation, one dimension, a shared layer, a layer norm, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        self.c = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.d = nn.Conv1d(8, 8, 3, padding=1)
        self.e = nn.LayerNorm(8)
        self.f = nn.Linear(8, 8)
        self.g = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)), inplace=True)
        x = F.relu(self.b(x), inplace=True)
        x = F.relu(self.d(self.c(x).flatten(2)), inplace=True).transpose(1, 2)
        x = self.f(torch.tanh(self.f(self.e(x))))
        return self.g(x.mean(1))


class Turned(nn.Module):
    """A linear layer that reads positions before samples, and a parameter that no layer holds."""

    def __init__(self, turned: bool, scaled: bool) -> None:
        super().__init__()
        self.turned, self.scaled = turned, scaled
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x):
        x = self.a(x.flatten(2).transpose(1, 2))
        x = x.transpose(0, 1).contiguous() if self.turned else x
        x = torch.tanh(self.b(x))
        x = x.mean(0 if self.turned else 1)
        return self.c(x * self.scale if self.scaled else x)


@pytest.mark.parametrize("make", [Mixed, lambda: Turned(False, False), lambda: Turned(True, False),
                                  lambda: Turned(False, True)])  # fmt: skip
@pytest.mark.parametrize("memory", [rules.MEMORY, 1])
def test_gradients_of_all_samples_are_those_of_each_alone(make, memory, monkeypatch):
    monkeypatch.setattr(rules, "MEMORY", memory)
    torch.manual_seed(0)
    model = make().double().eval()
    x, y = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randint(5, (5,))
    groups = prunus.trace(model, x[:2])
    each = alone(model, groups, x, y)
    stats = collect(model, groups, [(x[:4], y[:4]), (x[4:], y[4:])], {"fisher", "sample-grad"})
    for name, found in stats.kinds["fisher"].items():
        torch.testing.assert_close(found, torch.stack([one[name].square() for one in each]).mean(0))
    for group in groups:
        made = group.with_role("out", "bias")  # the kernel of a depthwise layer stands in series with these
        rows = [torch.cat([s.view(one[s.name]) for s in made], 1) for one in each]
        torch.testing.assert_close(stats.groups["sample-grad"][group.id], torch.stack(rows))


def test_most_networks_are_seen_at_once_and_the_others_sample_by_sample():
    for make, expected in ((Mixed, True), (lambda: Turned(True, False), False), (lambda: Turned(False, True), False)):
        torch.manual_seed(0)
        model = make()
        x, y = torch.randn(6, 3, 8, 8), torch.randint(5, (6,))
        groups = prunus.trace(model, x[:2])
        with untouched(model):
            seen = Seen(model, groups, [(x, y)], None)
            assert rules._agree(seen, parameters_of(groups), (x, y)) is expected


def test_the_square_of_the_mean_gradient_is_not_the_fisher():
    model, groups = chain()
    stats = collect(model, groups, batches(), {"grad", "fisher"})
    fisher, grad = stats.kinds["fisher"]["conv1.weight"], stats.kinds["grad"]["conv1.weight"]
    assert (fisher >= grad.square() - 1e-9).all() and fisher.sum() > 2 * grad.square().sum()


def test_fewer_samples_where_memory_is_short_and_it_is_said():
    model, groups = residual()
    x, y = batches(1, 12)[0]
    with untouched(model):
        seen = Seen(model, groups, [(x[:5], y[:5]), (x[5:], y[5:])], None)
        whole = sample_grad(seen)
        cost = sum(v[0].numel() * 4 for v in whole.values())
        with pytest.warns(RuntimeWarning, match="7 are kept, so that the Fisher matrix has rank 7"):
            few = sample_grad(replace(seen), memory=7 * cost)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(next(iter(sample_grad(seen, samples=4).values()))) == 4
    for id, rows in few.items():
        assert not rows.requires_grad
        assert len(whole[id]) == 12 and len(rows) == 7
        torch.testing.assert_close(rows, whole[id][:7])


def test_an_output_without_classes_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    groups = prunus.trace(model, torch.randn(2, 3, 4, 4))
    for kind in ("mc-fisher", "gauss-newton"):
        with pytest.raises(InputError, match=rf"'{kind}' reads class scores .* is \(2, 2, 4, 4\)"):
            collect(model, groups, [torch.randn(2, 3, 4, 4)], {kind})


def test_nothing_of_the_network_changes():
    model, groups = residual()
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    drawn = torch.get_rng_state()
    collect(model, groups, batches(), {"fisher", "mc-fisher", "gauss-newton", "hutchinson", "hessian-gradient",
                                       "sample-grad", "flow"})  # fmt: skip
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and model.training
    assert torch.equal(torch.get_rng_state(), drawn) and torch.equal(model.stem.weight.grad, torch.ones(4, 3, 3, 3))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "stem.weight")
