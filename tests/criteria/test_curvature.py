"""Criteria of second order, and of flow, against numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.core import Budget, Group, InputError, Slice
from prunus.criteria import needs, of_data, score, woodfisher
from prunus.criteria.fpgm import fpgm, fpgm_greedy, fpgm_mix
from prunus.criteria.woodfisher import BLOCK, DAMPING, block_saliency, unit_saliency
from prunus.observe import Stats, collect
from tests.traced import batches, chain, residual

OBD = {"obd": "fisher", "obd-mc": "mc-fisher", "obd-gauss-newton": "gauss-newton", "obd-hutchinson": "hutchinson"}


def double(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def two_linear(weight: torch.Tensor) -> tuple[nn.Module, prunus.Groups]:
    """Linear layers without biases; the rows of `weight` are the units of group '0'."""
    model = nn.Sequential(nn.Linear(weight.shape[1], len(weight), bias=False), nn.Linear(len(weight), 2, bias=False))
    model.double()
    model[0].weight.data = weight.clone()
    return model, prunus.trace(model, torch.zeros(2, weight.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("name", OBD)
def test_obd_weighs_squares_by_the_curvature_where_magnitude_goes_wrong(name):
    model, groups = two_linear(double([1.0], [0.6]))
    stats = Stats({OBD[name]: {"0.weight": double([2.0], [8.0])}})
    scores = score(groups, name, stats)["0"]
    torch.testing.assert_close(scores, double(1.0, 1.44))  # magnitude would prune the second


@pytest.mark.parametrize("name", OBD)
def test_obd_sums_over_the_producers_of_shared_units_or_their_norms(name):
    model, groups = residual()
    stats = collect(model, groups, batches(), needs(name))
    for group in groups:
        counted = group.with_role("norm_scale", "norm_shift") or group.with_role("out", "bias")
        terms = [s.view(stats.kinds[OBD[name]][s.name]).double() * s.weight.double() ** 2 / 2 for s in counted]
        torch.testing.assert_close(score(groups, name, stats)[group.id], sum(t.sum(1) for t in terms))
    assert any(len(group.with_role("norm_scale")) > 1 for group in groups)


def test_obd_foretells_the_rise_of_a_quadratic_loss_of_diagonal_hessian():
    model, groups = two_linear(double([1.0], [0.6]))
    target, curvature = model[0].weight.detach().clone(), double([2.0], [8.0])

    def loss(out, batch):
        return (curvature * (model[0].weight - target).square()).sum() / 2 + 0 * out.sum()

    data = [(torch.ones(3, 1, dtype=torch.float64), torch.zeros(3))]
    stats = collect(model, groups, data, {"hutchinson"}, loss)
    found = score(groups, "obd-hutchinson", stats)["0"]
    for unit, rise in enumerate(found):
        without = target.clone()
        without[unit] = 0
        torch.testing.assert_close(rise, (curvature * (without - target).square()).sum() / 2)


def explicit(weight: torch.Tensor, gradients: torch.Tensor, damping: float) -> torch.Tensor:
    """The saliency of every unit from the inverse of the whole matrix."""
    units, fan = weight.shape
    g = gradients.flatten(1)
    inverse = torch.linalg.inv(damping * torch.eye(units * fan, dtype=torch.float64) + g.T @ g / len(g))
    blocks = [slice(u * fan, (u + 1) * fan) for u in range(units)]
    return torch.stack([w @ torch.linalg.inv(inverse[b, b]) @ w / 2 for w, b in zip(weight, blocks)])


def test_woodfisher_of_single_weights():
    g = double([1.0, 2.0], [3.0, -1.0])
    inverse = torch.linalg.inv(0.5 * torch.eye(2, dtype=torch.float64) + g.T @ g / 2)
    torch.testing.assert_close(inverse, double([0.18462, 0.03077], [0.03077, 0.33846]), atol=1e-5, rtol=0)
    found = unit_saliency(double([1.0], [1.0]), g[:, :, None], 0.5)
    torch.testing.assert_close(found, 1 / (2 * inverse.diagonal()))


@pytest.mark.parametrize("damping", [0.5, 1e-5])
@pytest.mark.parametrize("samples", [3, 40])
def test_woodfisher_of_units_is_that_of_the_explicit_inverse(damping, samples):
    torch.manual_seed(0)
    weight, gradients = torch.randn(5, 4, dtype=torch.float64), torch.randn(samples, 5, 4, dtype=torch.float64)
    for saliency in (unit_saliency, block_saliency):
        found = saliency(weight, gradients, damping)
        torch.testing.assert_close(found, explicit(weight, gradients, damping), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("grain", "units", "fan"), [("element", 7, 1), ("kernel", 2, 9)])
def test_woodfisher_of_weights_has_blocks_of_a_tensor_and_masked_ones_make_up_for_nothing(
    grain, units, fan, monkeypatch
):
    """w_q^2 / (2 [F^-1]_qq) of single weights; F in blocks of weights that follow each other, damped by 1e-5."""
    assert BLOCK == 2000 and DAMPING == 1e-5
    monkeypatch.setattr(woodfisher, "BLOCK", units * fan)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    groups = prunus.tensors(model, grain, only="0.weight")
    torch.manual_seed(0)
    data = [(torch.randn(8, 2, 4, 4).double(), torch.arange(8) % 3)]
    with torch.no_grad():
        model[0].weight[1, 0] = 0
    rows = [
        torch.autograd.grad(nn.functional.cross_entropy(model(x[None]), y[None]), model[0].weight)[0].flatten()
        for x, y in zip(*data[0])
    ]
    weight = model[0].weight.detach().flatten()
    gradients = torch.stack(rows) * (weight != 0)
    parts = zip(weight.view(-1, fan).split(units), gradients.view(8, -1, fan).split(units, 1))
    expected = torch.cat([explicit(w, g, DAMPING) for w, g in parts])
    found = score(groups, "woodfisher", collect(model, groups, data, {"sample-grad"}))["0.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    if fan == 1:
        first = gradients[:, :7]
        inverse = torch.linalg.inv(1e-5 * torch.eye(7).double() + first.T @ first / 8)
        torch.testing.assert_close(found[:7], weight[:7].square() / (2 * inverse.diagonal()), rtol=1e-6, atol=0)


def test_woodfisher_takes_two_units_that_stand_in_for_each_other_for_little():
    # F = [[1, .9, 0], [.9, 1, 0], [0, 0, .5]] of three units of one weight: OBD would take the third
    f = double([1, 0.9, 0], [0.9, 1, 0], [0, 0, 0.5])
    root = torch.linalg.cholesky(f - 1e-6 * torch.eye(3).double()).T * 3**0.5  # rows g_n, F = 1/3 sum g g^T
    found = unit_saliency(torch.ones(3, 1).double(), root[:, :, None], 1e-6)
    torch.testing.assert_close(found, double(0.095, 0.095, 0.25), rtol=1e-4, atol=0)
    padded = torch.cat([root, torch.zeros(3, 1)], 1).reshape(3, 2, 2)  # the first two in one unit
    pair = unit_saliency(double([1, 1], [1, 0]), padded, 1e-6)
    assert pair[0] == pytest.approx(1.9, rel=1e-3)  # both at once: 20 times the sum of the singles


def test_woodfisher_joins_all_producers_of_a_unit():
    model, groups = residual()
    stats = collect(model, groups, batches(), {"sample-grad"})
    for group in groups:
        weight = torch.cat([s.weight for s in group.with_role("out", "bias", "depthwise")], 1).double()
        expected = explicit(weight, stats.groups["sample-grad"][group.id].double(), DAMPING)
        found = score(groups, "woodfisher", stats)[group.id]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def test_taylor_of_second_order_joins_before_it_squares():
    model, groups = two_linear(double([1.0, 2.0], [1.0, 2.0]))
    grad, h = double([3.0, -1.0], [0.0, 0.0]), double([2.0, 0.5], [2.0, 0.5])
    stats = Stats({"grad": {"0.weight": grad}, "fisher": {"0.weight": h}})
    # (3 - 1) + (-2 - 1) = -1 for the first, -(1 + 1) for the second
    torch.testing.assert_close(score(groups, "taylor-second", stats)["0"], double(1.0, 4.0))


def test_taylor_of_second_order_on_a_coupled_group():
    model, groups = residual()
    stats = collect(model, groups, batches(), needs("taylor-second"))
    for group in groups:
        counted = group.with_role("norm_scale", "norm_shift") or group.with_role("out", "bias")
        terms = [
            (s.weight * s.statistic("grad") - s.statistic("fisher") * s.weight**2 / 2).double().sum(1)
            for s in (replace(s, stats=stats.of(s.name)) for s in counted)
        ]
        torch.testing.assert_close(score(groups, "taylor-second", stats)[group.id], sum(terms).square(), rtol=1e-4,
                                   atol=1e-12)  # fmt: skip


def test_grasp_on_a_quadratic_loss_is_w_times_a_times_a_w_minus_b():
    model, groups = two_linear(double([1.0], [-2.0], [0.5]))
    a = double([2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 1.0])
    b = double(1.0, -1.0, 2.0)

    def loss(out, batch):
        w = model[0].weight[:, 0]
        return w @ a @ w / 2 - b @ w + 0 * out.sum()

    data = [(torch.ones(n, 1, dtype=torch.float64), torch.zeros(n)) for n in (3, 1)]
    stats = collect(model, groups, data, {"hessian-gradient"}, loss)
    w = model[0].weight.detach()[:, 0]
    g = a @ w - b
    torch.testing.assert_close(stats.kinds["hessian-gradient"]["0.weight"][:, 0], a @ g)
    scores = score(groups, "grasp", stats)["0"]
    torch.testing.assert_close(scores, w * (a @ g))
    # the paper removes the largest of -w Hg: the unit without which the gradient is larger goes first
    step = 1e-6
    for unit in range(3):
        less = w.clone()
        less[unit] *= 1 - step
        lost = (g @ g - (a @ less - b) @ (a @ less - b)) / 2 / step
        torch.testing.assert_close(scores[unit], lost, rtol=1e-4, atol=1e-4)


class Paths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in ((2, 3), (3, 4), (4, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def test_synflow_is_the_sum_over_paths_and_conserved():
    torch.manual_seed(0)
    model = Paths()
    groups = prunus.trace(model, torch.randn(2, 2))
    stats = collect(model, groups, (), {"flow"})
    first, second, third = (layer.weight.detach().double().abs() for layer in model.layers)
    paths = torch.einsum("ji,kj,ok->ijko", first, second, third)
    scores = score(groups, "synflow", stats)
    torch.testing.assert_close(scores["layers.0"], paths.sum((0, 2, 3)))
    torch.testing.assert_close(scores["layers.1"], paths.sum((0, 1, 3)))
    for group in groups:  # what flows in flows out, and every layer passes on all of it
        out = [s.weight.double().abs() * s.view(stats.kinds["flow"][s.name]) for s in group.with_role("in")]
        torch.testing.assert_close(scores[group.id], out[0].sum(1))
        torch.testing.assert_close(scores[group.id].sum(), paths.sum())


def test_synflow_of_a_residual_stream_is_the_flow_of_all_that_make_it():
    model, groups = residual()
    stats = collect(model, groups, (), {"flow"})
    (stream,) = [g for g in groups if len(g.with_role("out")) > 1]
    terms = [s.weight.double().abs() * s.view(stats.kinds["flow"][s.name]) for s in stream.with_role("out")]
    torch.testing.assert_close(score(groups, "synflow", stats)[stream.id], sum(t.sum(1) for t in terms))


def test_synflow_needs_no_data_and_says_so():
    assert needs("synflow") and not of_data("synflow")
    model, _ = chain()
    before = model.conv1.weight.shape[0] + model.conv2.weight.shape[0]
    prunus.prune_(model, torch.randn(2, 3, 6, 6), budget=Budget(macs=0.6), criterion="synflow")
    assert model.conv1.weight.shape[0] + model.conv2.weight.shape[0] < before


def test_ls_says_what_they_look_at():
    from prunus.cli.ls import _criteria

    found = {row["name"]: row["looks at"] for row in _criteria()}
    assert found["synflow"] == found["fpgm-greedy"] == found["fpgm-mix"] == "weights"
    assert found["obd-mc"] == found["obd-gauss-newton"] == "unlabelled data"
    assert {found[n] for n in ("obd", "obd-hutchinson", "woodfisher", "taylor-second", "grasp")} == {"labelled data"}


@pytest.mark.parametrize("name", ["obd", "obd-hutchinson", "woodfisher", "grasp"])
def test_without_labels_the_error_names_criteria_that_need_none(name):
    model, groups = chain()
    with pytest.raises(InputError, match="labels.*'obd-mc'"):
        collect(model, groups, [x for x, _ in batches()], needs(name))
    for other in ("obd-mc", "obd-gauss-newton"):
        assert collect(model, groups, [x for x, _ in batches()], needs(other)).kinds


def filters(*values: float) -> Group:
    index = torch.arange(len(values))[:, None]
    return Group("a", len(values), (Slice("a.weight", 0, index, "out", torch.tensor(values)[:, None]),))


def test_fpgm_greedy_sums_anew_after_every_removal():
    assert fpgm(filters(0.0, 1.0, 2.0, 4.0, 10.0)).tolist() == [17, 14, 13, 15, 33]
    # 2 goes (13); then 0: 15, 1: 13, 4: 13, 10: 25, 1 goes; then 0: 14, 4: 10, 10: 16, 4 goes
    assert (fpgm_greedy(filters(0.0, 1.0, 2.0, 4.0, 10.0)) * 5).tolist() == [5, 2, 1, 3, 5]


def test_fpgm_greedy_keeps_one_of_equal_filters():
    group = filters(0.0, 0.0, 0.0, 5.0, -5.0)
    assert fpgm(group).argsort()[:3].sort().values.tolist() == [0, 1, 2]  # would all go at once
    assert (fpgm_greedy(group) * 5).round().tolist()[:2] == [1, 2] and fpgm_greedy(group)[2] > 0.5


def test_fpgm_mix_takes_a_tenth_by_norm_and_the_others_by_distance():
    """Of twenty the two nearest to zero go first; the distances of the others are summed without them."""
    values = [-9.0, 0.3, 8.0, -0.2, *(1.0 + k / 16 for k in range(8)), *(5.0 + k * k / 8 for k in range(8))]
    place = (fpgm_mix(filters(*values)) * 20).round().tolist()
    left = [v for k, v in enumerate(values) if k not in (1, 3)]
    sums = {k: sum(abs(values[k] - other) for other in left) for k in range(20) if k not in (1, 3)}
    expected = [3, 1, *sorted(sums, key=sums.get)]
    assert [k for _, k in sorted(zip(place, range(20)))] == expected and sorted(place) == list(range(1, 21))
    whole = fpgm(filters(*values)).argsort(stable=True).tolist()
    assert expected[:2] != whole[:2], "by distance alone others would go first"
    assert fpgm_mix(filters(3.0, 0.0, 1.0)).argmin() != 1, "a tenth of three is none"
