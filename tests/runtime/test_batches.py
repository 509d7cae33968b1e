"""What is run in pieces, what is run whole, and what is refused, all of it when it is compiled."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.errors import InputError, TraceError
from prunus.runtime import compile, load, save


class Of(nn.Module):
    """A function with the layers that it calls."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.eval()

    def forward(self, *args: Tensor):
        return self.function(self, *args)


def same(network: nn.Module, model: nn.Module, *x: Tensor) -> None:
    with torch.no_grad():
        want = model(*x)
    got = network(*x)
    for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


TOGETHER = {  # networks whose samples know of each other, or are not on the first axis, and an example
    "attention, time first": (Of(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2)), torch.randn(4, 3, 8)),
    "a row a token": (Of(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2)), torch.randn(5, 1, 8)),
    "recurrent, time first": (Of(lambda m, x: m.a(x)[0], a=nn.LSTM(4, 3)), torch.randn(6, 2, 4)),
    "states": (nn.GRU(4, 3, batch_first=True).eval(), torch.randn(2, 5, 4)),
    "the batch's mean": (Of(lambda m, x: m.a(x) - m.a(x).mean(0), a=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 8, 8)),
    "a number": (Of(lambda m, x: m.a(x).sum(), a=nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 8, 8)),
    "how many": (Of(lambda m, x: m.a(x) / len(x), a=nn.Linear(3, 4)), torch.randn(3, 3)),
    "a fixed batch": (Of(lambda m, x: m.a(x).erf().view(2, 4), a=nn.Linear(3, 4)), torch.randn(2, 3)),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_what_cannot_be_run_in_pieces_is_run_as_a_whole(name: str, tmp_path) -> None:
    model, x = TOGETHER[name]
    network = compile(model, x)
    save(network, tmp_path / "net")
    for one in (network, load(tmp_path / "net")):
        same(one, model, torch.randn(x.shape))
        with pytest.raises(InputError, match="was compiled for inputs of shapes"):
            one(torch.randn(len(x) + 1, *x.shape[1:]))


def test_tokens_come_behind_samples() -> None:
    for model in (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), Of(attend, a=attention())):
        network = compile(model, torch.randn(2, 5, 8))
        for many in (1, 2, 7):
            same(network, model, torch.randn(many, 5, 8))


def attention() -> nn.MultiheadAttention:
    return nn.MultiheadAttention(8, 2, batch_first=True)


def attend(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.a(x, x, x, average_attn_weights=False)


Pair = namedtuple("Pair", "a b")


def test_outputs_have_their_structure(tmp_path) -> None:
    layer, x = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 5, 5)
    forms = [
        lambda y: (y,),
        lambda y: [y, y * 2],
        lambda y: {"a": y, 3: (y + 1, None), "n": 7},
        lambda y: (y, {"b": [y.erf()]}, torch.ones(1, 3)),
    ]
    for form in forms:
        model = Of(lambda m, x, form=form: form(m.a(x)), a=layer)
        network = compile(model, x)
        save(network, tmp_path / "net")
        for one in (network, load(tmp_path / "net")):
            with torch.no_grad():
                torch.testing.assert_close(one(x), model(x))
    assert isinstance(compile(Of(lambda m, x: Pair(m.a(x), x), a=layer), x)(x), tuple)


def test_inputs_that_all_samples_have_in_common() -> None:
    model = Of(lambda m, x, scale: m.a(x) * scale[:4, None, None] + torch.arange(5.0), a=nn.Conv2d(3, 4, 1))
    network = compile(model, (torch.randn(1, 3, 5, 5), torch.randn(6)))
    for many in (1, 3):
        same(network, model, torch.randn(many, 3, 5, 5), torch.randn(6))
    with pytest.raises(InputError, match=r"shapes \(n, 3, 5, 5\), \(6,\)"):
        network(torch.randn(1, 3, 5, 5), torch.randn(7))


def test_an_input_may_be_left_out_and_one_may_hold_several() -> None:
    model = Of(lambda m, x, mask, rest: m.a(x) + rest[0] * (1 if mask is None else mask), a=nn.Conv2d(3, 4, 1))
    x, y = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    same(compile(model, (x, None, [y])), model, x, None, [y])
    with pytest.raises(InputError, match="takes tensors; 3 is a int"):
        compile(model, (x, 3, [y]))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_what_the_engine_cannot_do_is_refused_when_it_is_compiled() -> None:
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(TraceError, match=r"changes its own buffers \(calls\)"):
        compile(Counting().eval(), x)
    with pytest.raises(TraceError, match="gives something else in the engine than in torch|random"):
        seen: list[int] = []
        compile(Of(lambda m, x: m.a(x) * (seen.append(1) or len(seen)), a=nn.Conv2d(3, 4, 3)), x)
    with pytest.raises(TraceError, match="gives no tensor"):
        compile(Of(lambda m, x: None), x)


def test_dropout_in_training_is_not_left_out() -> None:
    model = Of(lambda m, x: F.dropout(m.a(x), 0.9, training=True), a=nn.Conv2d(3, 8, 3))
    try:
        y = compile(model, torch.randn(1, 3, 9, 9))(torch.randn(1, 3, 9, 9))
    except TraceError:
        return
    assert (y == 0).float().mean() > 0.5


def test_an_input_that_forward_writes_to_is_left_alone() -> None:
    model = Of(lambda m, x: m.a(F.relu_(x)), a=nn.Conv2d(3, 4, 3))
    x = torch.randn(1, 3, 8, 8)
    held, network = x.clone(), compile(model, x.clone())
    y = network(x)
    assert torch.equal(x, held) and isinstance(y, Tensor)
    same(network, model, x.clone())


class Kept(nn.Module):
    """A view of what a kernel made, read long after its memory was used again."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x)
        view = first.transpose(0, 1)
        for layer in self.layers[1:]:
            x = torch.erf(layer(x))
        return x * view.transpose(0, 1).sum(1, keepdim=True)


def test_a_view_outlives_the_memory_that_it_was_made_of() -> None:
    torch.manual_seed(0)
    model = Kept().eval()
    same(compile(model, torch.randn(1, 64)), model, torch.randn(1, 64))
    same(compile(model, torch.randn(4, 64)), model, torch.randn(4, 64))
