"""The flow of ones through networks of every kind of activation, norm and product, against numbers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.masks import collapse
from prunus.observe import collect
from prunus.observe.unsigned import Record, Unsigned
from prunus.zoo.mobilenet import mobilenetv2

ACTIVATIONS = [nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish]
ACTIVATIONS += [nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.Softplus, nn.LogSigmoid, nn.Softshrink]
ACTIVATIONS += [nn.Hardshrink, nn.Identity, lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True)]


def flow_of(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What flows through every parameter's elements."""
    groups = prunus.trace(net.eval(), x)
    flow = collect(net, groups, (), {"flow"}).kinds["flow"]
    return {name: p.detach().double().abs() * flow[name] for name, p in net.named_parameters() if name in flow}


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    convs = (nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 5, 3, groups=5, bias=False), nn.Conv2d(5, 4, 1, bias=False))
    for conv in convs:
        nn.init.uniform_(conv.weight, -9, 9)
    net = nn.Sequential(convs[0], nn.BatchNorm2d(5), activation, convs[1], activation, convs[2], activation)
    return nn.Sequential(*net, nn.Flatten(), nn.Linear(16, 2, bias=False))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_activation_saturates(activation):
    x = torch.randn(2, 3, 6, 6)
    found, plain = (flow_of(network(a()), x) for a in (activation, nn.ReLU))
    for name in ("0.weight", "3.weight", "5.weight", "8.weight"):
        torch.testing.assert_close(found[name], plain[name])
        assert bool((found[name] > 0).all())


def test_what_flows_is_the_product_of_absolute_weights():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[-9.0, 1.0], [3.0, -2.0]]))
        net[2].weight.copy_(torch.tensor([[5.0, -4.0]]))
    found = flow_of(net, torch.randn(1, 2))
    assert found["0.weight"].tolist() == [[45, 5], [12, 8]] and found["2.weight"].tolist() == [[50, 20]]


def test_every_unit_of_a_mobilenet_is_reached_and_the_dense_network_is_whole():
    torch.manual_seed(0)
    net, x = mobilenetv2().eval(), torch.randn(1, 3, 32, 32)
    groups = prunus.trace(net, x)
    scores = torch.cat([*prunus.score(groups, "synflow", collect(net, groups, (), {"flow"})).values()])
    assert bool(scores.isfinite().all()) and bool((scores > 0).all())
    tensors = prunus.tensors(net)
    plan = tensors.plan(torch.ones(tensors.units, dtype=torch.bool))
    assert not collapse(net, tensors, plan, [x])


def test_a_scale_that_starts_at_zero_is_no_collapse_by_a_mask():
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    tensors, x = prunus.tensors(net), torch.randn(1, 3)
    keep = torch.ones(tensors.units, dtype=torch.bool)
    assert not collapse(net, tensors, tensors.plan(keep), [x])
    nn.init.ones_(net[1].weight)
    keep[tensors["2.weight"].offset :] = False
    assert collapse(net, tensors, tensors.plan(keep), [x]).dead == ("0.weight", "2.weight")


def again(function, *inputs: Tensor, weights=()) -> tuple[Tensor, Unsigned]:
    """A function of inputs, made again; inputs are taken by their size, as weights are."""
    with torch.no_grad(), Record(inputs) as record:
        out = function(*inputs)
    unsigned = Unsigned(record.calls, weights)
    return unsigned.value(out), unsigned


def test_a_product_is_as_large_as_the_geometric_mean_of_its_factors():
    a, b = torch.tensor([2.0, -6.0]), torch.tensor([-9.0, 9.0])  # means 4 and 9 of sizes, products 18 and 54, mean 36
    for of in (lambda a, b: a * b, lambda a, b: a.clone().mul_(b), lambda a, b: F.glu(torch.cat([a, b]), 0)):
        out, _ = again(of, a, b)
        assert out.tolist() == pytest.approx([18 * 6 / 36, 54 * 6 / 36])
    out, _ = again(lambda a, b: a[None] @ b[:, None], a, b)
    assert out.item() == pytest.approx(6)


