"""Greedy removal in blocks, against the updates written out unit by unit and weight by weight."""

import pytest
import torch

from prunus.criteria import obc, obs
from prunus.criteria.obc import removal_errors
from prunus.criteria.obs import removal
from prunus.observe.moments import Consumer


def consumer(units, m, out, others=0, curved=False):
    """A layer whose columns lie in any order, `others` of them not of the group; an input or two never changes."""
    fan = units * m + others
    x = torch.randn(3 * fan, fan, dtype=torch.float64)
    x[:, :2] = 0
    g = torch.randn(out, out, dtype=torch.float64)
    columns = torch.randperm(fan)[: units * m].reshape(units, m)
    return Consumer(torch.randn(out, fan, dtype=torch.float64), x.T @ x / len(x), columns, g @ g.T if curved else None)


def by_the_book(consumers, ridge=obs.RIDGE):
    """Order and errors, with the inverse of what is left made anew for every unit that goes."""
    units, layers = len(consumers[0].columns), []
    for c in consumers:
        h = c.moment + ridge * c.moment.diagonal().mean() * torch.eye(len(c.moment), dtype=torch.float64)
        g = torch.eye(len(c.weight), dtype=torch.float64) if c.curvature is None else c.curvature
        layers.append([torch.where(c.moment.diagonal() > 0, c.weight, 0.0), h, c.columns, g, list(range(len(h)))])
    left, order, errors, total = list(range(units)), [], [], 0.0
    while left:
        costs = torch.zeros(len(left), dtype=torch.float64)
        changes = []
        for w, h, columns, g, there in layers:
            inverse = torch.zeros_like(h)
            inverse[torch.tensor(there)[:, None], torch.tensor(there)] = torch.linalg.inv(h[there][:, there])
            for i, unit in enumerate(left):
                s = columns[unit]
                change = w[:, s] @ torch.linalg.inv(inverse[s][:, s]) @ inverse[s]
                costs[i] += (g @ w[:, s] @ torch.linalg.inv(inverse[s][:, s]) @ w[:, s].T).trace() / 2
                changes.append((unit, change))
        unit = left.pop(int(costs.argmin()))
        total += float(costs.min())
        order.append(unit)
        errors.append(total)
        mine = iter([change for u, change in changes if u == unit])
        for layer in layers:
            layer[0] = layer[0] - next(mine)
            gone = set(layer[2][unit].tolist())
            layer[4] = [c for c in layer[4] if c not in gone]
    return torch.tensor(order), torch.tensor(errors, dtype=torch.float64)


CASES = {
    "one column a unit": [(14, 1, 5)],
    "kernels": [(10, 4, 3)],
    "two layers": [(9, 2, 4), (9, 1, 6, 3)],
    "curvature": [(8, 3, 4, 5, True), (8, 1, 3, 0, True)],
}


@pytest.mark.parametrize("block", [1, 3, 32])
@pytest.mark.parametrize("case", sorted(CASES))
def test_units_go_as_by_the_book_whatever_the_block(case, block, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(obs, "BLOCK", block)
    consumers = tuple(consumer(*shape) for shape in CASES[case])
    order, errors = removal(consumers)
    expected, sums = by_the_book(consumers)
    assert torch.equal(order, expected)
    torch.testing.assert_close(errors, sums, rtol=1e-9, atol=1e-9 * float(sums[-1]))


def rows_by_the_book(weight, moment, ridge=obc.RIDGE):
    fan = len(moment)
    dead = moment.diagonal() <= 0
    h = moment + ridge * moment.diagonal().mean() * torch.eye(fan, dtype=torch.float64) + torch.diag(dead.double())
    out = torch.zeros_like(weight)
    for r, row in enumerate(weight):
        w, left, highest = torch.where(dead, 0.0, row), list(range(fan)), 0.0
        while left:
            inverse = torch.linalg.inv(h[left][:, left])
            at = int((w[left].square() / (2 * inverse.diagonal())).argmin())
            highest = max(highest, float(w[left[at]] ** 2 / (2 * inverse[at, at])))
            out[r, left[at]] = highest
            w[left] = w[left] - w[left[at]] / inverse[at, at] * inverse[at]
            w[left[at]] = 0
            del left[at]
    return out


@pytest.mark.parametrize("block", [1, 3, 128])
@pytest.mark.parametrize("memory", [1, 512 << 20])
def test_weights_go_as_by_the_book_whatever_the_block(block, memory, monkeypatch):
    torch.manual_seed(2)
    monkeypatch.setattr(obc, "BLOCK", block)
    monkeypatch.setattr(obc, "MEMORY", memory)
    x = torch.randn(40, 13, dtype=torch.float64)
    x[:, 5] = 0
    weight, moment = torch.randn(4, 13, dtype=torch.float64), x.T @ x / 40
    torch.testing.assert_close(removal_errors(weight, moment), rows_by_the_book(weight, moment), rtol=1e-9, atol=1e-12)


def test_the_matrices_are_brought_up_to_date_once_a_block(monkeypatch):
    settled = []
    settle = obs._Layer.settle
    monkeypatch.setattr(obs._Layer, "settle", lambda self, stay: (settled.append(len(stay)), settle(self, stay))[1])
    removal((consumer(100, 1, 4),))
    assert settled == [100, 100, 68, 36]  # at the start, and after 32, 64 and 96 units; with those that are left alone
