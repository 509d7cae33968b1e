"""Pruner: whoever writes the loop, the network trains as if the removed units were not there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunus
from prunus import Budget, InputError, Pruner
from prunus.allocators import allocators
from prunus.criteria import criteria, criterion
from prunus.regularizers import attach, regularizer_of
from prunus.schedules import gradual
from tests.hand_built import batches, chain, residual
from tests.surgery.test_optimizer import OPTIMIZERS, Sigmoids, kept, network, train

X = torch.zeros(1, 3, 6, 6).double()
HALF = Budget(macs=0.5)
IN_TWO = gradual(0, 4, every=2, shape="linear")


def started(kind="residual", name="adamw", **settings):
    """A network, its optimizer and an attached pruner."""
    model = network(kind)
    optimizer = OPTIMIZERS[name](model)
    pruner = Pruner(model, X, budget=HALF, **{"schedule": IN_TWO, "allocator": "uniform", **settings})
    pruner.attach(optimizer)
    return model, optimizer, pruner


def removed(pruner):
    """``{name: boolean mask of removed elements}``, from the slices, one unit after the other."""
    out = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in pruner.model.named_parameters()}
    for group in pruner.groups:
        for unit in (~pruner.keep[group.offset : group.offset + group.units]).nonzero().flatten().tolist():
            for s in group.slices:
                for i in s.index[unit].tolist() if s.name in out else ():
                    out[s.name].select(s.dim, i).fill_(True)
    return out


def assert_same(model, other):
    for (name, p), q in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("kind", ["residual", "sigmoids"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_finishing_changes_nothing_but_the_size(kind, name):
    data = batches(12)
    model, optimizer, pruner = started(kind, name, regularizer=None)
    train(model, optimizer, data[:6])
    masked, theirs, others = started(kind, name, regularizer=None)
    train(masked, theirs, data[:6])
    assert_same(model, masked)
    report = pruner.finish_()
    assert 0 < sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in masked.parameters())
    train(model, optimizer, data[6:])
    train(masked, theirs, data[6:])
    gone = removed(others)
    for (key, p), q in zip(masked.named_parameters(), model.parameters(), strict=True):
        assert not p[gone[key]].any()
        torch.testing.assert_close(q, kept(p, report.plan.tensors.get(key)), rtol=0, atol=1e-10, msg=key)


def test_each_step_holds_the_removed_at_zero_and_the_schedule_is_kept():
    model, optimizer, pruner = started(schedule=gradual(1, 7, every=2, shape="cubic"))
    original, before, seen = pruner.groups.costs()["macs"], pruner.keep, []

    def look():
        nonlocal before
        assert pruner.progress == gradual(1, 7, every=2)(pruner.step)
        cost = pruner.groups.costs(pruner.keep)["macs"]
        assert cost <= original - pruner.progress * 0.5 * original
        assert not (pruner.keep & ~before).any()
        before = pruner.keep
        seen.append(cost)
        for name, mask in removed(pruner).items():
            p = model.get_parameter(name)
            assert not p[mask].any() and all(
                not v[mask].any() for v in optimizer.state[p].values() if v.shape == p.shape
            )

    train(model, optimizer, batches(9), look)
    assert pruner.step == 9 and len(set(seen)) >= 3 and seen == sorted(seen, reverse=True)
    report = pruner.finish_()
    assert report is pruner.report and report.after["macs"] == seen[-1] and report.notes == ()
    assert report.verified.max_relative_error < 1e-7


@pytest.fixture
def contrary():
    """A criterion that finds zeros most important, and an allocator that takes the most important."""

    @criterion("smallest-for-a-test", roles={"out"})
    def smallest(s):
        return -s.weight.square()

    @allocators.register("highest-for-a-test")
    def highest(problem):
        return problem.remove_lowest({id: -values for id, values in problem.scores.items()})

    yield {"criterion": smallest}, {"allocator": highest}
    del criteria._entries["smallest-for-a-test"], allocators._entries["highest-for-a-test"]


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_removed_stays_removed_and_counts(contrary, which):
    """However it would be scored now: no unit comes back, and no more go than the budget asks for."""
    model, optimizer, pruner = started("sigmoids", **{"allocator": "global", **contrary[which]})
    train(model, optimizer, batches(2))
    first = pruner.keep
    train(model, optimizer, batches(2))
    assert not first.all() and not (pruner.keep & ~first).any() and pruner.progress == 1
    if which == 0:
        limit = 0.5 * pruner.groups.costs()["macs"]
        back = [pruner.keep | (torch.arange(len(first)) == unit) for unit in (~pruner.keep).nonzero().flatten()]
        assert any(pruner.groups.costs(keep)["macs"] > limit for keep in back)


def test_gradients_are_zero_where_units_are_gone():
    """Silent sigmoids emit one half, so their consumers' columns have a gradient: the optimizer must not see it."""
    seen = []

    class Watch(torch.optim.SGD):
        def step(self, closure=None):
            seen.append({id(p): p.grad.clone() for g in self.param_groups for p in g["params"]})
            return super().step(closure)

    model = network("sigmoids")
    optimizer = Watch(model.parameters(), lr=0.1)
    pruner = Pruner(model, X, budget=HALF, schedule=lambda step: 1.0)
    pruner.attach(optimizer)
    train(model, optimizer, batches(2))
    gone = removed(pruner)
    assert all(bool(seen[0][id(model.get_parameter(n))][m].any()) for n, m in gone.items() if m.any())
    assert not any(seen[1][id(model.get_parameter(n))][m].any() for n, m in gone.items())
    assert all(bool(seen[1][id(model.get_parameter(n))][~m].any()) for n, m in gone.items() if n != "b.bias")


