"""Clusters of filters, by hand and against the definition; merging is exact where units are equal."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import score
from prunus.criteria.clustering import clusters, halvings, joins
from prunus.recovery import merge_
from prunus.recovery.alike import Likeness, Read
from prunus.recovery.merge import nearest
from tests.traced import batches, chain, residual


def double(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_a_multiple_joins_at_once_and_the_stronger_stays():
    rows = double([1, 0], [3, 0], [0, 1], [0.1, 2])
    heights = joins(rows)
    near = 1 - 2 / 4.01**0.5
    assert heights.tolist() == pytest.approx([0, 2, near, 1])  # complete linkage: the farthest pair is at right angles
    assert joins(double([5, 5])).tolist() == [2]


def test_whatever_stays_is_one_of_every_complete_cluster():
    from scipy.cluster.hierarchy import fcluster, linkage

    torch.manual_seed(0)
    rows = torch.randn(12, 5, dtype=torch.float64)
    heights, tree = joins(rows), linkage(rows.numpy(), "complete", metric="cosine")
    for k in range(1, 12):
        label = torch.from_numpy(fcluster(tree, k, "maxclust"))
        kept = heights.argsort(descending=True)[:k]
        assert len(label[kept].unique()) == k
        for c in label.unique():
            members = (label == c).nonzero().flatten()
            assert members[rows[members].norm(dim=1).argmax()] in kept


def test_kmeans_finds_clusters_and_halves_to_their_strongest():
    centres = double([0, 9], [9, 0], [-9, -9], [20, 20])
    near = torch.randn(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = centres.repeat_interleave(3, 0) + 0.1 * near
    label, found = clusters(rows, 4)
    torch.testing.assert_close(found[label], rows.reshape(4, 3, 2).mean(1).repeat_interleave(3, 0))
    rows = rows.reshape(4, 3, 2)[:, :2].flatten(0, 1)  # four pairs
    stays = (halvings(rows) >= 2).nonzero().flatten()
    assert stays.tolist() == [2 * i + int(rows[2 * i : 2 * i + 2].norm(dim=1).argmax()) for i in range(4)]
    assert halvings(double([1, 1], [1, 1], [1, 1])).max() == 2  # equal rows are one cluster, without a warning


def twins_(groups, id: str, unit: int, other: int) -> None:
    """Make `other` a copy of `unit`: everything that makes it, not what reads it."""
    for s in groups[id].with_role("out", "bias", "norm_scale", "norm_shift", "stat"):
        if s.role == "norm_shift":
            s.tensor.data.select(s.dim, unit).fill_(1.0)  # not dead behind the ReLU
        s.tensor.data.select(s.dim, other).copy_(s.tensor.data.select(s.dim, unit))


@pytest.mark.parametrize(("network", "id"), [(chain, "conv1"), (chain, "conv2"), (residual, "a"), (residual, "stem")])
@pytest.mark.parametrize("name", ["agglomerative", "kmeans"])
def test_copies_are_found_and_merged_without_a_change_and_deleting_one_is_wrong(network, id, name):
    model, groups = network()
    model.double().eval()
    groups = groups.bind(model)
    twins_(groups, id, 1, 3)
    scores = score(groups, name)[id]
    assert set(scores.argsort().tolist()[:1]) <= {1, 3}
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[groups[id].offset + int(scores.argmin())] = False
    x = batches(1)[0][0].double()
    before = model(x).detach()
    plain = copy.deepcopy(model)
    prunus.shrink_(plain, groups.bind(plain), groups.plan(keep))
    assert (plain(x) - before).abs().max() > 1e-3 * before.abs().max()
    done = merge_(model, groups, groups.plan(keep))
    assert (done.units, done.groups, done.notes) == (1, 1, ())
    report = prunus.shrink_(model, groups, groups.plan(keep))
    assert report.verified.max_relative_error < 1e-7
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)


def test_multiples_before_a_relu_merge_by_their_factor_through_a_batch_norm_too():
    for norm in (nn.Identity(), nn.BatchNorm2d(3)):
        net = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).double().eval()
        with torch.no_grad():
            for p in (net[0].weight, net[0].bias):
                p[2] = 2.5 * p[0]
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.copy_(double(1, 2, 2.5))
                norm.weight.copy_(double(1, 1, 1))
                norm.bias.copy_(double(0.3, 1, 0.75))
                norm.running_var.fill_(1.0)
        x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
        groups, before = prunus.trace(net, x), net(x).detach()
        plan = groups.plan(torch.tensor([True, True, False]))
        read = Read(net, groups, groups["0"], torch.tensor([True, True, False]))
        assert nearest([read.readers[0][1]], 3)[1].item() == pytest.approx(2.5)
        merge_(net, groups, plan)
        prunus.shrink_(net, groups, plan)
        torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-12)


def test_what_points_away_is_not_merged_and_parts_stay_apart():
    rows, pairs = double([1, 0], [-1, 0.0], [0, 1], [1, 0])[:, None], (torch.tensor([1, 3]), torch.tensor([0, 2]))
    assert nearest([Likeness.of(pairs, rows)], 2)[1].tolist() == [[0, 0]]  # the fourth's copy is of another part
    target, factors = nearest([Likeness.of(pairs, rows)], 4)
    assert target[1] == 0 and factors.tolist() == [[0, 1]]
    model, groups = chain()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert merge_(model, groups, groups.plan(torch.arange(groups.units) % 2 == 0)).units
    assert any(not torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_units_under_a_norm_of_the_sample_are_left_alone_with_a_note():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = prunus.trace(net, torch.randn(2, 3))
    done = merge_(net, groups, groups.plan(torch.arange(4) < 2))
    assert done.units == 0 and "'0' was not merged" in done.notes[0]


def test_merging_in_prune_and_on_a_network_of_the_zoo():
    torch.manual_seed(0)
    model = prunus.zoo.resnet20()
    x = torch.randn(2, 3, 32, 32)
    report = prunus.prune_(model, x[:1], budget=prunus.Budget(macs=0.5), criterion="agglomerative", merge=True)
    assert report.verified.max_relative_error < 1e-7 and any("merged" in note for note in report.notes)
    groups = prunus.trace(model, x[:1])
    assert set(score(groups, "kmeans")) == {g.id for g in groups}
