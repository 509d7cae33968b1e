"""Networks on graphs: sparse products, messages gathered by index; and bilinear layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.measure import macs

N = 6
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
ADJACENCY = torch.eye(N) + torch.eye(N).roll(1, 0) + torch.eye(N).roll(2, 0)
SOURCE, TARGET = torch.tensor([0, 1, 2, 3, 4, 5, 0, 2]), torch.tensor([1, 2, 3, 4, 5, 0, 3, 5])
LAYOUTS = {"coo": ADJACENCY.to_sparse(), "csr": ADJACENCY.to_sparse_csr(), "dense": ADJACENCY}
PASSING = {
    "sparse.mm": torch.sparse.mm,
    "@": torch.matmul,
    "sparse.addmm": lambda a, x: torch.sparse.addmm(x, a, x),
    "behind": lambda a, x: (x.T @ a.T).T,
}


def scattered(x):
    return x.new_zeros(N, x.shape[1]).scatter_add_(0, TARGET[:, None].expand(-1, x.shape[1]), x[SOURCE])


class Graph(nn.Module):
    """Two rounds of messages between nodes."""

    def __init__(self, passing, adjacency=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.passing = nn.Linear(5, 16), nn.Linear(16, 12), nn.Linear(12, 3), passing
        self.register_buffer("adjacency", adjacency)

    def forward(self, x):
        def passed(x):
            return self.passing(x) if self.adjacency is None else self.passing(self.adjacency, x)

        return self.c(passed(self.b(passed(self.a(x)).relu())).relu())


def check(model):
    groups = prunus.trace(model, X)
    assert [(g.id, g.units) for g in groups][:2] == [("a", 16), ("b", 12)]
    report = prunus.shrink_(model, groups, groups.plan(torch.arange(groups.units) % 3 > 0))
    assert report.in_place and report.verified.max_relative_error < 1e-7
    assert macs(model, X).total == report.after["macs"]
    return report


@pytest.mark.parametrize(
    ("passing", "layout"),
    [
        (name, layout) for name in PASSING for layout in ("coo", "csr") if (name, layout) != ("behind", "csr")
    ],  # torch cannot
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_products(passing, layout):
    report = check(Graph(PASSING[passing], LAYOUTS[layout]))
    stored = 3 * N  # numbers in the adjacency
    assert round(report.before["macs"] * N) == N * (5 * 16 + 16 * 12 + 12 * 3) + stored * (16 + 12)


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize(
    "passing",
    [
        scattered,
        lambda x: torch.zeros_like(x).index_add(0, TARGET, x[SOURCE]),
        lambda x: torch.zeros_like(x).index_put((TARGET,), x.index_select(0, SOURCE), accumulate=True),
        lambda x: torch.zeros_like(x).index_reduce(0, TARGET, x[SOURCE], "amax"),
    ],
)
def test_messages_by_index(passing):
    report = check(Graph(passing))
    assert report.before["macs"] == 5 * 16 + 16 * 12 + 12 * 3  # of a node; moving messages multiplies nothing


def test_bilinear_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 16), nn.Linear(5, 12), nn.Bilinear(16, 12, 9)
            self.d = nn.Linear(9, 3)

        def forward(self, x):
            return self.d(self.c(self.a(x).relu(), self.b(x).relu()).relu())

    model = Net()
    roles = {g.id: {(s.name, s.dim): s.role for s in g.slices} for g in prunus.trace(model, X)}
    assert [roles[id]["c.weight", dim] for id, dim in (("a", 1), ("b", 2), ("c", 0))] == ["in", "in", "out"]
    report = check(model)
    assert report.before["macs"] == 5 * 16 + 5 * 12 + 9 * 16 * 12 + 9 * 3
    assert model.c.weight.shape == (6, 10, 8)
