"""Criteria on transformers: heads by their definition, and the layers of torch that have a fused kernel."""

import pytest
import torch
from torch import nn

import prunus
from prunus.core import Budget
from prunus.criteria import score
from prunus.observe import collect


class Heads(nn.Module):
    """Attention whose heads can be looked at: tokens (N, T, C) -> scores (N, classes)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        made = nn.functional.scaled_dot_product_attention(q, k, v)  # (N, heads, T, dimensions)
        return self.out(made.transpose(1, 2).flatten(2))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 12, 4, stride=4)
        self.blocks = nn.ModuleList([Heads(12, 3), Heads(12, 2)])
        self.norms = nn.ModuleList([nn.LayerNorm(12), nn.LayerNorm(12)])
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        for norm, block in zip(self.norms, self.blocks):
            x = x + block(norm(x))
        return self.head(x.mean(1))


def test_the_importance_of_heads_is_that_of_michel_levy_and_neubig():
    r"""$I_h = E|\mathrm{Att}_h(x)^T \partial L / \partial \mathrm{Att}_h(x)|$, over the Euclidean norm of the layer."""
    torch.manual_seed(0)
    model = Vit().eval()
    x, y = torch.randn(6, 1, 8, 8), torch.randint(5, (6,))
    groups = prunus.trace(model, x)
    found = score(groups, "taylor-activation", collect(model, groups, [(x[:4], y[:4]), (x[4:], y[4:])], {"gate"}))
    expected, made = [], []
    for block in model.blocks:
        block.out.register_forward_pre_hook(lambda m, args: made.append(args[0]))
    for n in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        terms = [(a * g)[0].sum(0) for a, g in zip(made, torch.autograd.grad(loss, made))]  # (width,) each
        expected.append([t.reshape(block.heads, -1).sum(1).abs() for t, block in zip(terms, model.blocks)])
        made.clear()
    for i, heads in enumerate((3, 2)):
        mean = torch.stack([of[i] for of in expected]).mean(0).detach()
        (id,) = [g.id for g in groups if g.id.startswith(f"blocks.{i}.") and g.units == heads]
        torch.testing.assert_close(found[id], (mean / mean.norm()).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", ["flap", "taylor-activation", "taylor"])
def test_statistics_of_torchs_own_transformer_layers(criterion):
    """In evaluation mode without gradients they would run as one fused operator, with gradients as many."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))
    x, y = torch.randn(16, 5, 8), torch.randint(3, (16,))
    assert torch.backends.mha.get_fastpath_enabled()
    report = prunus.prune_(model, x[:2], budget=Budget(macs=0.8), criterion=criterion, data=[(x, y)], repair="bias")
    assert report.after["macs"] <= 0.8 * report.before["macs"] and report.verified.max_relative_error < 1e-7
    assert torch.backends.mha.get_fastpath_enabled()
