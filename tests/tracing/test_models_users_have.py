"""Networks of every kind that users bring: traced, cut in place, proven, run; and what is left alone, said."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import prunus
from prunus.core.nested import tensors_in
from prunus.core.torchvision_ops import declare_torchvision_operators

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
V = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(1))  # (batch, time, width)


class Fn(nn.Module):
    """A network whose forward is a function of itself and its inputs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def cut(net, example, params=0.7, dtype="float64", **options):
    """Prune, and check what holds for every network: proven, smaller as told, and it runs."""
    torch.manual_seed(0)
    options = {"allocator": "uniform", **options}
    report = prunus.prune_(net.eval(), example, budget=prunus.Budget(params=params), **options)
    assert report.in_place and report.model is net
    assert report.verified is not None and report.verified.max_relative_error < 1e-7
    assert report.verified.dtype == dtype
    assert report.after["params"] == sum(p.numel() for p in net.parameters()) < report.before["params"]
    with torch.no_grad():
        outputs = list(tensors_in(prunus.Inputs.of(example)(net)))
    assert outputs and all(bool(torch.isfinite(y).all()) for y in outputs)
    return report


def reasons(report):
    return {fixed.what.partition(":")[0]: fixed.why for fixed in report.left_alone}


def mlp(i=4, h=16, o=2):
    return nn.Sequential(nn.Linear(i, h), nn.ReLU(), nn.Linear(h, o))


# ---- inputs and outputs --------------------------------------------------------------------------------------------


def two():
    return {"a": nn.Linear(4, 16), "b": nn.Linear(5, 16), "c": nn.Linear(16, 2)}


A, B = torch.randn(2, 4), torch.randn(2, 5)


@pytest.mark.parametrize(
    ("function", "example"),
    [
        (lambda s, x, y: s.c(s.a(x).relu() + s.b(y)), (A, B)),
        (lambda s, x, y: s.c(s.a(x).relu() + s.b(y)), {"y": B, "x": A}),
        (lambda s, x, *, y, scale: s.c(s.a(x) + scale * s.b(y)), prunus.Inputs((A,), {"y": B, "scale": 2.0})),
        (lambda s, x: s.c(s.a(x["x"]) + s.b(x["rest"][0][1])), ({"x": A, "rest": [(None, B)]},)),
        (lambda s, x, mask=None: s.c(s.a(x[0]).relu() + s.b(x[1])), ([A, B],)),
    ],
)
def test_inputs_in_any_nesting(function, example):
    net = Fn(function, **two())
    cut(net, example)
    assert net.a.out_features == net.b.out_features == net.c.in_features < 16


def test_outputs_in_any_nesting():
    @dataclasses.dataclass
    class Out:
        logits: torch.Tensor
        extra: dict

    net = Fn(lambda s, x: (Out(s.c(y := s.a(x).relu()), {"more": [s.d(y), None]}), 3), **two(), d=nn.Linear(16, 7))
    del net.b
    report = cut(net, A)
    assert net.c.out_features == 2 and net.d.out_features == 7
    assert {reasons(report)["c"], reasons(report)["d"]} == {"it is an output of the model"}


# ---- weights that are not a layer's own ------------------------------------------------------------------------------


def test_tied_embedding_and_head():
    table, head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
    head.weight = table.weight
    net = Fn(lambda s, x: s.head(s.table(x) + s.mlp(s.table(x))), table=table, head=head, mlp=mlp(16, 32, 16))
    cut(net, torch.randint(0, 20, (2, 6)))
    assert net.head.weight is net.table.weight and net.table.weight.shape[1] < 16


def test_an_encoder_shared_with_the_decoder_and_a_module_called_twice():
    block = nn.Linear(16, 16)
    net = Fn(lambda s, x: s.o(s.dec(s.enc(s.enc(s.a(x)).relu())).tanh()), a=nn.Linear(4, 16), enc=block, dec=block)
    net.o = nn.Linear(16, 2)
    cut(net, A)
    assert net.enc is net.dec and net.enc.weight.shape[0] == net.enc.weight.shape[1] < 16
    twins = Fn(lambda s, x: s.o(s.b(s.a(x)).relu()), a=nn.Linear(8, 16), b=nn.Linear(16, 16), o=nn.Linear(16, 2))
    twins.b.bias = twins.a.bias
    cut(twins, torch.randn(2, 8))
    assert twins.b.bias is twins.a.bias


