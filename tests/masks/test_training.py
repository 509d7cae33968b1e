"""Masks while a network trains: the three rules, what every method keeps, and going on to the bit."""

import copy
import io

import pytest
import torch
from torch import nn

import prunus
from prunus.core import InputError, UnknownNameError
from prunus.masks import RULES, MaskPruner, Method, methods

EXCHANGING = {"set": False, "rigl": False, "mest": False, "dsr": True, "snfs": True}  # name: whether tensors exchange
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(16, 2, 5, 5, generator=g), torch.randint(0, 10, (16,), generator=g)


def train(model, optimizer, steps, first=0):
    for t in range(first, first + steps):
        x, y = batch(t)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def fixed(groups, density=0.3, criterion="l1"):
    return prunus.allocate(groups, prunus.score(groups, criterion), prunus.Budget(density=density))


def counts(pruner) -> list[int]:
    return [int(mask.sum()) for mask in pruner.covered.masks.values()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_hard_rule_holds_weight_gradient_and_state(optimizer):
    model = network()
    groups, optimizer = prunus.tensors(model), OPTIMIZERS[optimizer](model.parameters())
    train(model, optimizer, 2)  # momentum that would move them
    pruner = MaskPruner(model, groups, Method(rule=RULES["hard"]), density=0.3, steps=9, plan=fixed(groups))
    pruner.attach(optimizer)
    for t in range(3):
        train(model, optimizer, 1, t)
        for name, p in pruner.covered.parameters.items():
            gone = ~pruner.covered.masks[name]
            assert gone.any() and (p[gone] == 0).all() and (p.grad[gone] == 0).all()
            assert all((v[gone] == 0).all() for v in optimizer.state[p].values() if v.shape == p.shape)


def test_feedback_is_the_step_of_its_equation():
    """w <- w - eta (g(w * m) + decay w) on all entries, by hand."""
    model = network().double()
    groups = prunus.tensors(model)
    plan = fixed(groups)
    masks = {name: mask.keep for name, mask in plan.masks.items()}
    hand = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    pruner = MaskPruner(model, groups, Method(rule=RULES["feedback"]), density=0.3, steps=9, plan=plan)
    pruner.attach(optimizer)
    dense = {n: p.detach().clone() for n, p in hand.named_parameters()}
    for t in range(3):
        x, y = batch(t)
        with torch.no_grad():
            for n, p in hand.named_parameters():
                p.copy_(dense[n] * masks[n] if n in masks else dense[n])
        loss = nn.functional.cross_entropy(hand(x.double()), y)
        grads = dict(zip(dense, torch.autograd.grad(loss, list(hand.parameters()))))
        dense = {n: w - 0.1 * (grads[n] + 0.01 * w) for n, w in dense.items()}
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        for n, p in model.named_parameters():
            expected = dense[n] * masks[n] if n in masks else dense[n]
            assert torch.allclose(p, expected, atol=1e-14)
            if n in masks:
                assert torch.allclose(pruner.covered.dense[n], dense[n], atol=1e-14)
                assert (dense[n] != dict(network().double().named_parameters())[n])[~masks[n]].any(), (
                    "masked ones train"
                )


def test_reset_zeroes_when_chosen_and_trains_freely():
    model = network()
    groups = prunus.tensors(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = fixed(groups)
    update = lambda m: m.keep  # noqa: E731
    method = Method(rule=RULES["reset"], when=lambda t: t == 2, update=update)
    pruner = MaskPruner(model, groups, method, density=0.3, steps=9, plan=plan)
    pruner.attach(optimizer)
    gone = {n: ~m for n, m in pruner.covered.masks.items()}
    zero = lambda: all((p[gone[n]] == 0).all() for n, p in pruner.covered.parameters.items())  # noqa: E731
    assert zero()
    train(model, optimizer, 2)
    assert not zero(), "they train again"
    train(model, optimizer, 1)
    assert zero(), "set to zero again"
    train(model, optimizer, 1)
    assert not zero()
    pruner.finish_()
    assert zero()


@pytest.mark.parametrize("name", EXCHANGING)
def test_exchanging_methods_keep_their_counts_and_drop_the_smallest(name):
    model = network()
    groups = prunus.tensors(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {"threshold": 0.02} if name == "dsr" else {}
    pruner = MaskPruner(model, groups, name, density=0.25, steps=20, every=5, **options)
    pruner.attach(optimizer)
    first, moved = counts(pruner), 0
    assert sum(first) == int(0.25 * groups.units)
    for t in range(20):
        before = {n: (m.clone(), p.detach().clone()) for (n, m), p in
                  zip(pruner.covered.masks.items(), pruner.covered.parameters.values())}  # fmt: skip
        train(model, optimizer, 1, t)
        assert sum(counts(pruner)) == sum(first)
        for n, (mask, w) in before.items():
            now, p = pruner.covered.masks[n], pruner.covered.parameters[n]
            grown, dropped = now & ~mask, mask & ~now
            moved += int(grown.sum())
            assert t % 5 == 0 and t > 0 or not grown.any()
            assert (optimizer.state[p]["momentum_buffer"][~now] == 0).all()
            if grown.any() and pruner.method.skip:
                assert (p[grown] == 0).all() and (optimizer.state[p]["momentum_buffer"][grown] == 0).all()
            if dropped.any() and name not in ("rigl", "snfs"):  # there, a dropped weight may have come back
                assert w[dropped].abs().max() <= w[mask & now].abs().min()
        if not EXCHANGING[name]:
            assert counts(pruner) == first, "tensor by tensor"
    assert moved > 0
    done = pruner.finish_()
    assert done.density == sum(first) / groups.units


def test_rigl_drops_the_smallest_and_grows_by_the_dense_gradient():
    """One update by hand; the step changes no weight; a dropped weight may come back with its value."""
    model = network().double()
    groups = prunus.tensors(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = MaskPruner(model, groups, "rigl", density=0.3, steps=8, every=2, fraction=0.4, stop=1.0)
    pruner.attach(optimizer)
    for t in range(2):
        x, y = batch(t)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    masks = {n: m.clone() for n, m in pruner.covered.masks.items()}
    x, y = batch(2)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x.double()), y)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    optimizer.step()
    alpha = 0.4 / 2 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 8, dtype=torch.float64)))
    for n, p in pruner.covered.parameters.items():
        k = int(alpha * masks[n].sum())
        w = before[n].abs().masked_fill(~masks[n], torch.inf).flatten()
        stay = masks[n].flatten().clone()
        stay[w.argsort(stable=True)[:k]] = False
        g = grads[n].abs().flatten().masked_fill(stay, -1)
        stay[g.argsort(descending=True, stable=True)[:k]] = True
        assert k > 0 and torch.equal(pruner.covered.masks[n].flatten(), stay)
        now = stay.view_as(p)
        assert torch.equal(p[now & masks[n]], before[n][now & masks[n]])
        assert (p[now & ~masks[n]] == 0).all()
    assert torch.equal(model[4].bias, before["4.bias"])


