"""Sizes that follow a cut, writes in place, buffers that forward replaces, memory that is shared with nobody."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core import Inputs, TensorPlan, TraceError
from prunus.surgery.capture import capture
from prunus.surgery.graph import Batch
from prunus.surgery.sizes import Sizes, follow
from prunus.surgery.symbolic import _merged
from prunus.tracing.tracer import Call, Ref
from tests.surgery.rewriting import Fixed, half, whole

aten = torch.ops.aten
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(5))


def followed(func, args, before, after, inputs, **kwargs):
    """The arguments of one call after a cut that takes its output from `before` to `after`.

    `inputs` are the shapes of its input before and after.
    """
    call = Call(func._schema.name.removeprefix("aten::"), "m", [0], [1], [], [before], func=func)
    call.args, call.kwargs = args, kwargs
    axes = tuple(None if a == b else d for d, (a, b) in enumerate(zip(before, after)))
    alive = [torch.arange(a) < b for a, b in zip(before, after)]
    op = SimpleNamespace(axes=(axes,), facts=())
    sizes = Sizes(None, alive, {0: inputs[1]}, {0: inputs[0]})
    return follow(call, op, sizes)


def test_sizes_are_read_off_the_outputs():
    args, _, shapes = followed(aten.zeros.default, ([2, 8],), (2, 8), (2, 5), ((), ()))
    assert args == [[2, 5]] and shapes == ((2, 5),)
    args, _, _ = followed(aten.view.default, (Ref(0), [2, -1]), (2, 8), (2, 5), ((2, 8), (2, 5)))
    assert args == [Ref(0), [2, -1]]
    args, _, _ = followed(aten.split.Tensor, (Ref(0), 4, 1), (2, 4), (2, 3), ((2, 8), (2, 6)))
    assert args == [Ref(0), 3, 1]


def test_strides_keep_the_order_of_dimensions_or_are_refused():
    func, shapes = aten.as_strided.default, ((2, 8), (2, 5))
    args, _, _ = followed(func, (Ref(0), [2, 8], [1, 2]), *shapes, shapes)
    assert args == [Ref(0), [2, 5], [1, 2]]
    args, _, _ = followed(func, (Ref(0), [2, 8], [8, 1]), *shapes, shapes)
    assert args == [Ref(0), [2, 5], [5, 1]]
    with pytest.raises(TraceError, match="'m' reads memory by strides"):
        followed(func, (Ref(0), [2, 8], [16, 1]), *shapes, shapes)


def test_attention_keeps_the_scale_of_the_original():
    func, shapes = aten._scaled_dot_product_flash_attention_for_cpu.default, ((2, 1, 3, 16), (2, 1, 3, 9))
    _, kwargs, _ = followed(func, (Ref(0), Ref(0), Ref(0)), *shapes, shapes)
    assert kwargs == {"scale": 1 / math.sqrt(16)}
    _, kwargs, _ = followed(func, (Ref(0), Ref(0), Ref(0)), shapes[0], shapes[0], (shapes[0], shapes[0]))
    assert kwargs == {}


def test_normalised_shapes_are_read_off_the_inputs():
    shapes = ((2, 3, 8), (2, 3, 5))
    args, _, _ = followed(aten.native_layer_norm.default, (Ref(0), [8], None, None, 1e-5), *shapes, shapes)
    assert args[1] == [5]
    shapes = ((2, 8, 4, 4), (2, 6, 4, 4))
    args, _, _ = followed(aten.native_group_norm.default, (Ref(0), None, None, 2, 8, 16, 2, 1e-5), *shapes, shapes)
    assert args[3:7] == [2, 6, 16, 2]


def test_a_size_that_does_not_follow_is_named(monkeypatch):
    monkeypatch.setattr("prunus.surgery.capture.follow", lambda *a: (list(a[0].args), dict(a[0].kwargs), follow(*a)[2]))
    with pytest.raises(TraceError, match="aten.reshape.default .*the cut"):
        half(Fixed(), X)


def test_a_cut_that_the_labels_do_not_know_is_refused():
    with pytest.raises(TraceError, match="'head.weight' cannot be cut so"):
        capture(Fixed(), Inputs.of(X), {"head.weight": TensorPlan((4, 8), {0: (0, 1)})}, training=False)


def test_integers_lie_on_a_line_or_are_refused():
    assert _merged([7, 10, 16], (2, 3, 5), "here") == Batch(3, 1)
    for values in ([4, 9, 25], [1, 1, 2], [0.5, 1 / 3, 0.2], [True, False, False]):
        with pytest.raises(TraceError, match="here depends on the batch size by"):
            _merged(values, (2, 3, 5), "here")


class Split(nn.Module):
    """Writes to one of two views; `whole` says whether the base is read afterwards."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.a, self.head, self.whole = nn.Linear(4, 8), nn.Linear(8, 2), whole

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        p, q = y.chunk(2, 1)
        p.sigmoid_()
        return self.head(y if self.whole else torch.cat([p, q], 1))


