"""Discrimination-aware selection against the loss that it lowers, computed by autograd and by brute force."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.core import InputError
from prunus.criteria.dcp import discriminating
from prunus.observe import collect
from prunus.observe.base import Seen, untouched
from prunus.observe.discrimination import fit, heads, pooled
from prunus.observe.moments import Consumer
from tests.traced import batches, chain, residual


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(columns: int = 2, units: int = 4, out: int = 3, seed: int = 0) -> Consumer:
    fan = columns * units
    x, g = random(60, fan, seed=seed) @ random(fan, fan, seed=1), random(60, out, seed=2) / 3
    owners = torch.arange(fan).reshape(units, columns)
    return Consumer(random(out, fan, seed=3), x.mT @ x / 60, owners, g.mT @ g / 60, g.mT @ x / 60)


def loss(c: Consumer, w: torch.Tensor) -> torch.Tensor:
    metric, change = torch.eye(len(w)).double() / len(w) + c.curvature, w - c.weight
    return torch.trace(metric @ change @ c.moment @ change.mT) / 2 + (c.slope * change).sum()


def test_orthonormal_inputs_select_the_largest_true_channels():
    w = random(3, 8)
    c = Consumer(w, torch.eye(8).double(), torch.arange(8).reshape(4, 2))
    order, rise = discriminating((c,))
    norms = w.square().sum(0).reshape(4, 2).sum(1)
    assert order.tolist() == norms.argsort().tolist()
    torch.testing.assert_close(rise, norms[order].cumsum(0) / 6, rtol=2e-3, atol=0)  # 1 / (2 out), and the ridge
    slopes = torch.autograd.functional.jacobian(lambda v: (v - w).square().sum() / 6, torch.zeros_like(w))
    torch.testing.assert_close(slopes, -w / 3)


def test_every_step_adds_the_steepest_channel_and_fits_all_chosen():
    c = layer()
    order, rise = discriminating((c,))
    chosen, previous = [], None
    for u in order.flip(0).tolist():
        columns = c.columns[chosen].flatten() if chosen else torch.empty(0, dtype=torch.long)
        w = minimiser(c, columns).requires_grad_()
        slope = torch.autograd.grad(loss(c, w), w)[0][:, c.columns].square().sum((0, 2))
        slope[chosen] = -1
        assert slope.argmax() == u
        chosen.append(u)
        value = loss(c, w).item()
        if previous is not None:
            assert value < previous
        previous = value
    whole = loss(c, torch.zeros_like(c.weight)) - loss(c, minimiser(c, torch.arange(8)))
    assert rise[-1].item() == pytest.approx(whole.item(), rel=1e-2)  # a ridge of a thousandth


def minimiser(c: Consumer, columns: torch.Tensor) -> torch.Tensor:
    """The weights on `columns` that make the loss least: a quadratic, solved through its Hessian by autograd."""
    at = torch.zeros(len(c.weight), len(columns), dtype=torch.float64)
    if not len(columns):
        return torch.zeros_like(c.weight)

    def of(part: torch.Tensor) -> torch.Tensor:
        return loss(c, torch.zeros_like(c.weight).index_add(1, columns, part))

    slope = torch.autograd.functional.jacobian(of, at).flatten()
    hessian = torch.autograd.functional.hessian(of, at).reshape(len(slope), -1)
    return torch.zeros_like(c.weight).index_add(1, columns, at - torch.linalg.solve(hessian, slope).reshape(at.shape))


def test_classes_decide_between_channels_that_rebuild_alike():
    c = Consumer(
        torch.ones(1, 2).double(),
        torch.eye(2).double(),
        torch.arange(2)[:, None],
        torch.zeros(1, 1).double(),
        torch.tensor([[0.0, -0.5]]).double(),  # more of the second lowers the loss
    )
    assert discriminating((c,))[0].tolist() == [0, 1]
    assert discriminating((c, c))[1][-1] == 2 * discriminating((c,))[1][-1]  # layers that read the same units add up


def test_slopes_are_those_of_the_next_heads_loss_and_then_of_the_networks_own():
    model, groups = residual()
    data = batches(2, 6)
    x, y = (torch.cat(parts) for parts in zip(*data))
    found = collect(model, groups, data, {"discriminated-moments"}).groups["discriminated-moments"]
    with untouched(model):
        (head,) = heads(Seen(model, groups, data, None))
        features = []
        hook = model.a.register_forward_hook(lambda m, a, out: features.append(out))
        out = model(x)
        hook.remove()
        own = F.cross_entropy(head(features[0].flatten(2).mT), y)
        last = F.cross_entropy(out, y)
        by_head = torch.autograd.grad(own, model.a.weight, retain_graph=True)[0]
        by_last = torch.autograd.grad(last, (model.b.weight, model.fc.weight))
    of_stem, of_fc = found["stem"]
    torch.testing.assert_close(of_stem.slope, by_head.flatten(1).double(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(of_fc.slope, by_last[1].double(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found["a"][0].slope, by_last[0].flatten(1).double(), rtol=1e-4, atol=1e-7)


def test_a_head_learns_what_its_features_tell():
    features = torch.cat([random(40, 3, seed=1) + 3, random(40, 3, seed=2) - 3])
    labels = torch.arange(80) // 40 * 4  # classes 0 and 4
    weight, bias = fit(features, labels)
    assert weight.shape == (5, 3) and ((features @ weight.mT + bias).argmax(1) == labels).all()
    rows = random(2, 5, 3)
    torch.testing.assert_close(pooled(rows, torch.ones(3), torch.tensor(2.0)), ((rows - 1) * 2).clamp(min=0).mean(1))


def test_what_labels_it_needs_is_said():
    model, groups = chain()
    x, _ = batches(1)[0]
    with pytest.raises(InputError, match=r"batches \(x, y\) with y one class number a sample"):
        collect(model, groups, [x], {"discriminated-moments"})
    with pytest.raises(InputError, match=r"only the class \[2\]"):
        collect(model, groups, [(x, torch.full((4,), 2))], {"discriminated-moments"})


def test_it_cuts_handwritten_digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8)[:256] / 16
    y = torch.from_numpy(labels)[:256].long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def after(criterion: str) -> float:
        cut = copy.deepcopy(net)
        data = [(x[:128], y[:128]), (x[128:], y[128:])]
        budget = prunus.Budget(macs=0.4)
        report = prunus.prune_(cut, x[:1], budget=budget, criterion=criterion, allocator="uniform", data=data)
        return (report.model(x).argmax(1) == y).double().mean().item()

    assert (net(x).argmax(1) == y).double().mean() > 0.95
    found = {name: after(name) for name in ("dcp", "thinet-omp", "random")}
    assert found["dcp"] > max(0.6, found["random"])