def test_no_update_after_the_end():
    model = network()
    pruner = MaskPruner(model, prunus.tensors(model), "rigl", density=0.3, steps=20, every=2, stop=0.5)
    assert [t for t in range(40) if pruner.method.when(t)] == [2, 4, 6, 8]


def test_gradual_magnitude_pruning_follows_the_cubic():
    """s_f = 0.9 at quarters: .520313, .7875, .885938, .9 (Zhu & Gupta, equation 1), of every tensor."""
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    pruner = MaskPruner(model, prunus.tensors(model), "gmp", density=0.1, steps=8, every=2, stop=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner.attach(optimizer)
    seen = []
    for _ in range(9):
        optimizer.zero_grad()
        model(torch.randn(4, 100)).square().mean().backward()
        optimizer.step()
        seen.append([1 - n / 10000 for n in counts(pruner)])
    for step, s in ((2, 0.520313), (4, 0.7875), (6, 0.885938), (8, 0.9)):
        assert seen[step] == pytest.approx([s, s], abs=1.1e-4)
    assert seen[1] == [0, 0] and seen[3] == seen[2]


def test_removed_weights_come_back_under_dpf_and_not_under_gmp():
    for name, back in (("dpf", True), ("gmp", False)):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        pruner = MaskPruner(model, prunus.tensors(model), name, density=0.3, steps=30, every=2, stop=0.5)
        pruner.attach(optimizer)
        returned, last = 0, pruner.keep
        for t in range(30):
            train(model, optimizer, 1, t)
            returned += int((pruner.keep & ~last).sum())
            last = pruner.keep
        assert (returned > 0) == back
        assert pruner.finish_().density <= 0.3


def test_surgery_has_hysteresis():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    groups = prunus.tensors(model)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.2, 1.0, 0.95, 3.0]]))
    pruner = MaskPruner(model, groups, "dns", density=0.5, steps=10, rate=0.0, gamma=0.0)
    pruner.memory["threshold 0.weight"] = torch.tensor(1.0, dtype=torch.float64)
    m = pruner.moment()
    assert pruner.method.update(m)["0.weight"].tolist() == [False, True, True, True]
    pruner.keep[1] = False
    assert pruner.method.update(pruner.moment())["0.weight"].tolist() == [False, False, True, True]


