"""Calls of operators that lay tensors beside each other, or write one into another."""

from __future__ import annotations

import torch

from tests.tracing.sampling import S, Sample, b, f, i

where = (torch.tensor([0, 2]), torch.tensor([1, 3]))
column = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(k))[:4] for k in range(3)])

SAMPLES: list[Sample] = [
    S("cat", [f(3, 2), f(3, 4)], 1),
    S("cat", [f(2, 3), f(4, 3), f(1, 3)]),
    S("cat", [f(3, 2), f(3, 4)], -1),
    S("cat", [f(3), f(4)]),
    S("cat", [f(0), f(3, 2), f(3, 4)], 1),
    S("concat", [f(3, 2), f(3, 4)], 1, composite=True),
    S("concatenate", [f(3, 2), f(3, 4)], -1, composite=True),
    S("stack", [f(3, 5), f(3, 5)]),
    S("stack", [f(3, 5), f(3, 5), f(3, 5)], -1),
    S("constant_pad_nd", f(3, 5), [2, 1]),
    S("constant_pad_nd", f(3, 5), [0, 0, 2, 0], 1.5),
    S("constant_pad_nd", f(3, 5), [-1, 0]),
    S("constant_pad_nd", f(2, 3, 4, 5), [1, 1, 0, 2]),
    S("block_diag", [f(2, 3), f(4, 5)]),
    S("index_put", f(5, 4), [i(5, 3)], f(3, 4)),
    S("index_put", f(5, 4), [i(5, 3)], f(4)),
    S("index_put", f(5, 4), [i(5, 3)], f()),
    S("index_put", f(5, 4), [i(5, 3)], f(3, 1)),
    S("index_put", f(3, 5, 4), [None, i(5, 2)], f(3, 2, 4), True),
    S("index_put", f(3, 5, 4), [b(3, 5)], f(4)),
    S("index_put_", f(5, 4), list(where), f(2)),
    S("_unsafe_index_put", f(5, 4), [i(5, 3)], f(3, 4)),
    S("_index_put_impl_", f(5, 4), [i(5, 3)], f(3, 4), True),
    S("scatter.src", f(3, 5), 1, column, f(3, 4)),
    S("scatter.src", f(3, 5), 1, column, f(4, 6)),
    S("scatter.value", f(3, 5), 1, column, 2.0),
    S("scatter_.value", f(3, 5), 1, column, 2.0),
    S("scatter_add", f(3, 5), 1, i(5, 3, 7), f(3, 7)),
    S("scatter_add_", f(4, 5), -1, i(5, 3, 7), f(3, 7)),
    S("scatter_add", f(5), 0, i(5, 7), f(7)),
    S("scatter_reduce.two", f(3, 5), 1, column, f(3, 4), "amax"),
    S("index_add", f(5, 4), 0, i(5, 3), f(3, 4)),
    S("index_add", f(4, 5), -1, i(5, 3), f(4, 3), alpha=2),
    S("index_copy", f(5, 4), 0, column[0, :3], f(3, 4)),
    S("index_fill.int_Scalar", f(5, 4), 0, i(5, 3), 2.0),
    S("index_fill_.int_Tensor", f(5, 4), 1, i(4, 3), f()),
    S("index_reduce", f(5, 4), 0, i(5, 3), f(3, 4), "prod"),
    S("slice_scatter", f(3, 8), f(3, 4), 1, 2, 6),
    S("slice_scatter", f(8, 3), f(4, 3), 0, 0, 8, 2),
    S("select_scatter", f(3, 8), f(3), 1, 2),
    S("diagonal_scatter", f(4, 4), f(4)),
    S("as_strided_scatter", f(4, 4), f(2, 2), [2, 2], [4, 1]),
    S("put", f(3, 5), torch.tensor([1, 7, 9]), f(3)),
    S("renorm", f(3, 5), 2.0, 0, 1.0),
    S("renorm", f(3, 5, 2), 1.0, -2, 1.0),
]
