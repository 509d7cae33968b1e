"""A failure in the middle of a verb, whichever and wherever, leaves everything to the bit.

``PRUNUS_UNDO=all`` strikes at every place, the first and the last time that it is met: an operator, or a call of a
function of prunus, and the lines that made it.  That takes half an hour.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import defaultdict

import pytest
import torch
from torch import nn

import prunus
from prunus.core import undo
from prunus.core.undo import all_or_nothing, keep_item, keep_values
from tests.hand_built import batches, chain
from tests.striking import Place, Strike, contents, picture, points, strike
from tests.surgery.rewriting import Fixed
from tests.verbs import DATA, VERBS, X, entrance, halved

MANY = (None, None) if os.environ.get("PRUNUS_UNDO") == "all" else (10, 4)  # operators, calls
KNOWN: dict[str, set[Place]] = defaultdict(set)  # what one `prune_` was struck at, another is not


@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_damages_nothing(verb):
    found = strike(VERBS[verb], *MANY, known=KNOWN[verb.split()[0]])
    assert found.damage == []
    assert found.raised >= found.struck - 1 - found.struck // 50  # Python drops one in a generator that is thrown away


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("trace", "collect", "at_init", "sensitivity")])
def test_the_verb_works_when_it_is_called_again(verb):
    whole, case = VERBS[verb](), VERBS[verb]()
    torch.manual_seed(3)
    with Strike() as every:
        whole.call()
    torch.manual_seed(3)
    for at in points(len(every.places), 3)[-2:]:
        with pytest.raises(KeyboardInterrupt), Strike(at, KeyboardInterrupt):
            case.call()
    case.call()
    for (name, found), (same, expected) in zip(contents(case.subjects), contents(whole.subjects), strict=True):
        assert name == same and torch.equal(found, expected), name


LOOKING = {  # functions that change nothing, and hang hooks in a network while they look
    "blocks": lambda net: prunus.blocks(net, X),
    "costs of a basis": lambda net: prunus.bases.costs(net, X),
}


@pytest.mark.parametrize("verb", [*VERBS, *LOOKING])
def test_an_interrupt_among_hooks_leaves_none(verb, monkeypatch):
    if verb in LOOKING:
        net = nn.Sequential(entrance(), nn.Flatten()) if verb == "blocks" else chain(4, 6)[0]
        if verb == "costs of a basis":
            prunus.interspace_(net)
        subjects, call = [net], lambda: LOOKING[verb](net)
    else:
        case = VERBS[verb]()
        subjects, call = case.subjects.values(), case.call
    modules = [m for model in subjects if isinstance(model, nn.Module) for m in model.modules()]
    before = [(set(m._forward_hooks), set(m._forward_pre_hooks)) for m in modules]
    made = []

    def interrupted(of, number):
        def register(self, *given, **named):
            handle = of(self, *given, **named)
            made.append(handle)
            if len(made) == number:
                raise KeyboardInterrupt
            return handle

        return register

    for name in ("register_forward_hook", "register_forward_pre_hook"):
        monkeypatch.setattr(nn.Module, name, interrupted(getattr(nn.Module, name), 2))
    try:
        call()
    except KeyboardInterrupt:
        assert [(set(m._forward_hooks), set(m._forward_pre_hooks)) for m in modules] == before
    assert verb not in LOOKING or len(made) == 2


def failing(*args, **kwargs):
    raise prunus.VerificationError("put here by a test")


@pytest.mark.parametrize(
    "options",
    [
        {"absorb": True, "criterion": "bn-gamma"},
        {"select": True, "absorb": True, "criterion": "bn-gamma"},
        {"merge": True},
        {"repair": "bias", "data": [x for x, _ in DATA]},
    ],
    ids=lambda options: " ".join(options),
)
def test_where_only_the_proof_fails_all_that_came_before_it_is_undone(options, monkeypatch):
    model = entrance()
    before = picture({"model": model})
    monkeypatch.setattr("prunus.surgery.shrink.prove", failing)
    with pytest.raises(prunus.VerificationError, match="put here by a test"):
        prunus.prune_(model, X, budget=prunus.Budget(macs=0.5), **options)
    assert before.differences(picture({"model": model})) == []


def test_a_retry_starts_from_the_network_as_it_was(monkeypatch):
    """A unit that `absorb` had silenced for a cut that failed would be the first to go in the next one."""
    seen, real = [], prunus.surgery.shrink.shrink_

    def once(model, groups, plan, **options):
        seen.append(plan)
        if len(seen) == 1:
            raise prunus.VerificationError("put here by a test", (groups[0].id,))
        return real(model, groups, plan, **options)

    monkeypatch.setattr("prunus.prune.shrink_", once)
    asked = {"budget": prunus.Budget(macs=0.6), "absorb": True, "criterion": "l2"}
    model, other = chain(5, 7)[0], chain(5, 7)[0]
    report = prunus.prune_(model, X, **asked)
    spared = prunus.prune_(other, X, freeze="conv1", **asked)
    assert report.plan.groups["conv2"] == spared.plan.groups["conv2"]
    assert torch.equal(model(X), other(X))


class Shared(nn.Module):
    """A stream that a batch norm reads too, in front of code that writes its sizes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.stem(x)
        return x + self.norm(x)