def test_without_a_schedule_it_is_pressure_and_then_one_cut():
    data, pressure = batches(5), {"name": "bn-gamma", "strength": 0.05}
    model, optimizer, pruner = started(regularizer=pressure, criterion="bn-gamma", schedule=None)
    train(model, optimizer, data)
    assert bool(pruner.keep.all())
    pressed = model.bn.weight.detach().clone()
    report = pruner.finish_()
    retyped = network("residual")
    theirs = OPTIMIZERS["adamw"](retyped)
    attach(regularizer_of(pressure), prunus.trace(retyped, X), theirs)
    train(retyped, theirs, data)
    expected = prunus.prune_(retyped, X, criterion="bn-gamma", allocator="uniform", budget=HALF)
    assert report.plan.groups == expected.plan.groups and report.notes == ()
    for name, p in model.state_dict().items():
        torch.testing.assert_close(p, retyped.state_dict()[name], rtol=0, atol=0)
    free = network("residual")
    train(free, OPTIMIZERS["adamw"](free), data)
    assert not torch.equal(free.bn.weight, pressed)
    after = model.bn.weight.detach().clone()
    optimizer.zero_grad()
    model.bn.weight.grad = torch.zeros_like(after)
    optimizer.param_groups[1]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(model.bn.weight.grad, torch.zeros_like(after)), "the pressure went with the hooks"


def test_a_finish_before_the_schedule_is_through_says_so():
    model, optimizer, pruner = started()
    train(model, optimizer, batches(3))
    report = pruner.finish_()
    assert report.after["macs"] <= 0.5 * report.before["macs"]
    assert report.notes == ("the schedule had come 50% of the way; the rest was removed at the end, untrained.",)


def plain():
    model, optimizer, pruner = started(regularizer="bn-gamma")
    train(model, optimizer, batches(6))
    return pruner.finish_().model


def test_a_closure_gives_the_same():
    model, optimizer, pruner = started(regularizer="bn-gamma")
    for x, y in batches(6):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.double()), y)
            loss.backward()
            return loss

        assert optimizer.step(closure).item() > 0
    assert_same(pruner.finish_().model, plain())


