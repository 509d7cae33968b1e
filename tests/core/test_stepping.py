"""Around the step of an optimizer."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD, Optimizer

from prunus.core import InputError
from prunus.core.stepping import after_gradients, plain_optimizers, skipped

W = torch.zeros(2, requires_grad=True)


class Wrapper(Optimizer):
    """As Accelerate does it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


class Unhooked(Optimizer):
    """As timm's Lookahead does it."""

    def __init__(self):
        pass

    def step(self):
        pass


def test_wrappers_are_taken_off():
    inner, other = SGD([W], lr=0.1), SGD([W], lr=0.2)
    assert plain_optimizers(Wrapper(Wrapper(inner))) == (inner,)
    assert plain_optimizers([inner, Wrapper(other)]) == (inner, other)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (3, "given int"),
        ([], "no optimizer"),
        ([SGD([W], lr=1), None], "given NoneType"),
        (Unhooked(), "the step of Unhooked calls no hooks"),
    ],
)
def test_what_is_no_optimizer_is_refused(given, text):
    with pytest.raises(InputError, match=text):
        plain_optimizers(given)


@pytest.mark.parametrize("how", ["none", "position", "name"])
def test_it_acts_after_the_gradients_are_there(how):
    done = []

    def closure():
        done.append("closure")
        return 7

    args, kwargs = {
        "none": (("self",), {}),
        "position": (("self", closure, "more"), {}),
        "name": (("self",), {"closure": closure, "x": 1}),
    }[how]
    changed = after_gradients(args, kwargs, lambda: done.append("act"))
    if how == "none":
        assert changed is None and done == ["act"]
        return
    assert done == []
    new_args, new_kwargs = changed
    called = new_args[1] if how == "position" else new_kwargs["closure"]
    assert [called(), called()] == [7, 7] and done == ["closure", "act", "closure", "act"]
    assert new_args[2:] == args[2:] and new_kwargs.get("x") == kwargs.get("x")


def test_a_step_without_effect_is_told():
    optimizer = SGD([W], lr=0.1)
    assert not skipped(optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    assert skipped(optimizer)
