"""Which parameters are weights: in modules of any kind, and what is left out is named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators


class Dense(nn.Module):  # a layer of the user's own, stored as (in, out)
    def __init__(self, inputs, outputs):
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.matrix + self.shift


class Experts(nn.Module):  # a mixture: the example may visit some of them only
    def __init__(self, number, inner, width):
        super().__init__()
        self.router = nn.Parameter(torch.randn(number, width))
        self.up, self.down = (
            nn.Parameter(torch.randn(number, inner, width)),
            nn.Parameter(torch.randn(number, width, inner)),
        )

    def forward(self, x):
        which = F.linear(x, self.router).argmax(-1)
        out = torch.zeros_like(x)
        for e in which.unique().tolist():
            rows = which == e
            out[rows] = F.linear(F.linear(x[rows], self.up[e]).relu(), self.down[e])
        return out


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(9, 8), nn.Parameter(torch.randn(5, 8))
        self.first, self.experts = Dense(8, 6), Experts(4, 7, 6)
        self.norm, self.last = nn.LayerNorm([5, 6]), nn.Linear(6, 3)

    def forward(self, tokens):
        x = self.first(self.table(tokens) + self.places)
        return self.last(self.norm(self.experts(x.flatten(0, 1)).unflatten(0, (-1, 5))))


WEIGHTS = {"first.matrix", "experts.router", "experts.up", "experts.down", "last.weight"}


def test_weights_of_own_layers_and_experts_count_and_what_is_left_out_is_named():
    torch.manual_seed(0)
    model, tokens = Mixed(), torch.randint(0, 9, (1, 5))
    groups = prunus.tensors(model, example_inputs=tokens)
    assert {g.id for g in groups} == WEIGHTS
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert groups.costs()["density"] == sum(sizes[name] for name in WEIGHTS)
    wide = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert {f.what for f in groups.fixed} == wide - WEIGHTS == {"places", "table.weight", "norm.weight", "norm.bias"}
    assert all(f.why for f in groups.fixed)
    by_rule = prunus.tensors(model)
    assert {g.id for g in by_rule} == WEIGHTS | {"places"}, "nobody can tell, by its shape and name, that it is added"
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.5))
    report = prunus.mask_(model, groups, plan)
    assert set(report.densities) == WEIGHTS and {f.what for f in report.left_alone} == wide - WEIGHTS
    zeros = sum(int((p == 0).sum()) for name, p in model.named_parameters() if name in WEIGHTS)
    assert zeros == groups.costs()["density"] - int(0.5 * groups.costs()["density"])


@pytest.mark.parametrize("example", [True, False])
def test_inputs_and_outputs_are_read_off_the_operators(example):
    torch.manual_seed(0)
    model, tokens = Mixed(), torch.randint(0, 9, (1, 5))
    if not example:
        with pytest.raises(prunus.InputError, match="no weight to mask.*not divisible"):
            prunus.tensors(model, "2:4", only="last")
        with pytest.raises(prunus.InputError, match="no weight to mask.*first.matrix: nobody knows"):
            prunus.tensors(model, "2:4", only="first")
        return
    groups = prunus.tensors(model, "2:4", example_inputs=tokens)
    assert {g.id for g in groups} == {"first.matrix"}  # 8 inputs; the others have 6 or 7
    index = groups["first.matrix"].slices[0].index.reshape(-1, 4)  # the elements of a pattern
    rows, columns = torch.unravel_index(index, (8, 6))
    assert (columns == columns[:, :1]).all() and (rows.diff(dim=1) == 1).all()
    rows = prunus.tensors(model, rows=True, example_inputs=tokens)
    assert {g.id: g.parts for g in rows} == {
        "first.matrix": 6, "experts.router": 4, "experts.up": 28, "experts.down": 24, "last.weight": 3
    }  # fmt: skip


def layers(wrap=lambda layer: layer) -> nn.Module:
    return nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(72, 4)))


def unstructured(layer):
    return prune.random_unstructured(layer, "weight", 0.3)


WRAPS = {
    "old weight norm": (nn.utils.weight_norm, {"0.weight_v", "3.weight_v"}),
    "weight norm": (
        parametrizations.weight_norm,
        {"0.parametrizations.weight.original1", "3.parametrizations.weight.original1"},
    ),
    "spectral norm": (
        parametrizations.spectral_norm,
        {"0.parametrizations.weight.original", "3.parametrizations.weight.original"},
    ),
    "prune": (unstructured, {"0.weight_orig", "3.weight_orig"}),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("way", WRAPS)
def test_of_a_computed_weight_that_is_masked_whose_zeros_are_its_zeros(way, example):
    torch.manual_seed(0)
    wrap, names = WRAPS[way]
    model, x = layers(wrap).eval(), torch.randn(2, 3, 5, 5)
    groups = prunus.tensors(model, example_inputs=x if example else None)
    assert {g.id for g in groups} == names
    assert groups.costs()["density"] == 8 * 27 + 4 * 72
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.25))
    prunus.mask_(model, groups, plan)
    model(x)
    effective = [model[0].weight, model[3].weight]
    assert sum(int(w.count_nonzero()) for w in effective) <= 0.25 * groups.costs()["density"]
    for group, w in zip(groups, effective):
        assert torch.equal(w != 0, group.slices[0].tensor != 0) or way == "prune"
        assert w.isfinite().all()


@pytest.mark.parametrize("criterion", ["l1", "snip", "wanda", "synflow"])
def test_elements_score_as_layers_read_them(criterion):
    torch.manual_seed(0)
    model, twin = layers(parametrizations.weight_norm).double(), layers().double()
    data = [(torch.randn(4, 3, 5, 5, dtype=torch.float64), torch.arange(4))]
    with torch.no_grad():
        for at in (0, 3):
            model[at].parametrizations.weight.original0.mul_(
                torch.rand_like(model[at].parametrizations.weight.original0)
            )
            twin[at].weight.copy_(model[at].weight)
            twin[at].bias.copy_(model[at].bias)
    found = []
    for net in (model, twin):
        groups = prunus.tensors(net, example_inputs=data[0][0][:1])
        stats = prunus.collect(net, groups, data, prunus.criteria.needs(criterion))
        found.append(list(prunus.score(groups, criterion, stats).values()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_weight_whose_zeros_do_not_reach_layers_is_refused_by_name():
    declare_torchvision_operators()
    timm_layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    model = nn.Sequential(timm_layers.ScaledStdConv2d(3, 8, 3), nn.Flatten(), nn.Linear(200, 4))
    groups = prunus.tensors(model, example_inputs=torch.randn(2, 3, 5, 5))
    assert [g.id for g in groups] == ["2.weight"]
    assert {f.what: f.why for f in groups.fixed}[
        "0.weight"
    ] == "layers read what is computed from it, where its zeros are none"
    sums = nn.utils.parametrize.register_parametrization(nn.Linear(4, 3), "weight", Added())
    for example in (None, torch.randn(1, 4)):
        with pytest.raises(prunus.InputError, match="no weight to mask"):
            prunus.tensors(nn.Sequential(sums), example_inputs=example)


class Added(nn.Module):  # as LoRA adds to a weight
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 4))

    def forward(self, weight):
        return weight + self.up @ self.down


def test_most_of_a_mixture_of_experts_counts():
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Qwen3MoeConfig"):
        pytest.skip("this version of transformers has no Qwen3-MoE")
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_experts=8, num_experts_per_tok=2, vocab_size=40,
    )  # fmt: skip
    model = transformers.Qwen3MoeForCausalLM(config)
    whole = sum(p.numel() for p in model.parameters() if p.dim() > 1) - model.model.embed_tokens.weight.numel()
    whole -= 0 if config.tie_word_embeddings else 0
    for example in (None, torch.randint(0, 40, (1, 6))):
        groups = prunus.tensors(model, example_inputs=example)
        assert groups.costs()["density"] == whole, [f.what for f in groups.fixed]
