"""Several threads prune at once: each as if it were alone, and the process is as it was."""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import prunus
from prunus.core.process import Shared, plain_attention
from prunus.surgery.reference import observed
from tests.forking import forked
from tests.hand_built import batches, chain
from tests.striking import world
from tests.surgery.rewriting import Fixed

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.head = nn.Linear(8, 12), nn.LSTM(12, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(self.first(x))[0][:, -1])


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))


# how a network is made, an example, and what is asked
TASKS = {
    "plain": (lambda: chain(6, 8)[0], X, {}),
    "double": (lambda: chain(6, 8)[0].double(), X.double(), {"absorb": True}),
    "data": (lambda: chain(6, 8)[0], X, {"criterion": "taylor", "data": batches(2)}),
    "rewritten": (lambda: Fixed(), X, {}),
    "attention": (attention, ROWS, {}),
    "recurrent": (Recurrent, ROWS, {}),
}


def made(task: str) -> nn.Module:
    torch.manual_seed(0)
    return TASKS[task][0]().eval()


def pruned(task: str, model: nn.Module) -> prunus.Report:
    _, x, asked = TASKS[task]
    return prunus.prune_(model, x, budget=prunus.Budget(macs=0.6), **asked)


@pytest.mark.parametrize(
    "tasks", [("plain", "plain"), ("plain", "double", "rewritten"), tuple(TASKS), ("attention", "recurrent") * 2]
)
def test_threads_prune_as_if_each_were_alone(tasks):
    alone = {task: pruned(task, made(task)) for task in set(tasks)}
    models, reports, seen, over = [made(task) for task in tasks], {}, set(), threading.Event()
    before, filters = world(), list(warnings.filters)

    def work(number: int) -> None:
        reports[number] = pruned(tasks[number], models[number])

    def look() -> None:
        while not over.is_set():
            seen.add(torch.get_default_dtype())
            over.wait(0.0005)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(tasks))]
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    over.set()
    watcher.join(60)
    for number, task in enumerate(tasks):
        assert reports[number].plan.tensors == alone[task].plan.tensors
        assert reports[number].in_place == alone[task].in_place
        mine, other = reports[number].model.state_dict(), alone[task].model.state_dict()
        assert all(torch.equal(mine[k], other[k]) for k in other)
        assert reports[number].verified.max_relative_error < 1e-7
    assert dict(world()) == dict(before) and warnings.filters == filters
    assert seen == {torch.float32}  # threads that prune nothing make tensors of the type they always had


def test_a_setting_is_put_back_by_the_last_who_needs_it():
    value, inside, leave = ["user's"], threading.Barrier(2, timeout=30), threading.Barrier(2, timeout=30)

    def make(stack):
        stack.callback(value.__setitem__, 0, value[0])
        value[0] = "ours"

    setting = Shared(make)

    def other():
        with setting():
            inside.wait()
            leave.wait()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    inside.wait()
    with setting():
        pass
    assert value == ["ours"]  # the other one still needs it
    leave.wait()
    thread.join(60)
    assert value == ["user's"]
    with pytest.raises(ValueError, match="x"), setting():
        raise ValueError("x")
    assert value == ["user's"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("mine", [False, True])
def test_what_other_threads_had_set_is_put_back_after_a_fork(mine):
    value, inside, leave = ["user's"], threading.Event(), threading.Event()

    def make(stack):
        stack.callback(value.__setitem__, 0, value[0])
        value[0] = "ours"

    setting = Shared(make)

    def other():
        with setting(), setting(), setting._lock:
            inside.set()
            leave.wait(60)

    def in_the_child() -> bool:
        if not mine:
            return value == ["user's"] and _again(setting, value)
        return value == ["ours"]

    thread = threading.Thread(target=other, daemon=True)
    with setting() if mine else nullcontext():
        thread.start()
        assert inside.wait(60)
        assert forked(in_the_child) == 0
        leave.set()
        thread.join(60)
        assert value == ["ours" if mine else "user's"]
    assert value == ["user's"]


def _again(setting, value) -> bool:
    with setting():
        inside = value == ["ours"]
    return inside and value == ["user's"]


def test_what_the_user_had_set_stays_set():
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_default_dtype(torch.float64)
    try:
        pruned("attention", made("attention").float())
        assert not torch.backends.mha.get_fastpath_enabled() and torch.get_default_dtype() is torch.float64
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch.set_default_dtype(torch.float32)
    with plain_attention():
        assert not torch.backends.mha.get_fastpath_enabled()


def numbers(x):
    return x + torch.tensor(0.1) * torch.linspace(0, 1, x.shape[-1])


def written(x):
    out = torch.zeros(x.shape)
    out[:] = x
    out += torch.full((1,), 0.3)
    return out


def listed(x):
    out = torch.tensor([[0.25]] * 2)
    out.add_(x[:, :1])
    return x * out


def whole(x):
    places = torch.arange(x.shape[-1])
    return x * (places / 3).cos() + torch.sqrt(places + 1) * 0.5


def legacy(x):
    return x * torch.Tensor([0.1]) + torch.ones(1).new_tensor([0.2])


def integers(x):
    mask = torch.ones(x.shape[-1], dtype=torch.long)
    return x.masked_fill(mask == 0, torch.finfo(torch.get_default_dtype()).min).softmax(-1) * mask.sum()


@pytest.mark.parametrize("make", [numbers, written, listed, whole, legacy, integers])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_forward_makes_of_numbers_is_as_precise_as_the_rest_of_the_proof(make, dtype):
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.c(make(self.b(self.a(x).relu()))).to(x.dtype)

    torch.manual_seed(0)
    before, exact, x = torch.get_default_dtype(), Made().double(), torch.randn(2, 4)
    try:
        torch.set_default_dtype(torch.float64)
        expected = exact(x.double())
        torch.set_default_dtype(dtype)
        tensors = {n: t.detach() for n, t in exact.named_parameters()}
        given = prunus.Inputs.of(x.to(dtype))
        found = observed(exact.to(dtype), tensors, given, torch.float64, nullcontext).outputs[0]
        report = prunus.prune_(exact, x.to(dtype), budget=prunus.Budget(params=0.6), only="a")
    finally:
        torch.set_default_dtype(before)
    assert found.dtype is torch.float64
    close = {torch.bfloat16: 2e-2, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]  # numbers are rounded to it
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    assert report.in_place and report.verified.max_relative_error < 1e-12 and report.verified.dtype == "float64"
