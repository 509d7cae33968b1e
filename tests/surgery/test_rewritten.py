"""The rewritten network computes what the silenced original does, at any batch size, in both modes."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from prunus.core import Inputs
from prunus.core.torchvision_ops import declare_torchvision_operators
from tests.surgery.rewriting import (
    Answer,
    Attention,
    Fixed,
    Recurrent,
    Structured,
    close,
    half,
    in_double,
    random_keep,
    silent_original,
    unconstrained,
    whole,
)
from tests.tracing.networks import STEPS, Random, randomise

networks = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), min_size=1, max_size=6)
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(5))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks, st.integers(1, 2), st.sampled_from([1, 4, 7]), st.integers(0, 1000))
def test_it_equals_the_silenced_original_at_other_batch_sizes(steps, width, batch, seed):
    torch.manual_seed(seed)
    model = randomise(Random(steps, 8 * width), seed)
    groups = unconstrained(model, X)
    keep = random_keep(groups, seed)
    small = prunus.rewrite(model, groups, groups.plan(keep))
    x = torch.randn(batch, 3, 6, 6)
    assert sum(p.numel() for p in small.parameters()) == groups.costs(keep)["params"]
    assert close(in_double(small, x), silent_original(model, groups, keep, x))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks, st.integers(0, 1000))
def test_with_nothing_removed_it_is_the_same_to_the_bit(steps, seed):
    torch.manual_seed(seed)
    model = randomise(Random(steps, 8), seed)
    same = whole(model, X)
    x = torch.randn(3, 3, 6, 6)
    assert torch.equal(same(x), model(x))
    assert same.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in same.state_dict().items())


SMALL = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 12), nn.ReLU(inplace=True), nn.Linear(12, 3)), (1, 5)),
    "fixed": (Fixed, (2, 3, 6, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM), (2, 4, 5)),
    "gru": (lambda: Recurrent(nn.GRU), (2, 4, 5)),
    "attention": (Attention, (2, 4, 5)),
    "encoder": (
        lambda: nn.Sequential(
            nn.Linear(5, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.Linear(16, 3)
        ),
        (2, 4, 5),
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_of_every_kind(name):
    make, shape = SMALL[name]
    torch.manual_seed(0)
    model = make().eval()
    small, groups, keep = half(model, torch.randn(shape))
    x = torch.randn(3, *shape[1:])
    assert small.program.any_batch and small.program.why_no_train == ""
    assert close(in_double(small, x), silent_original(model, groups, keep, x))


@pytest.mark.parametrize("name", SMALL)
def test_outputs_and_gradients_in_training_are_the_originals(name):
    """The same random numbers are drawn, so that even dropout is the same."""
    make, shape = SMALL[name]
    torch.manual_seed(0)
    model = make().train()
    same = whole(model, torch.randn(shape))
    assert same.training
    x = torch.randn(4, *shape[1:])
    outs = []
    for net in (model, same):
        torch.manual_seed(7)
        out = net(x)
        outs.append(out if isinstance(out, torch.Tensor) else out[0])
        outs[-1].pow(2).sum().backward()
    assert torch.allclose(*outs, rtol=1e-5, atol=1e-6)
    found = dict(same.named_parameters())
    for n, p in model.named_parameters():
        assert torch.allclose(found[n].grad, p.grad, rtol=1e-4, atol=1e-6), n
    for n, b in model.named_buffers():
        assert torch.equal(same.state_dict()[n], b), n


def test_dropout_is_active_in_training_alone_and_reproducible():
    same = whole(Fixed(), X)
    assert same.training
    torch.manual_seed(1)
    first, second = same(X), same(X)
    torch.manual_seed(1)
    assert not torch.equal(first, second)
    same.load_state_dict(whole(Fixed(), X).state_dict() | {"conv.weight": same.conv.weight})
    same.eval()
    assert torch.equal(same(X), same(X))


def test_nothing_is_computed_in_vain():
    names = [step.op.split(".")[1] for step in whole(Fixed(), X).program.eval.steps]
    assert names == ["convolution", "batch_norm", "relu_", "reshape", "mean", "t", "addmm"]


def test_a_cut_network_trains():
    torch.manual_seed(0)
    small, _, _ = half(Fixed(), X)
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small.train()
    before = small.norm.running_mean.clone()
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(small(X), torch.tensor([0, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and not torch.equal(small.norm.running_mean, before)
    assert int(small.norm.num_batches_tracked) == 20


def test_the_original_is_not_changed_and_not_kept_alive():
    model = Fixed()
    model(X).sum().backward()
    model.conv.bias.requires_grad_(False)
    model.norm.eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    small, groups, keep = half(model, X)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    kept = keep[: groups[0].units]
    assert torch.equal(small.conv.weight.grad, model.conv.weight.grad[kept])
    assert not small.conv.bias.requires_grad and small.conv.weight.requires_grad
    gone = weakref.ref(model), weakref.ref(model.conv.weight)
    del model, groups
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_structures_ties_buffers_and_constants():
    model = Structured()
    example = Inputs((), {"batch": {"x": [torch.randn(2, 6), torch.randn(2, 4)]}, "times": 3})
    small, groups, keep = half(model, example)
    assert small.b.weight is small.a.weight
    assert small.state_dict().keys() == model.state_dict().keys()
    x = {"x": [torch.randn(5, 6), torch.randn(5, 4)]}
    found = small(x, times=3)
    assert isinstance(found, Answer) and found.loss is None and found.count == 5
    for _ in range(2):  # forward writes to a constant: that must not last
        assert torch.equal(small(batch=x, times=3).logits, found.logits)
    expected = silent_original(model, groups, keep, Inputs((x, 3)))
    assert close(in_double(small, Inputs((x, 3))), expected)


def test_inputs_other_than_recorded_are_refused_clearly():
    model = Attention()
    small = whole(model, Inputs((torch.randn(2, 4, 5),), {"memory": torch.randn(2, 3, 5)}))
    x, memory = torch.randn(3, 4, 5), torch.randn(3, 3, 5)
    assert small(memory=memory, x=x)[0].shape == (3, 4, 3)
    with pytest.raises(prunus.InputError, match=r"recorded with the inputs \['x', 'memory'\]; given \['x'\]"):
        small(x)
    with pytest.raises(prunus.InputError, match=r"an input of shape \(3, 4, 5\).*given \(3, 6, 5\)"):
        small(torch.randn(3, 6, 5), memory)
    with pytest.raises(prunus.InputError, match="should be a tensor; given list"):
        small(x, [memory])
    answer = whole(Structured(), Inputs(({"x": [torch.randn(2, 6), torch.randn(2, 4)]}, 3)))
    with pytest.raises(prunus.InputError, match="times was 3 when"):
        answer({"x": [torch.randn(2, 6), torch.randn(2, 4)]}, 4)


def test_a_network_of_one_batch_size_says_so():
    class Bound(Fixed):
        def forward(self, x):
            return super().forward(x) * (2.0 / x.shape[0])

    small, _, _ = half(Bound(), X)
    assert not small.program.any_batch and "2 samples only" in small.program.notes[0]
    assert small(X).shape == (2, 4)
    with pytest.raises(prunus.InputError, match="given \\(3, 3, 6, 6\\)"):
        small(torch.randn(3, 3, 6, 6))


def test_batch_sizes_that_are_multiples():
    class Frames(Fixed):
        def forward(self, x):
            x = x.view(-1, 4, 3, 6, 6)
            return super().forward(x.flatten(0, 1))

    small, _, _ = half(Frames(), torch.randn(4, 3, 6, 6))
    assert small.program.unit == 4 and small(torch.randn(12, 3, 6, 6)).shape == (12, 4)
    with pytest.raises(prunus.InputError, match="multiple of 4 samples; given 6"):
        small(torch.randn(6, 3, 6, 6))


def test_training_mode_that_cannot_be_recorded_is_refused_with_the_reason():
    class Python(Fixed):
        def forward(self, x):
            import random

            return super().forward(x) * (random.random() if self.training else 1.0)

    small, _, _ = half(Python(), X)
    assert not small.training and "random numbers outside torch" in small.program.why_no_train
    with pytest.raises(prunus.TraceError, match="no training mode: .*can be trained in evaluation mode"):
        small.train()
    small(X).sum().backward()
    assert small.conv.weight.grad is not None


def test_precision_follows_the_module():
    small, _, _ = half(Recurrent(nn.LSTM).eval(), torch.randn(2, 4, 5))
    x = torch.randn(2, 4, 5)
    assert small.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    twin = copy.deepcopy(small).double()
    assert twin(x.double()).dtype == torch.float64 and small.head.weight.dtype == torch.bfloat16


def test_channels_last_inputs_and_weights():
    model = Random([("norm", 0), ("conv", 1), ("act", 0)], 8).eval().to(memory_format=torch.channels_last)
    small, groups, keep = half(model, X.contiguous(memory_format=torch.channels_last))
    assert small.get_parameter("layers.1.weight").is_contiguous(memory_format=torch.channels_last)
    assert close(in_double(small, X), silent_original(model, groups, keep, X))


def test_it_can_be_traced_and_cut_again():
    model = Fixed().eval()
    once, first, keep = half(model, X)
    twice, groups, again = half(once, X, seed=1)
    assert close(in_double(copy.deepcopy(twice), X), silent_original(once, groups, again, X))
    plan = prunus.plan_of(twice)
    for name, tensor in plan.tensors.items():
        assert tensor.shape == tuple(model.state_dict()[name].shape)
        assert tensor.left == tuple(twice.state_dict()[name].shape)
    combined = prunus.rewrite(model, first, plan)
    assert torch.equal(combined(X), twice.float()(X))


def test_a_plan_of_other_groups_is_refused():
    model = Fixed()
    groups = unconstrained(model, X)
    plan = groups.plan(random_keep(groups, 0))
    with pytest.raises(prunus.InputError, match="keeps no unit"):
        prunus.rewrite(model, groups, prunus.Plan({groups[0].id: prunus.GroupPlan(8, ())}))
    other = Fixed()
    other.head = nn.Linear(8, 4, bias=False)
    other.conv = nn.Conv2d(3, 16, 3, padding=1)
    with pytest.raises(prunus.TraceError):
        prunus.rewrite(other, groups, plan)


def test_an_operator_of_another_library_is_named():
    @torch.library.custom_op("prunus_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    class Own(Fixed):
        def forward(self, x):
            return super().forward(double(x))

    with pytest.raises(prunus.TraceError, match="prunus_test.double"):
        whole(Own(), X)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "swin_t"])
def test_torchvision_networks(name):
    declare_torchvision_operators()
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=5).eval()
    small, groups, keep = half(model, torch.randn(1, 3, 64, 64))
    x = torch.randn(3, 3, 64, 64)
    assert small.program.why_no_train == ""
    assert close(in_double(small, x), silent_original(model, groups, keep, x))
