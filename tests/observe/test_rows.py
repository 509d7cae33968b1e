"""How many rows second moments are made of: 20 for every unknown, or all there are."""

import pytest
import torch
from torch import nn

import prunus
from prunus.observe import collect
from prunus.observe.base import Seen
from prunus.observe.layers import Calls
from prunus.observe.moments import Rows, second_moments
from tests.hand_built import chain


class Twice(nn.Module):
    """A layer that is called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.same(self.same(x)))


def drawn(model: nn.Module, data: list[torch.Tensor]) -> dict[tuple[str, int], list[torch.Tensor]]:
    """The rows that are drawn of every call, batch after batch."""
    seen = Seen(model.eval(), prunus.trace(model, data[0]), data, None)
    rows, found = Rows(seen), {}

    def before(layer):
        found.setdefault(layer.key, []).append(rows(layer))

    for _ in seen.forwards(lambda: Calls(model, before)):
        pass
    return found


@pytest.mark.parametrize("sizes", [(1,), (4,), (3, 1), (16, 16, 16), (40, 8), (1,) * 48])
def test_twenty_rows_for_every_unknown_or_all_there_are(sizes):
    data = [torch.randn(n, 2, 6, 6) for n in sizes]
    found = drawn(Twice(), data)
    there = 36 * sum(sizes)
    for key, fan in ((("same.weight", 0), 18), (("same.weight", 1), 18), (("last.weight", 0), 2)):
        assert sum(map(len, found[key])) == min(there, 20 * (fan + 1))
        for n, index in zip(sizes, found[key]):
            assert len(index.unique()) == len(index) and index.max() < 36 * n  # none twice
            assert abs(len(index) - min(there, 20 * (fan + 1)) * n / sum(sizes)) < 1  # evenly over the samples


def test_tokens_are_counted_by_their_samples():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    found = drawn(net, [torch.randn(8, 30, 4), torch.randn(2, 30, 4)])
    assert [len(index) for index in found["0.weight", 0]] == [80, 20]
    assert [len(index) for index in found["1.weight", 0]] == [112, 28]


def test_moments_of_few_images_are_those_of_all_their_rows():
    model, _ = chain()
    x = torch.randn(3, 3, 6, 6)
    groups = prunus.trace(model, x)
    with torch.no_grad():
        y = model.eval().bn1(model.conv1(x)).relu()
        rows = nn.functional.unfold(y, 3, padding=1).mT.flatten(0, 1).double()
    expected = rows.mT @ rows / len(rows)
    for data in ([x], [x[:1], x[1:]], iter([x[:2], x[2:]])):  # in any batches, also those that come only once
        found = second_moments(Seen(model, groups, data, None))
        (number,) = [i for i, (weight, _, _) in found.items() if weight.shape == (6, 36)]
        torch.testing.assert_close(found[number][2], expected, rtol=1e-5, atol=1e-7)
    assert collect(model, groups, (b for b in [x]), {"moments", "input-moments"}).groups["input-moments"]
