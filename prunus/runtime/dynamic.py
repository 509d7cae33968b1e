"""A convolution whose active channels are chosen anew for every call, or for every picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.core.checks import Kind, check_arguments, instance, is_int, is_number
from prunus.core.errors import InputError
from prunus.core.forked import Lock
from prunus.runtime import channels, jit, kernels, memory, pack, transpose
from prunus.runtime.choose import dense
from prunus.runtime.layout import FLOAT, Layout, pixels, places
from prunus.runtime.walk import Workers, some_threads

HELD = 512 * 1024  # bytes of pictures that are run together: they stay in the second cache
ROUND = 16  # floats: where a picture's tensor begins and ends in whole vectors, they are moved as such

A_CONV = instance("an nn.Conv2d", nn.Conv2d)
AN_IMAGE = Kind(
    "an input of the layer (n, C_in, H, W), or its shape",
    lambda v: isinstance(v, Tensor) or (isinstance(v, (list, tuple)) and all(is_int(n) and n > 0 for n in v)),
)
A_BOUND = Kind("a number, or an infinity", lambda v: is_number(v) or v in (math.inf, -math.inf))


class DynamicConv2d:
    r"""A dense convolution, $y_{o} = \phi(b_o + \sum_{c \in I} w_{oc} * x_c)$ for $o \in O$, at the cost of $|I| |O|$.

    The lists $I$ and $O$ come with the call; they are one for all pictures, or one for every picture.  $\phi$ keeps
    values between `low` and `high` (``low=0``: ReLU).  Any kernel, padding, dilation and groups; the stride is the
    same along both axes.  Weights are copied: `update` copies them again.

    `conv`: an `nn.Conv2d`; `example`: an input (n, C_in, H, W), or its shape.  Raises `InputError` for a convolution
    that it cannot run and where the processor has no vectors, `MissingExtraError` without llvmlite.

    Args:
        low, high: the bounds of what it gives, in its own unit; none by default.
        threads: of the processor that a call uses, 1 (the default) to 256.

    >>> conv, x = nn.Conv2d(8, 6, 3, padding=1), torch.randn(2, 8, 9, 9)
    >>> run = DynamicConv2d(conv, x)
    >>> y = run(x, [0, 2, 5], [1, 3])
    >>> y.shape, bool((y[:, [0, 2, 4, 5]] == 0).all())
    (torch.Size([2, 6, 9, 9]), True)
    >>> run(x, [[0, 2], [1]], [[1, 3], [0, 2]], compact=True)[1].shape
    torch.Size([2, 9, 9])
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        example: Tensor | Sequence[int],
        *,
        low: float = -float("inf"),
        high: float = float("inf"),
        threads: int = 1,
    ) -> None:
        check_arguments(
            locals(),
            conv=A_CONV,
            example=AN_IMAGE,
            low=A_BOUND,
            high=A_BOUND,
            threads=some_threads,
        )
        size = tuple(example.shape if isinstance(example, Tensor) else example)
        if len(size) != 4 or size[1] != conv.in_channels:
            raise InputError(
                f"DynamicConv2d was given an example of shape {size}; the layer reads (n, {conv.in_channels}, H, W). "
                "Give an input of the layer."
            )
        if conv.stride[0] != conv.stride[1] or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise InputError(
                f"DynamicConv2d has no kernel for {conv}: strides have to be equal along both axes, padding numbers, "
                "and filled with zeros. Run this layer in torch."
            )
        here = jit.machine()
        self.conv, self.low, self.high, self.workers = conv, float(low), float(high), Workers(threads)
        self.lock = Lock()
        self.size = size[1:]
        window, padding, dilation = _pair(conv.kernel_size), _pair(conv.padding), _pair(conv.dilation)
        self.shape = shape = pack.Shape(conv.stride[0], padding, dilation, conv.groups)
        out = [shape.output(n, k, axis) for axis, (n, k) in enumerate(zip(size[2:], window))]
        if min(out) < 1:
            raise InputError(f"an input of {size[2:]} pixels is smaller than the window of {conv}. Give a larger one.")
        self.y = Layout.of(*out, lanes=here.lanes)
        self.x = self.y.before(shape.stride, *size[2:]).with_halo(shape.halo(window))
        flat = window == (1, 1) and shape.stride == 1 and not self.x.halo
        fx, fy = (pack.flat(self.x), pack.flat(self.y)) if flat else (self.x, self.y)
        self.choice = dense(window, shape, conv.in_channels, conv.out_channels, fy, here.registers)[0][1]
        self.kernel = channels.kernel(fx, fy, None, self.choice, shape, tuple(conv.weight.shape))
        strips = pack.strips(fx, fy, None, self.choice, shape)
        self.strips, self.n_strips = memory.aligned(strips), len(strips)
        picture = conv.in_channels * self.x.plane + conv.out_channels * self.y.plane
        self.at_once = max(1, HELD // picture)
        self.held_x = memory.buffer(self.at_once * conv.in_channels * self.x.plane)
        self.held_y = memory.buffer(self.at_once * conv.out_channels * self.y.plane)
        self.address = jit.address(channels.emit(self.kernel))
        self._prepare()
        self.update()

    def _copy(self, layout: Layout, *, back: bool) -> tuple[int, np.ndarray, int]:
        """The kernel between a picture and its tiles, its table and the table's length."""
        if transpose.pays(layout, back=back):
            table, width = transpose.blocks(layout, pixels(layout), back=back)
            return jit.address(transpose.emit_tiles(layout.lanes, width, back=back)), memory.aligned(table), len(table)
        sources = places(layout) if back else pixels(layout).reshape(-1)
        text, table, many = kernels.copying(layout.lanes, sources, None)
        return jit.address(text), memory.aligned(table), many

    def _prepare(self) -> None:
        """The kernels' arguments: lists and pictures are put into them by every call."""
        conv, many, threads = self.conv, self.at_once, self.workers.threads
        self.weights = memory.aligned(np.zeros(conv.weight.numel(), dtype=np.float32))
        self.bias = memory.aligned(np.zeros(conv.out_channels, dtype=np.float32))
        of_in, of_out, jobs = many * conv.in_channels, many * conv.out_channels, many * conv.groups * max(1, threads)
        sizes = of_in, of_out, 2 * of_in, 4 * of_out, 8 * jobs, threads + 1
        self.lists = [memory.aligned(np.zeros(size, dtype=np.int32)).view(np.int32) for size in sizes]
        area_in, area_out = (s.height * s.width * FLOAT for s in (self.x, self.y))
        (into, *of_into), (out_of, *of_out_of) = self._copy(self.x, back=False), self._copy(self.y, back=True)
        held = [self.held_x, self.held_y, 0, self.bias, self.weights, *self.lists[2:], self.strips, self.n_strips]
        values: list[list[Any]] = [
            [0, self.held_x, *of_into, self.lists[0], 0, area_in, self.x.plane, 0.0],
            [*held, self.low, self.high, self.choice.channels],
            [self.held_y, 0, *of_out_of, self.lists[1], 0, self.y.plane, area_out, 0.0],
        ]
        self.kept: list[Any] = [of_into, of_out_of]
        slots = [memory.slots(v) for v in values]
        self.arguments = [s.view(np.int64) for s in slots]
        self.table, held_table = self.workers.table(list(zip((into, self.address, out_of), slots)))
        self.kept += [held_table, slots]

    def update(self) -> None:
        """Copies the layer's weights and bias again, after they changed."""
        weight, bias = self.conv.weight.detach(), self.conv.bias
        with self.lock:
            self.weights.view(np.float32)[: weight.numel()] = weight.float().numpy().reshape(-1)
            if bias is not None:
                self.bias.view(np.float32)[: len(bias)] = bias.detach().float().numpy()

    def __call__(self, x: Tensor, active_in: Any, active_out: Any, *, compact: bool = False) -> Any:
        """The convolution of some channels.

        `x`: float32 (n, C_in, H, W), of which only active channels are read; or (n, len(active_in), H, W), the active
        ones alone.  `active_in`, `active_out`: ascending numbers of channels, or boolean masks (C,); or a list of
        such, one a picture.  Gives (n, C_out, H', W'), zero where a channel is not active; with `compact` the active
        ones alone, (n, len(active_out), H', W'), or a list of (len(active_out[i]), H', W') for lists of their own.

        Raises `InputError` for a wrong shape and for lists that are not ascending or leave the layer.
        """
        conv, n = self.conv, len(x)
        ins, outs = (
            self._lists(active_in, n, conv.in_channels, "in"),
            self._lists(active_out, n, conv.out_channels, "out"),
        )
        shared = len(ins) == len(outs) == 1
        gathered = len(ins) == 1 and x.dim() == 4 and x.shape[1] == len(ins[0])
        fits = x.dim() == 4 and tuple(x.shape[2:]) == tuple(self.size[1:]) and (x.shape[1] == self.size[0] or gathered)
        if not fits or x.dtype != torch.float32:
            raise InputError(
                f"DynamicConv2d was given x of shape {tuple(x.shape)} ({x.dtype}); it was made for float32 of "
                f"(n, {', '.join(map(str, self.size))}), or with the active channels alone. Give such an input."
            )
        x = x.detach().contiguous()
        ins, outs = ins * (n // len(ins)), outs * (n // len(outs))
        made = [np.arange(len(o)) for o in outs] if compact else outs
        many = sum(map(len, outs)) if compact else n * conv.out_channels
        area = self.y.height * self.y.width
        floats = torch.empty(many * area + ROUND)
        start = -(floats.data_ptr() // FLOAT) % ROUND
        y, begun = floats[start : start + many * area], 0
        with self.lock:
            for i in range(0, n, self.at_once):
                some = slice(i, min(n, i + self.at_once))
                width = [len(m) if compact else conv.out_channels for m in made[some]]
                self._some(x[some], ins[some], outs[some], y[begun * area :], width, gathered, compact)
                begun += sum(width)
        if compact and not shared:
            return [part.view(-1, self.y.height, self.y.width) for part in y.split([len(o) * area for o in outs])]
        return y.view(n, len(outs[0]) if compact else conv.out_channels, self.y.height, self.y.width)

    def _lists(self, given: Any, n: int, channels: int, which: str) -> list[np.ndarray]:
        """One list for all, or one a picture."""
        several = isinstance(given, (list, tuple)) and bool(given) and not isinstance(given[0], (int, np.integer, bool))
        if isinstance(given, (Tensor, np.ndarray)) and given.ndim == 2:
            given, several = list(given), True
        found = []
        for one in given if several else [given]:
            a = np.asarray(one)
            if a.dtype == bool and a.shape == (channels,):
                a = np.flatnonzero(a)
            a = a.astype(np.int64) if a.size == 0 else a
            wrong = a.ndim != 1 or a.dtype.kind not in "iu"
            if wrong or (a.size and (a[0] < 0 or a[-1] >= channels or (a[1:] <= a[:-1]).any())):
                raise InputError(
                    f"active_{which} of {self.conv} has to be ascending numbers of its {channels} channels, or a mask "
                    f"of as many; it was given {str(one)[:80]}. Sort them and leave out what occurs twice."
                )
            found.append(a)
        if several and len(found) != n:
            raise InputError(
                f"active_{which} has {len(found)} lists for {n} pictures. Give one a picture, or one for all."
            )
        return found

    def _some(
        self,
        x: Tensor,
        ins: list[np.ndarray],
        outs: list[np.ndarray],
        y: Tensor,
        width: list[int],
        gathered: bool,
        compact: bool,
    ) -> None:
        """As many pictures as are run together: into tiles, active channels one after the other, and out of them."""
        conv = self.conv
        made = channels.tables(
            tuple(conv.weight.shape),
            conv.groups,
            list(zip(ins, outs)),
            (self.x.plane, self.y.plane, 0),
            compact=True,
            together=self.choice.together,
            threads=self.workers.threads,
        )
        stride, plane = x.shape[1], np.arange(sum(width))
        of_in = np.concatenate([(np.arange(len(i)) if gathered else i) + k * stride for k, i in enumerate(ins)])
        of_out = plane if compact else np.full(len(plane), -1)
        if not compact:
            at = np.concatenate([o + k * conv.out_channels for k, o in enumerate(outs)])
            of_out[at] = np.arange(len(at))
        values = (of_in, of_out, made.ins, made.outs, made.jobs, made.segments)
        for target, value in zip(self.lists, values):
            target[: value.size] = value.reshape(-1)
        into, kernel, out_of = self.arguments
        into[0], into[5] = x.data_ptr(), len(of_in)
        out_of[1], out_of[5] = y.data_ptr(), len(of_out)
        self.workers.run(self.table)


def _pair(numbers: Sequence[Any]) -> tuple[int, int]:
    """Two numbers, for (height, width)."""
    return int(numbers[0]), int(numbers[1])