def test_accumulated_gradients_are_one_step():
    model, optimizer, pruner = started("sigmoids")
    for x, y in batches(6):
        for half in (slice(0, 2), slice(2, 4)):
            (F.cross_entropy(model(x[half].double()), y[half]) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruner.step == 6
    other, theirs, expected = started("sigmoids")
    train(other, theirs, batches(6))
    for p, q in zip(pruner.finish_().model.parameters(), expected.finish_().model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_grad_scaler_skips_does_not_count(fused):
    def run(scaled):
        model = network("residual").float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        pruner = Pruner(model, X.float(), budget=HALF, schedule=IN_TWO, allocator="uniform")
        pruner.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000, enabled=scaled)
        for number, (x, y) in enumerate(batches(7)):
            bad = number in (1, 3)  # the second would have been a step with a removal
            if bad and not scaled:
                continue
            optimizer.zero_grad()
            model.eval()  # so that a skipped batch leaves no statistics behind
            scaler.scale(F.cross_entropy(model(x), y) * (float("inf") if bad else 1.0)).backward()
            before = pruner.step
            scaler.step(optimizer)
            scaler.update()
            assert pruner.step == before + (not bad)
        assert scaler.get_scale() == (16.0 if scaled else 1.0)
        return pruner.finish_().model

    for p, q in zip(run(True).parameters(), run(False).parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attach_first", [False, True])
def test_a_resumed_run_is_equal_to_the_bit(attach_first, tmp_path):
    data = batches(8)
    settings = {"criterion": "random", "seed": 3, "regularizer": {"name": "bn-gamma", "proximal": True}}
    model, optimizer, pruner = started(**settings)
    train(model, optimizer, data[:3])
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
    torch.save(states, tmp_path / "checkpoint.pt")
    train(model, optimizer, data[3:])

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = network("residual")
    theirs = OPTIMIZERS["adamw"](again)
    resumed = Pruner(again, X, budget=HALF, schedule=IN_TWO, allocator="uniform", **settings)
    if attach_first:
        resumed.attach(theirs)
    again.load_state_dict(saved["model"])
    theirs.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["pruner"])
    if not attach_first:
        resumed.attach(theirs)
    assert resumed.state_dict() == saved["pruner"] and resumed.step == 3 and resumed.progress == 0.5
    train(again, theirs, data[3:])
    assert resumed.state_dict() == pruner.state_dict()
    assert_same(again, model)
    report = pruner.finish_()
    assert report.plan == resumed.finish_().plan
    assert_same(again, model)


def test_states_that_do_not_fit_are_refused():
    model, optimizer, pruner = started()
    train(model, optimizer, batches(2))
    other = Pruner(chain(8, 8)[0], X.float(), budget=HALF)
    with pytest.raises(InputError, match="there is no group 'a'"):
        other.load_state_dict(pruner.state_dict())
    pruner.finish_()
    with pytest.raises(InputError, match="finished pruner, whose network was cut: load it with prunus.load"):
        started()[2].load_state_dict(pruner.state_dict())


def test_a_moving_average_is_cut_alike():
    model, optimizer, pruner = started()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    train(model, optimizer, batches(6), lambda: average.update_parameters(model))
    report = pruner.finish_()
    prunus.follow_(average, report.plan)
    train(model, optimizer, batches(2), lambda: average.update_parameters(model))
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in model.parameters()]


def test_several_optimizers_train_one_network():
    def run(split):
        model = network("residual")
        wide, narrow = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() < 2]
        parts = [[*wide], [*narrow]] if split else [[*wide, *narrow]]
        optimizers = [torch.optim.AdamW(part, lr=0.01) for part in parts]
        pruner = Pruner(model, X, budget=HALF, schedule=IN_TWO, allocator="uniform", regularizer="bn-gamma")
        pruner.attach(optimizers)
        for x, y in batches(6):
            model.zero_grad()
            F.cross_entropy(model(x.double()), y).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert pruner.step == 6
        return pruner.finish_().model

    assert_same(run(True), run(False))


def test_frozen_parameters_are_masked_and_cut_but_not_trained():
    model = network("residual")
    model.stem.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    pruner = Pruner(model, X, budget=HALF, schedule=IN_TWO, allocator="uniform")
    pruner.attach(optimizer)
    first = model.stem.weight.clone()
    train(model, optimizer, batches(5))
    gone = removed(pruner)["stem.weight"]
    assert gone.any() and not model.stem.weight[gone].any() and torch.equal(model.stem.weight[~gone], first[~gone])
    pruner.finish_()
    assert model.stem.weight.shape[0] < first.shape[0]


