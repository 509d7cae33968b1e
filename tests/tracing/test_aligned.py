"""Kernels that take sizes in multiples alone: what reaches them is cut in steps, and not left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators

IDS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))


class Experts(nn.Module):
    """Rows go to four matrices, eight each, by torch's grouped product: strides are multiples of 16 bytes."""

    def __init__(self, width, hidden):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.o = nn.Linear(5, width), nn.Linear(width, 2)
        self.up = nn.Parameter(torch.randn(4, width, hidden) / width**0.5)
        self.down = nn.Parameter(torch.randn(4, hidden, width) / hidden**0.5)

    def forward(self, x):
        ends = torch.tensor([8, 16, 24, 32], dtype=torch.int32)
        hidden = torch.nn.functional.grouped_mm(self.e(x), self.up, offs=ends).relu()
        return self.o(torch.nn.functional.grouped_mm(hidden, self.down, offs=ends))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("width", "hidden", "steps"), [(32, 48, [8, 8]), (32, 20, [8, 4])])
def test_experts_are_cut_in_steps(width, hidden, steps, known, monkeypatch):
    if not known:  # the trial cuts find it out
        monkeypatch.setattr("prunus.tracing.tracer.ALIGNED", {})
    model, x = Experts(width, hidden), torch.randn(32, 5)
    groups = prunus.trace(model, x)
    assert [(g.id, g.units, g.step) for g in groups] == [
        ("e", width, steps[0]),
        ("up", hidden, steps[1]),
        ("down", width, steps[0]),
    ]
    keep = torch.arange(groups.units) >= 3
    with pytest.raises(prunus.InputError, match=f"keeps 29 units of group 'e'; .* multiples of {steps[0]}"):
        groups.plan(keep)
    report = prunus.prune_(model, x, budget=prunus.Budget(params=0.6))
    assert report.in_place and report.verified.max_relative_error < 1e-4
    assert model.up.shape[1] % 8 == 0 == model.up.shape[2] % 4 and model.up.numel() < width * hidden * 4


def test_what_no_step_can_be_taken_from_is_left_alone():
    groups = prunus.trace(Experts(8, 24), torch.randn(32, 5))
    assert [(g.id, g.step) for g in groups] == [("up", 8)]
    assert any("it could only be cut in multiples of 8" in f.why for f in groups.fixed)


def mixtures():
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    size |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    qwen = {**size, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    return {
        "Mixtral": {**size, "intermediate_size": 48, "num_local_experts": 4},
        "Qwen2Moe": {**qwen, "intermediate_size": 48, "shared_expert_intermediate_size": 48},
        "Qwen3Moe": {**qwen, "intermediate_size": 48, "head_dim": 8},
    }


@pytest.mark.parametrize("name", mixtures())
def test_mixtures_of_experts_lose_their_feed_forward_parts_too(name):
    declare_torchvision_operators()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**mixtures()[name])
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    inner = model.model.layers[0].mlp.experts.down_proj.shape
    report = prunus.prune_(model, IDS, budget=prunus.Budget(params=0.5))
    experts = model.model.layers[0].mlp.experts
    assert report.in_place and report.verified.max_relative_error < 1e-4
    assert experts.down_proj.shape[2] < inner[2] and experts.gate_up_proj.shape[1] == 2 * experts.down_proj.shape[2]
    assert model(IDS).logits.shape == (2, 16, 64)