def old_weight_norm(layer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, old_weight_norm, nn.utils.spectral_norm]
)
def test_reparametrised_weights(norm):
    net = nn.Sequential(norm(nn.Conv2d(3, 16, 3)), nn.ReLU(), norm(nn.Conv2d(16, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1))
    report = cut(net, X)
    assert net[2](net[1](net[0](X))).shape[1] < 8 and set(reasons(report)) == {"4"}


def test_weight_norm_over_other_dimensions():
    """A removed unit's weight would be 0 / 0 in the silenced original, and is silenced as it is read."""
    transposed = old_weight_norm(nn.ConvTranspose2d(16, 8, 3), dim=1)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), transposed, nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert cut(net, X).verified.max_relative_error < 1e-12


def test_standardised_weights():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
            return F.conv2d(x, w, self.bias)

    net = nn.Sequential(Standardised(3, 16, 3), nn.ReLU(), Standardised(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    cut(net, X)
    assert net[0].weight.shape[0] == net[2].weight.shape[1] < 16


class Tokens(nn.Module):
    """Bare parameters and buffers: class token, positions, layer scale, a fixed scale."""

    def __init__(self):
        super().__init__()
        self.patch, self.mlp, self.head = nn.Conv2d(3, 16, 4, 4), mlp(16, 32, 16), nn.Linear(16, 3)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 5, 16))
        self.gamma = nn.Parameter(torch.full((16,), 0.1))
        self.register_buffer("scale", torch.rand(16) + 0.5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = (torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos) * self.scale
        return self.head((x + self.gamma * self.mlp(x))[:, 0])


def test_bare_parameters_and_buffers_follow():
    net = Tokens()
    cut(net, X)
    width = net.patch.out_channels
    assert width < 16 and net.cls.shape == (1, 1, width) and net.pos.shape == (1, 5, width)
    assert net.gamma.shape == net.scale.shape == (width,)


# ---- state -----------------------------------------------------------------------------------------------------------


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.cache, self.last, self.calls = {}, None, 0

    def forward(self, x):
        y = self.a(x).relu()
        if "mask" not in self.cache:
            self.cache["mask"] = torch.ones(y.shape[-1])
        self.last, self.calls = self.b(y * self.cache["mask"]), self.calls + 1
        return self.c(self.last)


@pytest.mark.parametrize("before", [0, 1])
def test_what_forward_cached_is_forgotten_with_the_cut(before):
    net = Caching()
    for _ in range(before):
        net(A)
    cut(net, A)
    assert net.calls == before + 1 and net.last.shape[1] == net.b.out_features
    assert net.cache["mask"].shape == (net.a.out_features,)


def test_frozen_parameters_may_be_cut_and_the_users_wishes_hold():
    net = mlp().requires_grad_(False)
    cut(net, A)
    assert net[0].out_features < 16 and not any(p.requires_grad for p in net.parameters())

    def deep():
        return nn.Sequential(*[nn.Linear(8, 8) for _ in range(5)])

    x = torch.randn(2, 8)
    net = deep()
    for freeze, untouched in (("1", "1"), ("[12].*", "[12]"), (net[3], "3"), (["0.weight", net[4]], "[04]")):
        other = net if isinstance(freeze, (nn.Module, list)) else deep()
        before = {name: module.weight.shape for name, module in other.named_children()}
        cut(other, x, 0.9, freeze=freeze)
        after = {name: module.weight.shape for name, module in other.named_children()}
        assert all(after[n] == before[n] for n in before if fnmatch.fnmatch(n, untouched)) and after != before
    net = deep()
    cut(net, x, 0.9, only=[net[1], "2"])
    assert [module.out_features < 8 for module in net] == [False, True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1)).to(dtype)
    cut(net, X.to(dtype))
    assert {p.dtype for p in net.parameters()} == {dtype}


def test_mixed_precision():
    net = Fn(lambda s, x: s.c(s.b(s.a(x).bfloat16()).relu().float()), **two())
    net.b = nn.Linear(16, 16).bfloat16()
    cut(net, A)
    assert (net.a.weight.dtype, net.b.weight.dtype) == (torch.float32, torch.bfloat16)
    cut(Fn(lambda s, x: autocast(s, x), **{**two(), "b": nn.Linear(16, 16)}), A)


def autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.c(net.b(net.a(x)).relu())


def test_lazy_modules_are_cut_after_their_first_forward():
    net = nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.LazyConv2d(2, 1))
    with pytest.raises(prunus.InputError, match=r"lazy modules have no shape yet .*'0.weight'.* run the model once"):
        prunus.trace(net, X)
    net(X)
    cut(net, X)


# ---- too big to run --------------------------------------------------------------------------------------------------


def convs():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1))


def on_meta():
    return torch.device("meta")


def fake():
    return torch._subclasses.fake_tensor.FakeTensorMode()