def test_a_criterion_that_looks_at_data_leaves_no_trace_in_training():
    @criterion("gradient-for-a-test", needs={"grad"}, roles={"out"}, finish="square")
    def call(s):
        return s.weight * s.grad

    try:
        with pytest.raises(InputError, match="give data= batches"):
            Pruner(network("residual"), X, budget=HALF, criterion=call)
        data = [(x.double(), y) for x, y in batches(2, seed=5)]
        model, optimizer, pruner = started(criterion=call, data=data)
        train(model, optimizer, batches(2))
        assert pruner.progress == 0.5 and model.training
        reference = network("residual")
        theirs = OPTIMIZERS["adamw"](reference)
        train(reference, theirs, batches(2))
        for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad) and torch.equal(p, q.where(~removed(pruner)[name], q.new_zeros(())))
    finally:
        del criteria._entries["gradient-for-a-test"]


def test_wrapped_networks_are_pruned_inside():
    def run(wrap):
        model = network("residual")
        optimizer = OPTIMIZERS["adam"](model)
        wrapped = wrap(model)
        pruner = Pruner(wrapped, X, budget=HALF, schedule=IN_TWO, allocator="uniform")
        pruner.attach(optimizer)
        train(wrapped, optimizer, batches(5))
        assert pruner.finish_().model is model
        train(wrapped, optimizer, batches(2))
        return model

    expected = run(lambda m: m)
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="aot_eager")):
        for p, q in zip(run(wrap).parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
    torch._dynamo.reset()


def test_wrong_use_is_told():
    model = network("sigmoids")
    with pytest.raises(InputError, match="no unit of the network may be removed.*frozen by the user"):
        Pruner(model, X, budget=HALF, freeze=model)
    with pytest.raises(prunus.BudgetError, match="the least reachable is"):
        Pruner(model, X, budget=Budget(macs=1))
    pruner = Pruner(model, X, budget=HALF)
    with pytest.raises(InputError, match="attach.optimizer. comes first"):
        pruner.finish_()
    for optimizer, text in (
        (torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1), "does not hold 5 of the 5 .*'a.weight', 'a.bias'"),
        (torch.optim.SGD(model.fc.parameters(), lr=0.1), "does not hold 4 of the 5 trainable"),
        (None, "given NoneType"),
    ):
        with pytest.raises(InputError, match=text):
            pruner.attach(optimizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach(optimizer)
    with pytest.raises(InputError, match="attached, or has finished, already"):
        pruner.attach(optimizer)
    with pytest.raises(InputError, match=r"progress=1.5\): expected a number in \[0, 1\]"):
        pruner.advance_(1.5)
    pruner.finish_()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    for again in (pruner.finish_, lambda: pruner.attach(optimizer)):
        with pytest.raises(InputError):
            again()
    late = Pruner(Sigmoids().double(), X, budget=HALF)
    prunus.prune_(late.model, X, budget=HALF)
    with pytest.raises(InputError, match="groups are void after a cut"):
        late.attach(torch.optim.SGD(late.model.parameters(), lr=0.1))


def test_a_cut_that_fails_leaves_network_optimizer_and_hooks():
    model, optimizer, pruner = started()
    train(model, optimizer, batches(5))
    weight = model.fc.weight.data.clone()
    model.fc.weight.data.fill_(float("nan"))
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(prunus.VerificationError, match="nothing can be proven"):
        pruner.finish_()
    model.fc.weight.data.copy_(weight)
    assert [p.shape for p in model.parameters()] == shapes and pruner.report is None
    train(model, optimizer, batches(2))
    assert pruner.step == 7
    pruner.finish_()


def test_detached_it_does_nothing():
    model, optimizer, pruner = started("sigmoids")
    train(model, optimizer, batches(4))
    pruner.detach()
    train(model, optimizer, batches(2))
    assert pruner.step == 4 and not optimizer._optimizer_step_pre_hooks
    gone = removed(pruner)
    assert any(bool(model.get_parameter(n)[m].any()) for n, m in gone.items())
    pruner.attach(optimizer)
    train(model, optimizer, batches(1))
    assert not any(bool(model.get_parameter(n)[m].any()) for n, m in gone.items())


def test_the_residual_network_is_what_the_hand_built_groups_say():
    model, groups = residual(6, 8)
    pruner = Pruner(model, X.float(), budget=HALF)
    assert [g.units for g in pruner.groups] == [g.units for g in groups]
