"""Calls of convolutions, matrix products, attention and linear algebra."""

from __future__ import annotations

import torch

from tests.tracing.sampling import S, Sample, b, f, i, p

ends = torch.arange(1, 9, dtype=torch.int32)
spd = (lambda a: a @ a.mT + 4 * torch.eye(4, dtype=torch.float64))(f(3, 4, 4))
boxes = torch.tensor([[0, 0.0, 0.0, 3.0, 3.0], [1, 1.0, 0.0, 4.0, 3.0]], dtype=torch.float64)


def conv(x, w, bias=None, stride=1, transposed=False, groups=1, op="convolution", **more):
    n = w.dim() - 2
    tail = (False, False, False, False) if op == "_convolution" else ()
    args = (x, w, bias, [stride] * n, [0] * n, [1] * n, transposed, [0] * n, groups, *tail)
    return S(op, *args, silent=(1,), **more)


steps, states = f(3, 2, 5).float(), (f(2, 4).float(), f(2, 4).float())
weights = (f(16, 5).float(), f(16, 4).float(), f(16).float(), f(16).float())
recurrent = (steps, *weights, *states, False, [], 2, 4, 1, True, False, False, False)


SAMPLES: list[Sample] = [
    conv(f(2, 3, 6), f(5, 3, 2)),
    conv(f(2, 3, 6, 5), f(5, 3, 2, 2), f(5), stride=2),
    conv(f(2, 3, 4, 3, 3), f(4, 3, 2, 1, 2), f(4), careful=[(0, 3)]),
    conv(f(2, 6, 5, 4), f(9, 2, 2, 2), f(9), groups=3),
    conv(f(2, 6, 5, 4), f(6, 1, 2, 2), f(6), groups=6),
    conv(f(2, 3, 5, 4), f(6, 1, 2, 2), groups=3),
    conv(f(2, 3, 5, 4), f(3, 5, 2, 2), f(5), transposed=True),
    conv(f(2, 6, 5, 4), f(6, 4, 2, 2), f(8), transposed=True, groups=2),
    conv(f(2, 4, 5, 4), f(4, 1, 2, 2), f(4), transposed=True, groups=4),
    conv(f(2, 3, 6, 5), f(5, 3, 1, 1), op="_convolution", careful=[(0, 2), (0, 3)]),
    S("conv2d", f(2, 4, 6, 5), f(6, 2, 2, 2), f(6), [1, 1], [1, 1], [1, 1], 2, silent=(1,), composite=True),
    S("conv_transpose2d.input", f(2, 4, 6, 5), f(4, 3, 2, 2), f(3), silent=(1,), composite=True),
    S("linear", f(2, 3, 5), f(4, 5), f(4), silent=(1,), composite=True),
    S("linear", f(3, 5), f(4, 5), silent=(1,), composite=True),
    S("matmul", f(2, 3, 5), f(5, 4), silent=(1,), composite=True),
    S("mm", f(3, 5), f(5, 4), silent=(1,)),
    S("addmm", f(4), f(3, 5), f(5, 4), silent=(2,)),
    S("addmm", f(3, 4), f(3, 5), f(5, 4), silent=(2,), beta=0.5, alpha=2),
    S("addmm", f(3, 1), f(3, 5), f(5, 4), silent=(2,)),
    S("addmm_", f(3, 4), f(3, 5), f(5, 4), silent=(2,)),
    S("_addmm_activation", f(4), f(3, 5), f(5, 4), silent=(2,)),
    S("bmm", f(2, 3, 5), f(2, 5, 4), silent=(1,)),
    S("baddbmm", f(2, 3, 4), f(2, 3, 5), f(2, 5, 4), silent=(2,)),
    S("baddbmm", f(2, 1, 4), f(2, 3, 5), f(2, 5, 4), silent=(1,), beta=0.5),
    S("_sparse_addmm", f(4), f(3, 5), f(5, 4), beta=1, alpha=2, silent=(2,)),
    S("_trilinear", f(2, 5), f(4, 5, 3), f(2, 3), [1, 3], [0], [1, 2], [2, 3], silent=(1,)),
    S("addbmm", f(3, 4), f(2, 3, 5), f(2, 5, 4), silent=(1, 2)),
    S("mv", f(3, 5), f(5), silent=(1,)),
    S("dot", f(5), f(5), silent=(1,)),
    S("vdot", f(5), f(5), silent=(1,)),
    S("addmv", f(3), f(3, 5), f(5), silent=(2,)),
    S("addr", f(3, 4), f(3), f(4)),
    S("addr", f(4), f(3), f(4), beta=2),
    S("_scaled_dot_product_flash_attention_for_cpu", f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 8), scale=0.3),
    S(
        "_scaled_dot_product_flash_attention_for_cpu",
        *(f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 8)),
        attn_mask=f(2, 1, 4, 5),
        scale=0.3,
    ),
    S("_scaled_dot_product_attention_math", f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 6), scale=0.3, composite=True),
    S(
        "_scaled_dot_product_attention_math",
        *(f(2, 6, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 8)),
        scale=0.3,
        enable_gqa=True,
        composite=True,
    ),
    S("scaled_dot_product_attention", f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 8), b(4, 5), scale=0.3, composite=True),
    S("_grouped_mm", f(8, 16).bfloat16(), f(8, 16, 16).bfloat16(), ends, silent=(1,), step=8),
    S("mkldnn_rnn_layer", *recurrent, silent=(1,)),
    S("_cdist_forward", f(2, 3, 5), f(2, 4, 5), 2.0, None),
    S("_euclidean_dist", f(3, 5), f(4, 5)),
    S("_pdist_forward", f(4, 5)),
    S("cosine_similarity", f(3, 5), f(3, 5), 1, composite=True),
    S("linalg_cross", f(4, 3), f(4, 3)),
    S("linalg_cross", f(3, 4), f(3, 1), dim=0),
    S("linalg_inv_ex", spd),
    S("linalg_cholesky_ex", spd),
    S("_linalg_solve_ex", spd, f(3, 4, 2)),
    S("linalg_solve_triangular", spd.tril(), f(3, 4, 2), upper=False, careful=[(1, 2)]),
    S("_linalg_svd", f(3, 4, 5)),
    S("_linalg_eigh", spd),
    S("linalg_eig", f(3, 4, 4)),
    S("linalg_eigvals", f(3, 4, 4), composite=True),
    S("_linalg_eigvals", f(3, 4, 4)),
    S("linalg_lu", f(3, 4, 4)),
    S("cholesky", spd),
    S("cholesky_inverse", spd),
    S("cholesky_solve", f(3, 4, 2), spd, careful=[(0, 2)]),
    S("geqrf", f(3, 5, 4)),
    S("triangular_solve", f(3, 4, 2), spd),
    S("_linalg_solve_ex", spd, f(3, 4)),
    S("linalg_qr", f(3, 5, 4)),
    S("_linalg_det", spd),
    S("_linalg_slogdet", spd),
    S("linalg_lu_factor_ex", spd),
    S("linalg_matrix_exp", spd),
    S("linalg_pinv.atol_rtol_tensor", f(3, 5, 4)),
    S("_fft_r2c", f(3, 8), [1], 0, True),
    S("_fft_c2c", torch.complex(f(3, 8), f(3, 8)), [1], 0, True),
    S("_fft_c2r", torch.complex(f(3, 5), f(3, 5)), [1], 0, 8),
    S("grid_sampler_2d", f(2, 3, 4, 5), f(2, 6, 3, 2) / 3, 0, 0, False, careful=[(1, 1), (1, 2)]),
    S("grid_sampler_3d", f(2, 3, 4, 5, 3), f(2, 2, 6, 3, 3) / 3, 0, 0, True, careful=[(1, 1), (1, 2), (1, 3)]),
    S("affine_grid_generator", f(2, 2, 3), [2, 3, 4, 5], False),
    S("embedding", f(7, 5), i(7, 2, 3)),
    S("embedding", f(7, 5), i(7, 4), 0),
    S("_embedding_bag_forward_only", f(7, 5), i(7, 6), torch.tensor([0, 2]), False, 0),
    S("_embedding_bag", f(7, 5), i(7, 6), torch.tensor([0, 2]), False, 1),
    S("glu", f(3, 8)),
    S("glu", f(2, 6, 4), 1),
    S("_weight_norm_interface", f(4, 3, 2), p(4, 1, 1)),
    S("_weight_norm_interface", f(4, 3, 2), p(1, 1, 2), 2),
    S("_masked_softmax", f(2, 3, 4, 4), b(4, 4), None, 0),
    S("mse_loss", f(3, 5), f(3, 5), 0),
    S("mse_loss", f(3, 5), f(3, 5)),
    S("smooth_l1_loss", f(3, 5), f(3, 5), 0),
    S("huber_loss", f(3, 5), f(3, 5)),
    S("binary_cross_entropy", torch.sigmoid(f(3, 5)), torch.sigmoid(f(3, 5)), None, 0),
    S("binary_cross_entropy_with_logits", f(3, 5), torch.sigmoid(f(3, 5)), None, p(5), 0),
    S("soft_margin_loss", f(3, 5), f(3, 5).sign(), 0),
    S("nll_loss_forward", f(3, 5), i(5, 3), None, 1, -100),
    S("nll_loss2d_forward", f(2, 5, 3, 4), i(5, 2, 3, 4), p(5), 0, -100),
]