@pytest.mark.parametrize(
    "options",
    [
        {"absorb": True},
        {"merge": True},
        {"repair": "bias", "data": [X]},
        {"select": True, "absorb": True, "criterion": "bn-gamma"},
    ],
)
def test_a_rewritten_network_leaves_the_model_that_stays_as_it_was(options):
    torch.manual_seed(0)
    model = Fixed().eval()
    if "select" in options:
        model.conv = nn.Sequential(Shared(), model.conv)
    for m in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(m.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = picture({"model": model})
    report = prunus.prune_(model, X, budget=prunus.Budget(macs=0.5), optimizer=optimizer, **options)
    assert not report.in_place
    assert before.differences(picture({"model": model})) == []
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in report.model.parameters()}  # it goes on with the rewritten one


def test_what_a_network_cost_is_told_of_before_it_got_biases():
    model = entrance()
    params = sum(p.numel() for p in model.parameters())
    report = prunus.prune_(model, X, budget=prunus.Budget(macs=0.6), criterion="bn-gamma", absorb=True, select=True)
    assert any(a.kind == "bias" for a in prunus.plan_of(model).added)
    assert report.before["params"] == params
    assert report.after["params"] == sum(p.numel() for p in model.parameters())


def test_a_pruner_whose_proof_fails_has_masked_nothing_more(monkeypatch):
    model = chain(6, 8)[0].train()
    optimizer = torch.optim.Adam(model.parameters())
    pruner = prunus.Pruner(model, X, budget=prunus.Budget(macs=0.4), schedule=lambda step: 0.5)
    pruner.attach(optimizer)
    for x, y in batches(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    subjects = {"model": model, "optimizer": optimizer, "pruner": pruner}
    before = picture(subjects)
    with monkeypatch.context() as patched:
        patched.setattr("prunus.surgery.shrink.prove", failing)
        with pytest.raises(prunus.VerificationError, match="The model is as it was"):
            pruner.finish_()
    assert before.differences(picture(subjects)) == []
    assert pruner.finish_().verified.max_relative_error < 1e-7


def test_a_repair_on_broken_data_leaves_no_bias_behind():
    model = chain(5, 7)[0]
    for bad in (float("nan"), float("inf")):
        before = picture({"model": model})
        with pytest.raises(prunus.InputError, match="NaN or infinity"):
            prunus.prune_(model, X, budget=prunus.Budget(macs=0.5), repair="bias", data=[X, X * bad])
        assert before.differences(picture({"model": model})) == []


# ---- the mechanism ------------------------------------------------------------------------------------------------


def test_what_is_open_inside_goes_back_to_where_it_began():
    layer = nn.Linear(2, 2)
    first = layer.weight.detach().clone()
    with pytest.raises(MemoryError), all_or_nothing(layer):
        keep_values(layer.weight)
        layer.weight.data.fill_(1)
        with pytest.raises(ValueError, match="inner"), all_or_nothing(layer):
            keep_values(layer.weight)
            layer.weight.data.fill_(2)
            layer.added = 3
            raise ValueError("inner")
        assert layer.weight.eq(1).all() and not hasattr(layer, "added")
        with all_or_nothing(layer.bias):  # committed inside, and of something that was not named outside
            layer.bias.requires_grad_(False)
            keep_values(layer.weight)
            layer.weight.data.fill_(3)
        raise MemoryError
    assert torch.equal(layer.weight, first) and layer.bias.requires_grad


def test_what_others_see_of_the_same_memory_is_put_back_too():
    layer = nn.Linear(2, 2)
    seen, first = layer.weight.detach()[0], layer.weight.detach()[0].clone()
    with pytest.raises(MemoryError), all_or_nothing(layer):
        keep_values(layer.weight)
        layer.weight.data.zero_()
        layer.weight.data = torch.ones(1, 2)
        raise MemoryError
    assert torch.equal(seen, first) and torch.equal(layer.weight[0], first)


def test_a_loss_that_is_alive_still_has_a_backward_afterwards():
    layer = nn.Linear(2, 3)
    loss = layer(torch.ones(1, 2)).sum()
    with pytest.raises(MemoryError), all_or_nothing(layer):
        layer.weight.data = layer.weight.data[:1].clone()
        raise MemoryError
    loss.backward()
    layer(torch.ones(1, 2)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((3, 2), 2.0))


def test_items_that_no_network_holds_are_put_back():
    config, sizes = {"old": 1}, [1, 2]
    with pytest.raises(MemoryError), all_or_nothing():
        for holder, key in ((config, "old"), (config, "new"), (sizes, 1), (config, "old")):
            keep_item(holder, key)
            holder[key] = 5
        raise MemoryError
    assert (config, sizes) == ({"old": 1}, [1, 2])


def test_a_second_interruption_waits_until_everything_is_back(monkeypatch):
    layer, real, times = nn.Linear(2, 2), undo.Before.restore, []

    def interrupted(self):
        times.append(1)
        if len(times) == 1:
            signal.raise_signal(signal.SIGINT)
        real(self)

    monkeypatch.setattr(undo.Before, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt) as told, all_or_nothing(layer):
        del layer.bias
        raise MemoryError
    assert isinstance(told.value.__context__, MemoryError) and layer.bias is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_keeps_nothing_of_another():
    layer, open_, done = nn.Linear(2, 2), threading.Event(), threading.Event()

    def other():
        open_.wait()
        keep_values(layer.weight)
        layer.weight.data.fill_(7)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(MemoryError), all_or_nothing(layer):
        open_.set()
        done.wait()
        raise MemoryError
    thread.join()
    assert layer.weight.eq(7).all()


def test_nothing_is_kept_when_it_is_over():
    model = chain(5, 7)[0]
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, halved(groups))
    assert undo._here.open == []
