"""Every operator that a file may name: those of ATen known to stay inside their storages whatever they are given.

A name stands for all its overloads that take and give plain tensors and numbers, and for its in-place variant; none
with an output argument.  Kernels of what is listed check sizes, dimensions and indices themselves; where one trusts an
argument, `guards.py` has the check.  Operators that trust more are recorded as those that torch's own Python code
calls, which check first (`tidy.py`): ``native_batch_norm`` as ``batch_norm``, ``native_group_norm`` as ``group_norm``,
``_reshape_alias`` as ``reshape``, kernels of attention as ``scaled_dot_product_attention``, memory without values as
zeros.  Never listed: what gives or resizes raw memory (``as_strided``, ``set_``, ``resize_``), formats that are not
dense, files, global state, and kernels that trust their arguments (``segment_reduce``, ``_ctc_loss``,
``embedding_bag``, ``fractional_max_pool``, recurrent layers as one operator, whatever is named unsafe).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch

MEMORY = "the same memory in another shape"  # in place, these would change what the caller holds
FAMILIES = {
    "one value from values at the same place": """
        abs acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and bitwise_left_shift
        bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min clip complex
        conj_physical copysign cos cosh deg2rad digamma div divide elu eq erf erfc erfinv exp exp2 expm1 fill
        float_power floor floor_divide fmax fmin fmod frac ge gelu greater greater_equal gt hardshrink hardsigmoid
        hardswish hardtanh heaviside hypot i0 isfinite isinf isnan isneginf isposinf ldexp le leaky_relu lerp less
        less_equal lgamma log log10 log1p log2 log_sigmoid log_sigmoid_forward logaddexp logaddexp2 logical_and
        logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg
        negative nextafter not_equal polar positive pow prelu _prelu_kernel rad2deg reciprocal relu relu6 remainder
        round rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink special_bessel_j0
        special_bessel_j1 special_entr special_erfcx special_expit special_i0e special_i1 special_i1e special_log_ndtr
        special_ndtr special_ndtri special_xlog1py sqrt square sub subtract tan tanh threshold true_divide trunc where
        xlogy zero __and__ __or__ __xor__ __lshift__ __rshift__""",
    "a dimension becomes one value, or is put in order": """
        _log_softmax _safe_softmax _softmax all amax amin aminmax any argmax argmin argsort count_nonzero cummax
        cummin cumprod cumsum diff dist glu kthvalue linalg_vector_norm log_softmax logcumsumexp logsumexp max mean
        median min mode nanmean nanmedian nansum norm prod softmax sort std std_mean sum topk trace var var_mean""",
    "products": """
        _cdist_forward _grouped_mm _trilinear addbmm addmm addmv addr baddbmm bilinear bmm cdist cosine_similarity dot
        inner linalg_cross linear matmul mm mv outer pairwise_distance vdot""",
    "convolutions": """
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution""",
    "norms": """
        _weight_norm_interface batch_norm group_norm instance_norm layer_norm native_layer_norm rms_norm""",
    "pools": """
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d
        max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices""",
    MEMORY: """
        _conj adjoint alias broadcast_to chunk detach diagonal dsplit expand expand_as flatten hsplit imag mH mT
        matrix_H movedim narrow numpy_T permute ravel real reshape reshape_as select slice split split_with_sizes
        squeeze swapaxes swapdims t tensor_split transpose unbind unflatten unfold unsafe_chunk unsafe_split
        unsafe_split_with_sizes unsqueeze view view_as view_as_complex view_as_real vsplit""",
    "the same values elsewhere": """
        _to_copy cat channel_shuffle clone col2im concat constant_pad_nd contiguous copy diag_embed diagonal_scatter
        dstack flip fliplr flipud hstack im2col lift_fresh lift_fresh_copy meshgrid native_channel_shuffle pad
        pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d
        replication_pad2d replication_pad3d resolve_conj resolve_neg roll rot90 select_scatter slice_scatter stack
        tile to tril triu type_as vstack""",
    "places given by values": """
        argwhere bucketize embedding gather index index_add index_copy index_fill index_put index_select isin
        masked_scatter masked_select nonzero scatter scatter_add scatter_reduce searchsorted take take_along_dim
        _unique2""",
    "new tensors": """
        arange eye full full_like linspace logspace new_full new_ones new_zeros ones ones_like scalar_tensor
        tril_indices triu_indices zeros zeros_like""",
    "random numbers": """
        bernoulli dropout exponential feature_dropout geometric log_normal multinomial native_dropout normal rand
        rand_like randint randint_like randn randn_like random randperm rrelu_with_noise uniform""",
    "cells of recurrent layers, on graphics cards": "_thnn_fused_gru_cell _thnn_fused_lstm_cell",
    "attention": "scaled_dot_product_attention",
    "pictures": """
        _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
        _upsample_nearest_exact3d affine_grid_generator grid_sampler grid_sampler_2d grid_sampler_3d
        upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
        upsample_nearest3d upsample_trilinear3d""",
    "losses": """
        binary_cross_entropy binary_cross_entropy_with_logits cross_entropy_loss huber_loss kl_div l1_loss mse_loss
        nll_loss nll_loss2d_forward nll_loss_forward smooth_l1_loss soft_margin_loss""",
    "frequencies": """
        fft_fft fft_fft2 fft_fftn fft_fftshift fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_irfft fft_irfft2
        fft_irfftn fft_rfft fft_rfft2 fft_rfftn""",
}
VIEWS = frozenset(FAMILIES[MEMORY].split())
ATEN = frozenset(name for names in FAMILIES.values() for name in names.split())
TORCHVISION = frozenset(("deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"))
_TYPES = re.compile(
    r"(Optional\[)?(List\[(Optional\[)?)?(Tensor|int|float|bool|number|complex|str|Device|Generator|Layout|ScalarType"
    r"|MemoryFormat|SymInt)(\])*"
)


@cache
def find(name: str) -> Any:
    """The overload of a name, of ATen or torchvision, whether a file may call it or not; None when there is none."""
    parts = name.split(".")
    if len(parts) != 3 or not all(re.fullmatch(r"[A-Za-z0-9_]+", part) for part in parts):
        return None
    return overload(*parts) if parts[0] in ("aten", "torchvision") else None


def listed(func: Any) -> bool:
    """Whether a file may call an overload.

    >>> aten = torch.ops.aten
    >>> listed(aten.add_.Tensor), listed(aten.add.out), listed(aten.transpose.int), listed(aten.transpose_.default)
    (True, False, True, False)
    """
    space, base = func._schema.name.split("::")
    if space == "torchvision":
        return base in TORCHVISION
    if base not in ATEN:
        base = base.removesuffix("_")
        if base not in ATEN or base in VIEWS:
            return False
    given_back = [a for a in func._schema.arguments if a.kwarg_only and a.alias_info is not None]
    return space == "aten" and not given_back and _plain(func)


def overload(space: str, base: str, which: str) -> Any:
    """An overload of an operator; None when there is none."""
    try:
        found = getattr(getattr(getattr(torch.ops, space), base), which)
    except (AttributeError, RuntimeError):
        return None
    return found if isinstance(found, torch._ops.OpOverload) else None


def _plain(func: Any) -> bool:
    """Whether it takes tensors, numbers and names alone, and gives a tensor."""
    schema = func._schema
    if not all(_TYPES.fullmatch(str(a.type)) for a in schema.arguments):
        return False
    return any("Tensor" in str(r.type) for r in schema.returns)