@pytest.mark.parametrize("place", [on_meta, fake])
def test_shapes_alone_are_enough_to_trace_and_cut(place):
    torch.manual_seed(0)
    with place():
        net, x = convs(), torch.empty(2, 3, 8, 8)
    groups, real = prunus.trace(net, x), prunus.trace(convs(), X)
    assert [(g.id, g.units) for g in groups] == [(g.id, g.units) for g in real] and groups.costs() == real.costs()
    report = prunus.prune_(net, x, criterion="random", budget=prunus.Budget(params=0.6))
    assert report.verified is None and any("no values" in note for note in report.notes)
    assert net[0].weight.shape[0] == net[3].weight.shape[1] < 16 and net(x).shape == (2, 2, 6, 6)
    with pytest.raises(prunus.InputError, match="reads weights, and '0.weight' has none"):
        prunus.prune_(net, x, budget=prunus.Budget(params=0.6))


def test_a_plan_made_on_meta_cuts_the_real_network():
    with torch.device("meta"):
        shapes, x = convs(), torch.empty(2, 3, 8, 8)
    plan = prunus.prune_(shapes, x, criterion="random", budget=prunus.Budget(params=0.6)).plan
    net = convs().eval()
    assert prunus.shrink_(net, prunus.trace(net, X), plan).verified.max_relative_error < 1e-7


def test_values_on_meta_are_a_clear_error():
    with torch.device("meta"):
        net, x = Fn(lambda s, x: s.a(x) if x.sum() > 0 else s.a(-x), a=nn.Linear(4, 2)), torch.empty(2, 4)
    with pytest.raises(prunus.TraceError, match="have no values.*whose Python reads values needs real ones"):
        prunus.trace(net, x)


# ---- what the example does not visit ---------------------------------------------------------------------------------


class Expert(nn.Module):
    def __init__(self, i=16, h=32):
        super().__init__()
        self.norm, self.a, self.b, self.width = nn.LayerNorm(i), nn.Linear(i, h), nn.Linear(h, i), i

    def forward(self, x):
        return self.b(self.a(self.norm(x)).relu()).view(-1, self.width)


class Mixture(nn.Module):
    """Tokens go to the expert that the gate chooses."""

    def __init__(self):
        super().__init__()
        self.inp, self.gate, self.out = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 2)
        self.experts = nn.ModuleList([Expert() for _ in range(3)])

    def forward(self, x):
        x = self.inp(x)
        chosen, y = self.gate(x).argmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().flatten()
            if len(rows):
                y = y.index_add(0, rows, expert(x[rows]))
        return self.out(x + y)


def test_experts_that_the_example_does_not_visit_follow_those_it_does():
    torch.manual_seed(0)
    net, x = Mixture(), torch.randn(8, 4)
    with torch.no_grad():
        net.gate.bias[:2] = 100.0
    assert set(net.gate(net.inp(x)).argmax(-1).tolist()) == {0, 1}
    whole, groups = copy.deepcopy(net), prunus.trace(net, x)
    report = prunus.shrink_(net, groups, groups.plan(torch.arange(groups.units) % 4 > 0))
    assert report.verified.max_relative_error < 1e-7
    assert reasons(report)["experts.2.a"] == reasons(report)["experts.2"] == "the example does not visit it"
    assert net.experts[2].a.weight.shape == (32, net.inp.out_features) and net.inp.out_features < 16
    assert net.experts[2].norm.normalized_shape == (net.inp.out_features,) == (net.experts[2].width,)
    with torch.no_grad():
        net.gate.bias[2] = whole.gate.bias[2] = 1000.0
        gone = ~groups.alive(torch.arange(groups.units) % 4 > 0)[groups.tensors["inp.weight"].axes[0]]
        whole.inp.weight[gone], whole.inp.bias[gone] = 0, 0
        whole.experts[2].b.weight[gone], whole.experts[2].b.bias[gone] = 0, 0
        whole.experts[2].norm = kept_norm(whole.experts[2].norm, ~gone)
        assert torch.allclose(net(x), whole(x), atol=1e-5)


def kept_norm(norm, keep):
    """A layer norm whose statistics are those of the kept units."""
    weight, bias = norm.weight[keep], norm.bias[keep]
    width = (int(keep.sum()),)

    def forward(self, x):
        out = torch.zeros_like(x)
        out[..., keep] = F.layer_norm(x[..., keep], width, weight, bias)
        return out

    return Fn(forward)


