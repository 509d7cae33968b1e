"""The harness of `tests.security.kernels` sees kernels that read too far, and none among those listed."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.security.kernels import killed

aten = torch.ops.aten
X, W = torch.randn(2, 4, 6, 6), torch.ones(4)
TRUSTING = {
    aten.native_batch_norm.default: [((X, W, W, W, W, True, 0.1, 1e-5), {})],
    aten._weight_norm_interface.default: [((torch.randn(5, 3), torch.randn(5, 1), 0), {})],
    aten._upsample_bilinear2d_aa.default: [((X, [9, 9], False, 1.5, 1.5), {})],
}
CHECKED = {
    aten.batch_norm.default: [((X, W, W, W, W, True, 0.1, 1e-5, True), {})],
    aten._weight_norm_interface.default: TRUSTING[aten._weight_norm_interface.default],
    aten._upsample_bilinear2d_aa.default: TRUSTING[aten._upsample_bilinear2d_aa.default],
    aten.index_select.default: [((X, 1, torch.tensor([0, 3])), {})],
    aten.gather.default: [((X, 1, torch.zeros(2, 3, 6, 6, dtype=torch.int64)), {})],
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="pages that nobody may touch are made as on Linux")


@linux
@pytest.mark.parametrize("func", TRUSTING, ids=str)
def test_kernels_that_trust_their_arguments_are_seen(func):
    assert killed(func, TRUSTING[func], 150, looked_at=False)


@linux
@pytest.mark.parametrize("func", CHECKED, ids=str)
def test_listed_operators_stay_inside(func):
    assert killed(func, CHECKED[func], 150) == []
