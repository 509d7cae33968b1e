"""Criteria against numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.core import Group, InputError, Slice
from prunus.criteria import score
from prunus.criteria.activity import apoz, entropies
from prunus.criteria.base import savings
from prunus.criteria.fpgm import fpgm
from prunus.criteria.gates import fisher, taylor_activation
from prunus.criteria.obs import removal
from prunus.criteria.reconstruction import entry_penalties, gram, greedy, pursuit
from prunus.observe import Stats, collect
from prunus.observe.moments import Consumer
from tests.traced import batches, chain, residual


def of_filters(*rows: float) -> Group:
    weight = torch.tensor(rows)[:, None]
    return Group("a", len(rows), (Slice("a.weight", 0, torch.arange(len(rows))[:, None], "out", weight),))


def seen(**stats: object) -> Group:
    return replace(of_filters(0.0, 0.0), stats=stats)


def double(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_fpgm_sums_distances_and_not_their_squares():
    scores = fpgm(of_filters(0.0, 1.0, 2.0, 4.0, 10.0))
    assert scores.tolist() == [17, 14, 13, 15, 33]
    assert scores.argsort().tolist() == [
        2,
        1,
        0 + 3,
        0,
        4,
    ]  # by value 2, 1, 4, 0, 10; squares would give 2, 1, 0, 4, 10


def test_taylor_on_activations_is_absolute_per_sample_after_the_sum_over_positions():
    z, g = double([1, 2], [1, 1]), double([1, -1], [1, 0])
    per_sample = (z * g).mean(1)  # -.5 and .5: their mean is 0
    assert taylor_activation(seen(gate=per_sample[:, None])).item() == pytest.approx(0.5)


def test_fisher_squares_per_sample_and_the_ratio_to_the_cost_changes_the_order():
    assert fisher(seen(gate=double([0.5], [-0.5]))).item() == pytest.approx(0.125)
    loss, cost = double(0.2, 0.1), double(4, 1)
    assert loss.argmin() == 1 and (loss / cost).argmin() == 0
    assert (loss - 0.0334 * cost).argmin() == 0 and (loss - 0.0333 * cost).argmin() == 1


def test_per_divides_by_what_the_network_saves():
    model, groups = chain()
    plain, per = score(groups, "l2", normalize="none"), score(groups, "l2", normalize="none", per="macs")
    for g in groups:
        keep = torch.ones(groups.units, dtype=torch.bool)
        keep[g.offset] = False
        saved = groups.costs()["macs"] - groups.costs(keep)["macs"]
        assert savings(groups, g, "macs") == saved
        torch.testing.assert_close(per[g.id], plain[g.id] / saved)
    with pytest.raises(InputError, match="per='seconds'.: expected one of 'macs', 'params'"):
        score(groups, "l2", per="seconds")


def test_taylor_of_weights_joint_and_apart():
    weight, grad = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    groups = prunus.trace(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1)), torch.zeros(1, 2))
    linear = groups["0"].with_role("out")[0].tensor
    with torch.no_grad():
        linear.copy_(weight.expand(2, 2))
    stats = Stats({"grad": {"0.weight": grad.expand(2, 2).clone()}})
    assert score(groups, "taylor", stats)["0"].tolist() == [1, 1]
    assert score(groups, "taylor-weight", stats)["0"].tolist() == [13, 13]
    assert score(groups, "snip", stats)["0"].tolist() == [1, 1]


def test_taylor_counts_a_gate_once_where_a_norm_follows():
    model, groups = chain()
    stats = collect(model, groups, batches(), {"grad"})
    gamma, beta = (stats.kinds["grad"][f"bn1.{n}"] for n in ("weight", "bias"))
    expected = (model.bn1.weight * gamma + model.bn1.bias * beta).square()
    torch.testing.assert_close(score(groups, "taylor", stats)["conv1"], expected.double().detach(), rtol=1e-5, atol=0)


def test_lamp():
    from prunus.criteria import normalizers

    assert normalizers["lamp"].call(double(1, 4, 9)).tolist() == pytest.approx([1 / 14, 4 / 13, 1])
    assert normalizers["sum"].call(double(0.2, 0.3, 0.1)).tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 6])


def test_apoz_counts_zeros_and_says_what_to_use_where_there_are_none():
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
    x = torch.tensor([[0.0, 1, 0, 2], [0, 0, 0, 3]]).reshape(2, 1, 2, 2)
    groups = prunus.trace(net, x)
    stats = collect(net, groups, [x], {"zeros"})
    assert stats.groups["zeros"]["0"].tolist() == [5 / 8, 1.0]
    assert score(groups, "apoz", stats)["0"].tolist() == [3 / 8, 0.0]
    net[1] = nn.GELU()
    groups = prunus.trace(net, x + 1)
    with pytest.raises(InputError, match="is ever exactly zero.*Use 'entropy'"):
        score(groups, "apoz", collect(net, groups, [x + 1], {"zeros"}))
    assert apoz(seen(zeros=double(0.25, 0))).tolist() == [0.75, 1.0]


def test_entropy_is_of_common_bins():
    assert entropies(double([0.0], [0.0], [1.0], [1.0]), 2).item() == pytest.approx(0.6931471805599453)
    assert entropies(double([3.0], [3.0]), 2).item() == 0
    dead = double([0.0, 0.0], [1e-6, 1.0], [2e-6, 2.0])  # the first is noise
    assert entropies(dead, 10).tolist()[0] == 0


def test_obs_sees_what_others_can_make_up_for():
    h = double([1, 0.9, 0], [0.9, 1, 0], [0, 0, 0.5])
    order, losses = removal((Consumer(double([1, 1, 1]), h, torch.arange(3)[:, None]),), ridge=0)
    assert order[0] == 0 and losses[0].item() == pytest.approx(0.095)  # the diagonal alone would take the third
    pair, losses = removal((Consumer(double([1, 1, 1]), h, torch.tensor([[0, 1]])),), ridge=0)
    assert losses.tolist() == pytest.approx([1.9])  # 20 times the sum of the single ones


@pytest.mark.parametrize("curved", [False, True])
def test_the_error_of_greedy_obs_is_that_of_the_least_squares_left(curved):
    torch.manual_seed(0)
    x = torch.randn(50, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    h, w = x.mT @ x / 50, torch.randn(3, 8, dtype=torch.float64)
    a = torch.randn(3, 3, dtype=torch.float64)
    g = a @ a.mT if curved else None
    columns = torch.arange(8).reshape(4, 2)
    order, losses = removal((Consumer(w, h, columns, g),), ridge=0)
    for gone in range(1, 4):
        kept = columns[order[gone:]].flatten()
        w_kept = torch.linalg.solve(h[kept][:, kept], h[kept] @ w.mT).mT
        error = w.clone()
        error[:, kept] -= w_kept
        expected = torch.trace((g if curved else torch.eye(3).double()) @ error @ h @ error.mT) / 2
        assert losses[gone - 1].item() == pytest.approx(expected.item())


def test_thinet_is_greedy_and_matching_pursuit_explains():
    x = double([1, -1, 0.1], [2, -2, 0.1])
    order, losses = greedy(x.mT @ x)
    assert order.tolist()[:2] == [2, 1] and losses[:2].tolist() == pytest.approx([0.02, 4.42])
    torch.manual_seed(0)
    z = torch.randn(60, 6, dtype=torch.float64)
    q = z.mT @ z
    order, errors = pursuit(q)
    y = z.sum(1)
    for gone in (1, 3, 5):
        kept = order[gone:]
        residual = y - z[:, kept] @ torch.linalg.lstsq(z[:, kept], y[:, None]).solution[:, 0]
        assert errors[gone - 1].item() == pytest.approx(residual.square().sum().item(), rel=0.02)


def test_lasso_is_a_soft_threshold_on_an_orthogonal_design():
    assert entry_penalties(torch.diag(double(3, 1, 2))).tolist() == pytest.approx([3, 1, 2])
    torch.manual_seed(1)
    z = torch.randn(40, 5, dtype=torch.float64)
    z[:, 4] = 2 * z[:, 3]
    assert entry_penalties(z.mT @ z).isfinite().all()  # collinear


def test_gram_is_that_of_the_contributions():
    torch.manual_seed(0)
    x, w = torch.randn(30, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    columns = torch.tensor([[0, 1], [2, 3], [4, 5]])
    z = torch.stack([x[:, c] @ w[:, c].mT for c in columns]).flatten(1)  # (units, rows * out)
    torch.testing.assert_close(gram((Consumer(w, x.mT @ x, columns),)), z @ z.mT)


def test_a_gate_is_the_slope_of_each_samples_loss():
    """Against autograd on a network whose readers are really gated."""
    model, groups = residual()
    x, y = batches(1, 5)[0]
    found = collect(model, groups, [(x, y)], {"gate"}).groups["gate"]
    model.eval()
    for id, readers in (("stem", (model.a, model.fc)), ("a", (model.b,))):
        for n in range(len(x)):
            gate = torch.ones(groups[id].units, requires_grad=True)

            def gated(module, args, gate=gate):
                return (args[0] * gate.reshape(1, -1, *[1] * (args[0].dim() - 2)),)

            hooks = [m.register_forward_pre_hook(gated) for m in readers]
            nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1]).backward()
            for hook in hooks:
                hook.remove()
            torch.testing.assert_close(found[id][n], gate.grad, rtol=1e-4, atol=1e-6)
    model.zero_grad()


def test_gates_of_head_dimensions_and_of_units_that_no_layer_reads():
    net = attention()
    x, y = torch.randn(3, 4, 8), torch.randint(5, (3,))
    groups = prunus.trace(net, x)
    gates = collect(net, groups, [(x, y)], {"gate"}).groups["gate"]
    assert set(gates) == {"q", "v", "out"}
    gate, query = torch.ones(3, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    net.out.register_forward_pre_hook(
        lambda m, args: ((args[0].unflatten(-1, (2, 4)) * gate[:, None, None]).flatten(-2),)
    )
    net.q.register_forward_hook(lambda m, args, y: (y.unflatten(-1, (2, 4)) * query[:, None, None]).flatten(-2))
    nn.functional.cross_entropy(net.eval()(x), y, reduction="sum").backward()
    torch.testing.assert_close(gates["v"], gate.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gates["q"], query.grad, rtol=1e-4, atol=1e-6)


def attention() -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            a = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.head(self.out(a.transpose(1, 2).flatten(2)).mean(1))

    torch.manual_seed(0)
    return Attention()


def test_what_is_wrong_with_the_data_is_said():
    model, groups = chain()
    (x, y), *_ = batches(1)
    with pytest.raises(InputError, match="no default loss.*criteria without labels"):
        collect(model, groups, [x], {"gate"})
    with pytest.raises(InputError, match="batch 1 of the data holds NaN"):
        collect(model, groups, [(x, y), (x * float("nan"), y)], {"moments"})
    with pytest.raises(InputError, match="no batch"):
        collect(model, groups, [], {"zeros"})