def test_a_stream_is_not_cut_through_what_might_read_it():
    class Branches(nn.Module):
        other = False

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 24), nn.Linear(24, 2)
            self.extra = nn.Sequential(nn.Linear(16, 7), nn.Linear(7, 2))

        def forward(self, x):
            x = self.a(x)
            return self.extra(x) if self.other else self.c(self.b(x).relu())

    net = Branches()
    report = cut(net, A, 0.8)
    assert reasons(report)["a"] == "'extra', which the example does not visit, may read it"
    net.other = True
    assert net(A).shape == (2, 2) and net.b.out_features < 24


# ---- convolutional networks ------------------------------------------------------------------------------------------


def test_u_nets_with_skip_connections():
    def conv(i, o, stride=1):
        return nn.Conv2d(i, o, 3, stride, 1)

    def forward(s, x):
        a = s.a(x).relu()
        b = s.b(a).relu()
        c = torch.cat([b, s.up2(s.c(b).relu())], 1)
        return s.o(s.d(torch.cat([a, F.interpolate(s.up1(c), scale_factor=2)], 1)).relu())

    net = Fn(forward, a=conv(3, 8), b=conv(8, 16, 2), c=conv(16, 32, 2), up2=nn.ConvTranspose2d(32, 16, 2, 2))
    net.up1, net.d, net.o = conv(32, 8), conv(16, 8), nn.Conv2d(8, 2, 1)
    report = cut(net, X)
    assert len(report.plan.groups) == 6 and set(reasons(report)) == {"o"}


# ---- recurrent networks and attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [{"batch_first": True}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}],
)
def test_recurrent_networks(kind, options):
    width = 16 * (2 if options.get("bidirectional") else 1)
    parts = {"e": nn.Linear(5, 4), "r": kind(4, 16, **options), "h": nn.Linear(width, 20), "o": nn.Linear(20, 2)}
    net = Fn(lambda s, x: s.o(s.h(s.r(s.e(x))[0]).relu()), **parts)
    assert torch.backends.mkldnn.enabled == torch._C._get_mkldnn_enabled()
    cut(net, V, 0.75)
    assert torch._C._get_mkldnn_enabled() and net.r.weight_hh_l0.shape[1] < 16
    assert net.h.in_features < width


def test_an_lstm_with_a_projection():
    parts = {"e": nn.Linear(5, 4), "r": nn.LSTM(4, 16, proj_size=6), "o": nn.Linear(6, 2)}
    net = Fn(lambda s, x: s.o(s.r(s.e(x))[1][0][-1]), **parts)
    cut(net, V, 0.75)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(batch_first, need_weights):
    parts = {"e": nn.Linear(5, 16), "r": nn.MultiheadAttention(16, 4, batch_first=batch_first), "m": mlp(16, 64)}
    net = Fn(lambda s, x: s.m(s.r(*3 * [s.e(x)], need_weights=need_weights)[0]), **parts)
    cut(net, V, 0.75)
    assert net.m[0].out_features < 64


def test_attention_to_another_width():
    parts = {"e": nn.Linear(5, 16), "r": nn.MultiheadAttention(16, 4, kdim=7, vdim=9, batch_first=True)}
    net = Fn(lambda s, x, k, v: s.m(s.r(s.e(x), k, v)[0]), **parts, m=mlp(16, 64))
    cut(net, (V, torch.randn(3, 4, 7), torch.randn(3, 4, 9)), 0.75)


def test_transformers_of_torch():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 64, batch_first=True), 2)
    net = Fn(lambda s, x: s.o(s.r(s.e(x))), e=nn.Linear(5, 16), r=encoder, o=nn.Linear(16, 2))
    cut(net, V, 0.75)
    assert net.r.layers[1].linear1.out_features < 64
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 64, batch_first=True), 1)
    net = Fn(lambda s, x, y: s.o(s.r(s.e(x), s.e(y))), e=nn.Linear(5, 16), r=decoder, o=nn.Linear(16, 2))
    cut(net, (V, torch.randn(3, 4, 5)), 0.75)
    whole = nn.Transformer(16, 4, 1, 1, 64, batch_first=True)
    net = Fn(lambda s, x, y: s.o(s.r(s.e(x), s.e(y))), e=nn.Embedding(9, 16), r=whole, o=nn.Linear(16, 9))
    cut(net, (torch.randint(0, 9, (3, 6)), torch.randint(0, 9, (3, 4))), 0.75)


def test_keys_that_positions_share():
    """DeBERTa computes positions from a few units of a group: they are no rows of all of it."""
    declare_torchvision_operators()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    positions = {"max_relative_positions": 16, "relative_attention": True, "position_buckets": 8}
    positions |= {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    config = transformers.DebertaV2Config(**sizes, **positions, intermediate_size=48)
    cut(transformers.DebertaV2ForSequenceClassification(config).eval(), torch.randint(0, 64, (2, 8)), 0.8)
