"""Each criterion against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

import prunus
from prunus.core import InputError, Slice, UnknownNameError
from prunus.criteria import criteria, criterion, needs, normalizers, score, unscored
from prunus.observe import Stats
from tests.hand_built import chain, groups_of, residual


def scalar_filters(*values):
    """A network of one convolution whose filters hold one weight each."""
    model = nn.Sequential(nn.Conv2d(1, len(values), 1, bias=False))
    model[0].weight.data = torch.tensor(values).reshape(-1, 1, 1, 1)
    return groups_of(model, {"conv": (len(values), [("0.weight", 0, "out")])})


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_filters_of_one_weight_are_ordered_by_size_not_sign(name):
    groups = scalar_filters(1.0, -3.0, 2.0)
    assert score(groups, name)["conv"].argsort().tolist() == [0, 2, 1]
    assert torch.equal(score(groups, name, normalize="none")["conv"], torch.tensor([1.0, 3.0, 2.0]).double())
    assert score(groups, name)["conv"].tolist() == [1 / 3, 1.0, 2 / 3]  # over the largest
    assert score(groups, name, normalize="mean")["conv"].tolist() == [0.5, 1.5, 1.0]


def test_l1_and_l2_are_the_norms_of_the_filters_that_torch_computes():
    model, groups = chain()
    rows = model.conv2.weight.detach().flatten(1).double()
    for name, order in (("l1", 1), ("l2", 2)):
        raw = score(groups, name, normalize="none")["conv2"]
        torch.testing.assert_close(raw, rows.norm(order, dim=1), rtol=1e-6, atol=0)


def test_producers_that_share_units_count_as_one_long_filter():
    model, groups = residual()
    long = torch.cat([model.stem.weight.flatten(1), model.b.weight.flatten(1)], 1).detach().double()
    for name, order in (("l1", 1), ("l2", 2)):
        raw = score(groups, name, normalize="none")["stem"]
        torch.testing.assert_close(raw, long.norm(order, dim=1), rtol=1e-6, atol=0)


def test_depthwise_kernels_count_with_the_convolution_before_them():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1, groups=2, bias=False))
    model[0].weight.data = torch.tensor([3.0, 5.0]).reshape(2, 1, 1, 1)
    model[1].weight.data = torch.tensor([-4.0, 12.0]).reshape(2, 1, 1, 1)
    groups = groups_of(model, {"pw": (2, [("0.weight", 0, "out"), ("1.weight", 0, "depthwise")])})
    assert score(groups, "l1", normalize="none")["pw"].tolist() == [7.0, 17.0]
    assert score(groups, "l2", normalize="none")["pw"].tolist() == [5.0, 13.0]


def test_biases_do_not_count():
    model = nn.Sequential(nn.Linear(1, 2))
    model[0].weight.data = torch.tensor([[1.0], [2.0]])
    model[0].bias.data = torch.tensor([100.0, 0.0])
    groups = groups_of(model, {"fc": (2, [("0.weight", 0, "out"), ("0.bias", 0, "bias")])})
    assert score(groups, "l1", normalize="none")["fc"].tolist() == [1.0, 2.0]


def test_scaling_a_layer_does_not_change_its_scores_by_default():
    model, groups = chain()
    before = score(groups, "l2")
    model.conv1.weight.data *= 8
    after = score(groups, "l2")
    for id, values in before.items():
        torch.testing.assert_close(after[id], values, rtol=1e-6, atol=0)


def test_gamma_is_the_largest_of_the_norms_that_share_the_units():
    model, groups = residual()
    model.bn.weight.data = torch.tensor([1.0, -2.0, 0.0, 4.0])
    model.bn_b.weight.data = torch.tensor([3.0, 2.0, 0.0, -8.0])
    scores = score(groups, "bn-gamma")
    assert scores["stem"].tolist() == [3.0, 2.0, 0.0, 8.0]
    torch.testing.assert_close(scores["a"], model.bn_a.weight.detach().abs().double())


def test_gamma_of_a_unit_of_several_channels_is_their_mean():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    model[1].weight.data = torch.tensor([1.0, 2.0, -3.0, 6.0])
    groups = groups_of(model, {"conv": (2, [])})
    pairs = torch.tensor([[0, 2], [1, 3]])  # unit 0 is channels 0 and 2
    group = groups.members[0]
    object.__setattr__(group, "slices", (Slice("1.weight", 0, pairs, "norm_scale", model[1].weight),))
    assert score(groups, "bn-gamma")["conv"].tolist() == [2.0, 4.0]


def test_groups_without_the_role_are_absent_and_said():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    members = {
        "0": (3, [("0.weight", 0, "out"), ("1.weight", 1, "in")]),
        "1": (2, [("1.weight", 0, "out"), ("2.weight", 0, "norm_scale")]),
    }
    groups = groups_of(model, members)
    scores = score(groups, "bn-gamma")
    assert list(scores) == ["1"]
    (left,) = unscored(groups, scores, "bn-gamma")
    assert left.what == "0" and "norm_scale" in left.why
    with pytest.raises(InputError, match="scores none of the 1 groups.*norm_scale.*Choose another criterion"):
        score(groups.select(["0"]), "bn-gamma")


def test_random_is_a_pure_function_of_seed_group_and_unit():
    _, small = chain(4, 6)
    _, wide = chain(4, 9)
    torch.manual_seed(1)
    a = score(small, "random", seed=3)
    torch.manual_seed(2)
    b = score(wide, "random", seed=3)
    assert torch.equal(a["conv1"], b["conv1"]) and torch.equal(a["conv2"], b["conv2"][:6])
    assert not torch.equal(a["conv1"], a["conv2"][:4])
    assert not torch.equal(a["conv1"], score(small, "random", seed=4)["conv1"])


def test_random_is_uniform():
    model = nn.Linear(1, 4000)
    drawn = score(groups_of(model, {"fc": (4000, [("weight", 0, "out")])}), "random")["fc"]
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, 10, 0, 1)
    assert ((counts - 400).abs() < 5 * math.sqrt(360)).all()


def test_half_precision_weights_do_not_underflow():
    groups = scalar_filters(2e-5, 1e-5, 3e-5)  # their squares are 0 in float16
    half = groups.members[0].slices[0].tensor
    half.data = half.data.half()
    assert score(groups, "l2")["conv"].argsort().tolist() == [1, 0, 2]


def test_nan_weights_are_refused_by_name():
    groups = scalar_filters(1.0, float("nan"))
    with pytest.raises(InputError, match="1 of 2 units of group 'conv'.*0.weight"):
        score(groups, "l1")


def test_unknown_names_are_answered_with_the_nearest():
    _, groups = chain()
    with pytest.raises(UnknownNameError, match="no criterion named 'l3'. Did you mean"):
        score(groups, "l3")
    with pytest.raises(UnknownNameError, match="no normalizer named 'men'. Did you mean 'mean'"):
        score(groups, "l1", normalize="men")


@pytest.fixture
def registered():
    """Criteria registered by a test, taken out again."""
    before = dict(criteria._entries)
    yield
    criteria._entries.clear()
    criteria._entries.update(before)


def test_a_criterion_of_gradients_joins_before_it_squares(registered):
    @criterion("gate", needs={"grad"}, roles={"norm_scale", "norm_shift"}, across="sum", finish="square")
    def gate(s):
        return s.weight * s.grad

    model, groups = chain()
    stats = Stats({"grad": {n: torch.randn_like(p) for n, p in model.named_parameters()}})
    assert needs("gate") == {"grad"} and needs(gate) == {"grad"}
    g = stats.kinds["grad"]
    expected = (model.bn1.weight * g["bn1.weight"] + model.bn1.bias * g["bn1.bias"]).square().detach().double()
    torch.testing.assert_close(score(groups, gate, stats)["conv1"], expected, rtol=1e-5, atol=0)
    with pytest.raises(InputError, match="needs the statistics grad. Run stats = prunus.collect"):
        score(groups, "gate")


def test_joining_by_mean_and_by_max(registered):
    model, groups = residual()
    both = torch.stack([model.bn.weight, model.bn_b.weight]).abs().detach().double()
    for across, expected in (("max", both.amax(0)), ("mean", both.mean(0)), ("sum", both.sum(0))):
        call = criterion(f"by-{across}", roles={"norm_scale"}, across=across)(lambda s: s.weight.abs())
        torch.testing.assert_close(score(groups, call)["stem"], expected)


def test_a_criterion_of_whole_groups_sees_only_its_roles(registered):
    seen = []

    @criterion("distance", kind="group", roles={"out"})
    def distance(group):
        seen.append([s.role for s in group.slices])
        rows = group.slices[0].weight
        return torch.cdist(rows, rows).sum(1)

    groups = scalar_filters(0.0, 1.0, 2.0, 4.0, 10.0)
    assert score(groups, "distance")["conv"].tolist() == [17.0, 14.0, 13.0, 15.0, 33.0]
    assert seen == [["out"]]


def test_a_wrong_declaration_or_a_wrong_shape_is_refused(registered):
    with pytest.raises(ValueError, match="across='product'"):
        criterion("bad", roles={"out"}, across="product")
    with pytest.raises(ValueError, match=r"criterion\(roles=\{'rows'\}\): expected"):
        criterion("bad", roles={"rows"})
    short = criterion("short", kind="group", roles={"out"})(lambda group: torch.zeros(1))
    with pytest.raises(InputError, match=r"returned shape \(1,\) for group 'conv1'; expected \(4,\)"):
        score(chain()[1], short)


def test_normalisers_leave_a_group_of_zeros_at_zero():
    zeros = torch.zeros(3, dtype=torch.float64)
    for name in ("none", "mean", "max"):
        assert torch.equal(normalizers[name].call(zeros), zeros)
    assert normalizers["rank"].call(zeros).tolist() == [1.0, 1.0, 1.0]


def test_a_normaliser_can_be_a_function():
    assert score(scalar_filters(1.0, 2.0), "l1", normalize=lambda s: s + 1)["conv"].tolist() == [2.0, 3.0]


def test_a_group_with_a_layer_of_which_nothing_was_seen_is_left_alone() -> None:
    x = torch.randn(2, 3, 6, 6)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2))
    report = prunus.prune_(net.eval(), x, budget=prunus.Budget(params=0.8), criterion="wanda", data=[x])
    assert report.model[0].weight.shape[0] < 8 and report.model[2].weight.shape[0] == 8
    left = next(fixed for fixed in report.left_alone if fixed.what == "2")
    assert "reads input-norms, which not every layer of it has" in left.why
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2)).eval()
    with pytest.raises(InputError, match="scores none of the 1 groups, e.g. '0'.*reads input-norms"):
        prunus.prune_(net, x, budget=prunus.Budget(params=0.9), criterion="wanda", data=[x])