def test_writes_that_autograd_refuses_are_made_functional_where_nothing_else_reads_that_memory():
    x = torch.randn(2, 4)
    model = Split(whole=False)
    same = whole(model, x)
    with torch.no_grad():
        assert torch.equal(same(x), model(x))
    same(x).sum().backward()
    y = model.a(x)
    p, q = y.chunk(2, 1)
    model.head(torch.cat([p.sigmoid(), q], 1)).sum().backward()
    assert torch.allclose(same.a.weight.grad, model.a.weight.grad)
    model = Split(whole=True)
    with torch.no_grad():
        assert torch.equal(whole(model, x)(x), model(x))


def test_buffers_that_forward_replaces_or_writes_to_keep_their_new_values():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("mean", torch.zeros(6))
            self.register_buffer("calls", torch.zeros(6))

        def forward(self, x):
            x = self.a(x)
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
                with torch.no_grad():
                    self.calls.add_(x.abs().sum(0))
            return self.b(x - self.mean)

    x = torch.randn(2, 4)
    model = Average().train()
    same = whole(model, x)
    for _ in range(2):
        found, expected = same(x), model(x)
        assert torch.allclose(found, expected)
        found.sum().backward()
    assert torch.allclose(same.mean, model.mean) and torch.allclose(same.calls, model.calls)
    assert same.mean.abs().sum() > 0 and same.calls.abs().sum() > 0 and not same.calls.requires_grad


def test_parameters_written_to_in_forward():
    class Clamped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            with torch.no_grad():
                self.a.weight.clamp_(max=0.01)
            return self.b(self.a(x))

    x = torch.randn(2, 4)
    model = Clamped()
    same = whole(model, x)
    same(x).sum().backward()
    assert same.a.weight.max() <= 0.01 and same.a.weight.grad is not None


def test_no_memory_is_shared_with_the_original():
    model = Fixed()
    model(X).sum().backward()
    small, _, _ = half(model, X)
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.fill_(7)
            if tensor.grad is not None:
                tensor.grad.fill_(7)
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    assert not any(bool((t == 7).any()) for t in tensors)


def test_heads_shared_by_several_queries():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.kv, self.head = nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(16, 2)

        def forward(self, x):
            b, n, _ = x.shape
            q = self.q(x).view(b, n, 4, 4).transpose(1, 2)
            k, v = self.kv(x).view(b, n, 2, 2, 4).permute(2, 0, 3, 1, 4)
            out = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            return self.head(out.transpose(1, 2).flatten(2))

    model = Grouped().eval()
    x = torch.randn(3, 6, 5)
    assert torch.equal(whole(model, x[:1])(x), model(x))


def test_random_numbers_that_are_thrown_away_are_drawn_all_the_same():
    class Wasteful(Fixed):
        def forward(self, x):
            torch.rand(3, device=x.device)
            return super().forward(x)

    model = Wasteful().train()
    same = whole(model, X)
    outs = []
    for net in (model, same):
        torch.manual_seed(2)
        outs.append(net(X))
    assert torch.equal(*outs)


def test_what_forward_reads_into_python_is_noted():
    class Reads(Fixed):
        def forward(self, x):
            return super().forward(x) if float(x.abs().sum()) > 0 else x

    assert "reads values of tensors into Python" in whole(Reads(), X).program.notes[0]


def test_autocast_and_a_name_that_is_taken():
    same = whole(Fixed().eval(), X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(X).dtype == torch.bfloat16

    class Taken(nn.Module):
        def __init__(self):
            super().__init__()
            self.program = nn.Linear(3, 2)

        def forward(self, x):
            return self.program(x)

    with pytest.raises(prunus.InputError, match="'program.weight' cannot be the name"):
        whole(Taken(), torch.randn(2, 3))
