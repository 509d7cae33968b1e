"""Networks drawn at random: pictures, tokens and rows through layers of all kinds, several inputs and outputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[..., Tensor]
FUNCTIONS = [F.relu, F.silu, F.gelu, torch.tanh, F.elu, F.softplus, torch.sigmoid, F.hardswish, torch.erf, F.relu6]


class Network(nn.Module):
    """Steps, each of which reads values by number and makes one more; `given` is what forward takes, for one sample."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw, self.layers = random.Random(seed), nn.ModuleList()
        self.steps: list[tuple[Step, list[int]]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.given: list[tuple[tuple[int, ...], torch.dtype]] = []
        torch.manual_seed(seed)
        for _ in range(self.draw.choice([1, 1, 2])):
            kind = self.draw.choice(["picture", "picture", "tokens", "row", "numbers"])
            shape = {"picture": (3, *self.some(7, 14, 2)), "tokens": (self.draw.randint(2, 6), 8), "row": (12,)}
            self.given.append((shape.get(kind, (5,)), torch.int64 if kind == "numbers" else torch.float32))
            self.shapes.append(shape.get(kind, (5,)))
        for i, (_, dtype) in enumerate(list(self.given)):
            if dtype == torch.int64:
                self.step(self.layer(nn.Embedding(20, 8)), [i], (5, 8))
        for _ in range(self.draw.randint(3, 8)):
            self.one_more()
        made = list(range(len(self.given), len(self.shapes)))
        self.results = self.draw.sample(made, min(len(made), self.draw.choice([1, 1, 2, 3])))
        self.results.append(made[-1])
        self.form = self.draw.choice(["one", "tuple", "dict", "nested"])
        for p in self.parameters():
            p.data.uniform_(-0.5, 0.5)
            p.data[torch.rand_like(p) < 0.4] = 0
        for name, b in self.named_buffers():
            if name.endswith("running_var"):
                b.uniform_(0.5, 2)
        self.eval()

    def some(self, low: int, high: int, many: int) -> tuple[int, ...]:
        return tuple(self.draw.randint(low, high) for _ in range(many))

    def layer(self, module: nn.Module) -> nn.Module:
        self.layers.append(module)
        return module

    def step(self, function: Step, reads: list[int], shape: tuple[int, ...]) -> None:
        self.steps.append((function, reads))
        self.shapes.append(shape)

    def one_more(self) -> None:
        floats = [i for i in range(len(self.shapes)) if i >= len(self.given) or self.given[i][1] != torch.int64]
        i = self.draw.choice(floats[-3:])
        shape = self.shapes[i]
        kind = {3: self.of_picture, 2: self.of_tokens, 1: self.of_row}[len(shape)]
        function, reads = kind(i, shape, [j for j in floats if self.shapes[j] == shape])
        example = [torch.randn(2, *self.shapes[j]) for j in reads]
        self.eval()
        with torch.no_grad():
            made = function(*example)
        if 0 < made.numel() < 20000:
            self.step(function, reads, tuple(made.shape[1:]))

    def of_picture(self, i: int, shape: tuple[int, ...], alike: list[int]) -> tuple[Step, list[int]]:
        draw, (c, h, w) = self.draw, shape
        out, k = draw.choice([4, 6, 8]), draw.randint(1, 3)
        halves = c % 2 == 0
        choices: dict[str, Callable[[], tuple[Step, list[int]]]] = {
            "conv": lambda: (
                self.layer(nn.Conv2d(c, out, k, draw.randint(1, 2), k // 2, draw.choice([1, 1, 2]) if k > 1 else 1)),
                [i],
            ),
            "groups": lambda: (self.layer(nn.Conv2d(c, c, 3, 1, 1, groups=c if draw.random() < 0.7 else 1)), [i]),
            "turned": lambda: (self.layer(nn.ConvTranspose2d(c, out, 3, 2, 1, 1)), [i]),
            "norm": lambda: (self.layer(nn.BatchNorm2d(c)), [i]),
            "group norm": lambda: (self.layer(nn.GroupNorm(2 if halves else 1, c)), [i]),
            "function": lambda: (draw.choice(FUNCTIONS), [i]),
            "max": lambda: ((lambda x: F.max_pool2d(x, 2, ceil_mode=True)), [i]),
            "mean": lambda: ((lambda x: F.avg_pool2d(x, 3, 2, 1)), [i]),
            "size": lambda: ((lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear")), [i]),
            "pad": lambda: ((lambda x: F.pad(x, (1, 0, 2, 1))), [i]),
            "sum": lambda: ((lambda a, b: a + 0.5 * b), [i, draw.choice(alike)]),
            "product": lambda: ((lambda a, b: a * torch.sigmoid(b)), [i, draw.choice(alike)]),
            "join": lambda: ((lambda a, b: torch.cat([a, b.neg()], 1)), [i, draw.choice(alike)]),
            "join rows": lambda: ((lambda a, b: torch.cat([a, b], 2)), [i, draw.choice(alike)]),
            "squeeze": lambda: ((lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))), [i]),
            "by channel": lambda: ((lambda x: x - x.amax(1, keepdim=True)), [i]),
            "zeros": lambda: ((lambda x: torch.cat([x, torch.zeros(x.shape[0], 2, h, w)], 1)), [i]),
            "full": lambda: ((lambda x: x + torch.full((c, 1, 1), 0.3) * torch.ones_like(x)), [i]),
            "grid": lambda: ((lambda x: x * torch.linspace(-1, 1, w) + torch.arange(h)[:, None]), [i]),
            "halves": lambda: ((lambda x: x.chunk(2, 1)[1] if halves else x[:, 1:] - x[:, :1]), [i]),
            "shuffle": lambda: ((lambda x: x.view(-1, c, h * w).transpose(1, 2).reshape(-1, c, h, w)), [i]),
            "tokens": lambda: ((lambda x: x.flatten(2).transpose(1, 2)[:, :6]), [i]),
            "flat": lambda: ((lambda x: x.flatten(1)[:, :12]), [i]),
            "row": lambda: ((lambda x: x.mean((2, 3))), [i]),
            "softmax": lambda: ((lambda x: x.softmax(1)), [i]),
        }
        return choices[draw.choice(list(choices))]()

    def of_tokens(self, i: int, shape: tuple[int, ...], alike: list[int]) -> tuple[Step, list[int]]:
        draw, (t, e) = self.draw, shape
        heads = 2 if e % 2 == 0 else 1

        def attention() -> tuple[Step, list[int]]:
            first, weights = draw.random() < 0.5, draw.random() < 0.5
            m = self.layer(nn.MultiheadAttention(e, heads, batch_first=first))

            def run(x: Tensor, y: Tensor) -> Tensor:
                x, y = (x, y) if first else (x.transpose(0, 1), y.transpose(0, 1))
                made, seen = m(x, y, y, need_weights=weights)
                made = made if first else made.transpose(0, 1)
                return made * seen.amax(2, keepdim=True) if weights else made

            return run, [i, draw.choice(alike)]

        def recurrent() -> tuple[Step, list[int]]:
            first, two = draw.random() < 0.5, draw.random() < 0.3
            kind = draw.choice([nn.LSTM, nn.GRU, nn.RNN])
            m = self.layer(kind(e, 4, num_layers=draw.choice([1, 2]), batch_first=first, bidirectional=two))

            def run(x: Tensor) -> Tensor:
                y, state = m(x if first else x.transpose(0, 1))
                state = state[0] if isinstance(state, tuple) else state
                return (y if first else y.transpose(0, 1)) + state[-1][:, None].repeat(1, 1, y.shape[2] // 4)

            return run, [i]

        def causal(x: Tensor) -> Tensor:
            seen = torch.ones(t, t).tril().bool()
            score = (x @ x.transpose(1, 2)).masked_fill(~seen, -torch.inf)
            return score.softmax(-1) @ x

        def encoder() -> tuple[Step, list[int]]:
            options = {"batch_first": draw.random() < 0.5, "norm_first": draw.random() < 0.5}
            m = self.layer(nn.TransformerEncoderLayer(e, heads, 10, **options))
            return (m if options["batch_first"] else lambda x: m(x.transpose(0, 1)).transpose(0, 1)), [i]

        choices: dict[str, Callable[[], tuple[Step, list[int]]]] = {
            "attention": attention,
            "encoder": encoder,
            "recurrent": recurrent,
            "causal": lambda: (causal, [i]),
            "fused": lambda: ((lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), [i]),
            "norm": lambda: (self.layer(nn.LayerNorm(e)), [i]),
            "linear": lambda: (self.layer(nn.Linear(e, draw.choice([4, 8]))), [i]),
            "function": lambda: (draw.choice(FUNCTIONS), [i]),
            "places": lambda: ((lambda x: x + torch.arange(t, dtype=torch.float32)[:, None] * 0.1), [i]),
            "new": lambda: ((lambda x: torch.cat([x.new_zeros(len(x), 1, e), x], 1)), [i]),
            "sum": lambda: ((lambda a, b: a + b.flip(1)), [i, draw.choice(alike)]),
            "running": lambda: ((lambda x: x.cumsum(1) / torch.arange(1, t + 1)[:, None]), [i]),
            "einsum": lambda: ((lambda a, b: torch.einsum("nte,nse->nts", a, b)), [i, draw.choice(alike)]),
            "top": lambda: ((lambda x: x.topk(min(3, e), 2).values), [i]),
            "where": lambda: ((lambda x: torch.where(x > 0, x, x.exp() - 1)), [i]),
            "conv": lambda: (self.conv1d(e), [i]),
            "row": lambda: ((lambda x: x.mean(1)), [i]),
            "last": lambda: ((lambda x: x[:, -1]), [i]),
            "picture": lambda: ((lambda x: x.unsqueeze(1).repeat(1, 2, 1, 1)), [i]),
        }
        return choices[draw.choice(list(choices))]()

    def conv1d(self, e: int) -> Step:
        m = self.layer(nn.Conv1d(e, 6, 3, padding=1))
        return lambda x: m(x.transpose(1, 2)).transpose(1, 2)

    def of_row(self, i: int, shape: tuple[int, ...], alike: list[int]) -> tuple[Step, list[int]]:
        draw, (f,) = self.draw, shape
        choices: dict[str, Callable[[], tuple[Step, list[int]]]] = {
            "linear": lambda: (self.layer(nn.Linear(f, draw.choice([5, 16, 70]))), [i]),
            "norm": lambda: (self.layer(nn.BatchNorm1d(f)), [i]),
            "function": lambda: (draw.choice(FUNCTIONS), [i]),
            "join": lambda: ((lambda a, b: torch.cat([a, b * 2], 1)), [i, draw.choice(alike)]),
            "sum": lambda: ((lambda a, b: a - b.abs()), [i, draw.choice(alike)]),
            "range": lambda: ((lambda x: x * torch.arange(f)), [i]),
            "softmax": lambda: ((lambda x: x.softmax(1)), [i]),
            "outer": lambda: ((lambda x: x[:, :6, None] * x[:, None, :6]), [i]),
            "picture": lambda: ((lambda x: x[:, :4, None, None].expand(-1, -1, 3, 5) + torch.ones(3, 5)), [i]),
            "length": lambda: ((lambda x: F.normalize(x, dim=1)), [i]),
        }
        return choices[draw.choice(list(choices))]()

    def forward(self, *given: Tensor) -> Any:
        values = list(given)
        for function, reads in self.steps:
            values.append(function(*(values[i] for i in reads)))
        found = [values[i] for i in self.results]
        if self.form == "one" or len(found) == 1:
            return found[-1]
        if self.form == "nested":
            return found[0], [found[1:], None], {"last": found[-1]}
        return dict(zip("abcd", found)) if self.form == "dict" else tuple(found)

    def inputs(self, samples: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of so many samples."""
        random = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randint(0, 20, (samples, *shape), generator=random)
            if dtype == torch.int64
            else torch.randn(samples, *shape, generator=random)
            for shape, dtype in self.given
        )