def test_nothing_is_taken_off_and_what_norms_divide_by_passes_nothing_on():
    a, b = torch.tensor([2.0, -6.0]), torch.tensor([1.0, 3.0])
    assert again(lambda a, b: a - b, a, b)[0].tolist() == [3, 9]
    assert again(lambda a, b: a.clone().sub_(b), a, b)[0].tolist() == [3, 9]
    assert again(lambda a: 1 - a, a)[0].tolist() == [2, 6]
    out, unsigned = again(lambda a, b: a / b, a, b, weights=(a, b))
    assert out.tolist() == [2, 2]
    assert torch.autograd.grad(out.sum(), [unsigned.value(a)])[0].tolist() == pytest.approx([1, 1 / 3])
    assert torch.autograd.grad(out.sum(), [unsigned.value(b)], allow_unused=True)[0] is None
    assert again(lambda a: a * torch.rsqrt(a * a), a)[0].tolist() == pytest.approx([1, 3])  # a product with ones


def test_what_is_written_over_behind_an_activation_leaves_what_went_in():
    def triple(a: Tensor) -> Tensor:
        h = a * 1
        return h.tanh().mul_(3) + h

    assert again(triple, torch.tensor([2.0, -6.0]))[0].tolist() == [8, 24]


@pytest.mark.parametrize("norm", [nn.LayerNorm(4, eps=0), nn.GroupNorm(2, 4, eps=0), nn.BatchNorm1d(4, eps=0)])
def test_norms_scale_and_take_no_mean_off(norm):
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 4.0]))
        norm.bias.copy_(torch.tensor([0.0, -1.0, 0.0, 5.0]))
    x = torch.tensor([[1.0, -3.0, 7.0, 9.0]])
    if isinstance(norm, nn.BatchNorm1d):
        norm.running_mean.fill_(100.0)
        norm.running_var.copy_(torch.tensor([4.0, 4.0, 1.0, 16.0]))
        scale = torch.tensor([0.5, 0.5, 1, 0.25])
    else:
        scale = torch.tensor([1.0, 1, 1, 1]) / (10**0.5 if isinstance(norm, nn.LayerNorm) else 1)
    out, _ = again(norm.eval(), x)
    expected = x.abs() * scale * norm.weight.abs() + norm.bias.abs()
    torch.testing.assert_close(out, expected.double().detach())


@pytest.mark.parametrize("way", ["mask", "causal", "fused", "fused mask"])
def test_attention_passes_on_where_it_is_not_masked(way):
    q, k, v = (torch.rand(1, 1, 3, 2) + 0.1 for _ in range(3))
    mask = torch.full((3, 3), -torch.inf).triu(1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if way.startswith("fused"):
            return F.scaled_dot_product_attention(q, k, v, mask if "mask" in way else None, is_causal="mask" not in way)
        scores = q @ k.mT + mask if way == "mask" else (q @ k.mT).masked_fill(mask < 0, -torch.inf)
        return scores.softmax(-1) @ v

    out, unsigned = again(attend, q, k, v, weights=(q, k, v))
    slopes = torch.autograd.grad(out[0, 0, 1].sum(), [unsigned.value(t) for t in (k, v)])
    for slope in slopes:
        assert bool((slope[0, 0, :2] > 0).all()) and bool((slope[0, 0, 2] == 0).all())


def test_what_is_written_into_a_buffer_flows_on_and_constants_keep_their_size():
    x = torch.tensor([1.0, 2.0])

    def write(x: Tensor) -> Tensor:
        out = torch.zeros(4)
        out[:2] = x
        out[1:3] += x
        return out * torch.tensor([-1.0, 2.0, 3.0, 4.0])

    out, unsigned = again(write, x, weights=(x,))
    assert out.tolist() == [1, 6, 6, 0]
    assert torch.autograd.grad(out.sum(), [unsigned.value(x)])[0].tolist() == [3, 5]


def test_what_is_computed_of_weights_flows_on_to_them_unless_it_is_a_weight_itself():
    x, w, scale = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[2.0, -1.0]])
    computed = w @ w  # one more weight, of its own size: [[-5, -10], [15, 10]]
    out, unsigned = again(lambda x: (scale * w) @ x, x, weights=(w, scale))
    assert out.tolist() == [2 * 1 + 2 * 2, 2 * 3 + 4 * 2]
    assert torch.autograd.grad(out.sum(), [unsigned.value(w)])[0].tolist() == [[2, 2], [2, 2]]
    made = []

    def forward(x: Tensor) -> Tensor:
        made.append(w @ w)
        return made[0] @ x

    with torch.no_grad(), Record([x]) as record:
        result = forward(x)
    unsigned = Unsigned(record.calls, [w, *made])
    assert unsigned.value(result).tolist() == (computed.abs() @ x).tolist()
    assert torch.autograd.grad(unsigned.value(result).sum(), [unsigned.value(made[0])])[0].tolist() == [[1, 2], [1, 2]]