@pytest.mark.parametrize("name", sorted(e.name for e in methods))
@pytest.mark.parametrize("at", [3, 7])
def test_resume_at_any_step_is_exact(name, at):
    def start():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        every = {} if name in ("dns", "str", "dst") else {"every": 3}
        pruner = MaskPruner(model, prunus.tensors(model), name, density=0.3, steps=12, seed=5, **every)
        pruner.attach(optimizer)
        return model, optimizer, pruner

    model, optimizer, pruner = start()
    train(model, optimizer, at)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
    file.seek(0)
    train(model, optimizer, 12 - at, at)
    again, resumed, second = start()
    states = torch.load(file, weights_only=True)
    for one, state in zip((again, resumed, second), states):
        one.load_state_dict(state)
    train(again, resumed, 12 - at, at)
    assert torch.equal(second.keep, pruner.keep)
    pruner.finish_(), second.finish_()
    for (n, a), b in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), n


@pytest.mark.parametrize("name", sorted(e.name for e in methods))
def test_every_method_ends_at_its_density_and_leaves_the_keys(name):
    model = network()
    keys, groups = list(model.state_dict()), prunus.tensors(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = MaskPruner(model, groups, name, density=0.2, steps=10)
    pruner.attach(optimizer)
    train(model, optimizer, 10)
    done = pruner.finish_()
    assert list(model.state_dict()) == keys
    assert done.density <= 0.2
    train(model, optimizer, 2)
    assert all((p[~done.plan.masks[n].keep] == 0).all() for n, p in pruner.covered.parameters.items()), "held"


@pytest.mark.parametrize("grain", ["kernel", (4, 1)])
def test_units_may_be_blocks(grain):
    model = network()
    groups = prunus.tensors(model, grain, only="0.weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = MaskPruner(model, groups, "rigl", density=0.5, steps=6, every=2)
    pruner.attach(optimizer)
    train(model, optimizer, 6)
    rows = groups[0].slices[0].view(pruner.covered.masks["0.weight"])
    assert (rows.any(1) == rows.all(1)).all() and int(rows.any(1).sum()) == groups.units // 2


def test_patterns_are_kept_by_what_allocates():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    groups = prunus.tensors(model, "2:4")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = MaskPruner(model, groups, "gmp", density=0.5, steps=4, every=1)
    pruner.attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().mean().backward()
        optimizer.step()
    done = pruner.finish_()
    assert all((m.keep.reshape(-1, 4).sum(1) == 2).all() for m in done.plan.masks.values())


def test_closures_see_the_mask_and_dense_weights_are_updated():
    plain, closed = network(), network()
    for model, closure in ((plain, False), (closed, True)):
        groups = prunus.tensors(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        MaskPruner(model, groups, Method(rule=RULES["feedback"]), density=0.3, steps=9, plan=fixed(groups)).attach(
            optimizer
        )
        for t in range(3):
            x, y = batch(t)

            def back(model=model, x=x, y=y, optimizer=optimizer):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(back) if closure else (back(), optimizer.step())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), closed.parameters()))


def test_bad_input_says_what_is_wrong():
    model = network()
    groups = prunus.tensors(model)
    with pytest.raises(UnknownNameError, match="rigl"):
        MaskPruner(model, groups, "rigll", density=0.5, steps=5)
    with pytest.raises(InputError, match="fractoin"):
        MaskPruner(model, groups, "rigl", density=0.5, steps=5, fractoin=0.1)
    with pytest.raises(InputError, match="not the weights of this network"):
        MaskPruner(network(), groups, "rigl", density=0.5, steps=5)
    with pytest.raises(InputError, match="looks at data"):
        MaskPruner(model, groups, "gmp", density=0.5, steps=5, criterion="snip")
    pruner = MaskPruner(model, groups, "rigl", density=0.5, steps=5)
    with pytest.raises(InputError, match="does not hold"):
        pruner.attach(torch.optim.SGD(network().parameters(), lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach(optimizer)
    train(model, optimizer, 1)
    model[4].weight.data, model[4].bias.data = model[4].weight.data[:5], model[4].bias.data[:5]
    model[4].weight.grad = model[4].bias.grad = None
    optimizer.state.clear()
    with pytest.raises(InputError, match="no longer|the network was changed"):
        optimizer.step()
    model = network()
    groups = prunus.tensors(model)
    other = MaskPruner(model, groups, "dpf", density=0.5, steps=5)
    with pytest.raises(prunus.FileError, match="another method"):
        other.load_state_dict(pruner.state_dict())
    with pytest.raises(prunus.PrunusError):
        small = nn.Sequential(nn.Linear(2, 2))
        MaskPruner(small, prunus.tensors(small), "rigl", density=0.5, steps=5).load_state_dict(pruner.state_dict())
