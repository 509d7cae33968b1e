"""LLM-Pruner: absolute before the sum over weights, over all layers that a unit is part of."""

import torch
from torch import nn

import prunus
from prunus.criteria import score
from prunus.observe import Stats


def test_the_second_order_change_of_every_weight_absolute_and_summed_over_a_coupled_group():
    groups = prunus.trace(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1)), torch.zeros(1, 2))
    out, into = (groups["0"].with_role(role)[0].tensor for role in ("out", "in"))
    with torch.no_grad():
        out.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        into.copy_(torch.tensor([[2.0, -1.0]]))
    grad = {"0.weight": torch.tensor([[3.0, -1.0], [5.0, 0.5]]), "1.weight": torch.tensor([[1.0, 1.0]])}
    fisher = {"0.weight": torch.tensor([[2.0, 1.0], [9.0, 1.0]]), "1.weight": torch.tensor([[3.0, 0.0]])}
    found = score(groups, "llm-pruner", Stats({"grad": grad, "fisher": fisher}))["0"]
    # unit 0: |3 - 1| + |-2 - 2| and |2 - 6| where it is read; unit 1: |0| + |0.5 - 0.5| and |-1|
    assert found.tolist() == [2 + 4 + 4, 0 + 0 + 1]
