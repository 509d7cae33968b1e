"""What must hold of the arguments of operators whose kernels trust them: looked at before every call.

Every entry names what goes wrong without it.  On tensors without values (meta, fake) sizes alone are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import InputError
from prunus.core.running import has_values

Guard = Callable[[dict[str, Any]], bool]


def _attention(given: dict[str, Any]) -> bool:
    """The fast kernel on the CPU reads as many values as there are keys."""
    query, key, value = given["query"], given["key"], given["value"]
    sizes = min(query.dim(), key.dim(), value.dim()) >= 2
    return bool(sizes and key.shape[-2] == value.shape[-2] and query.shape[-1] == key.shape[-1])


def _weight_norm(given: dict[str, Any]) -> bool:
    """A magnitude is read for every slice of the weight."""
    v, g, dim = given["v"], given["g"], given["dim"]
    return bool(dim in (0, v.dim() - 1) and g.dim() == v.dim() and g.numel() == v.shape[dim])


def _resized(given: dict[str, Any]) -> bool:
    """Where a pixel is read is computed from the scale, which must be that of the sizes."""
    sizes = given["output_size"]
    scales = [given[k] for k in ("scales", "scales_d", "scales_h", "scales_w") if k in given]
    shape = given["self"].shape[2:]
    if len(scales) != len(sizes) or len(shape) != len(sizes):
        return False
    told = [(n, out, s) for n, out, s in zip(shape, sizes, scales) if s is not None]
    return all(math.isfinite(s) and s > 0 and abs(n * s - out) <= 1.001 for n, out, s in told)


def _sampled(given: dict[str, Any]) -> bool:
    """A mode that is none leaves the output as it found the memory."""
    return given["interpolation_mode"] in (0, 1, 2) and given["padding_mode"] in (0, 1, 2)


def _divided(given: dict[str, Any]) -> bool:
    """The least integer divided by -1 ends the process."""
    a, b = given["self"], given["other"]
    whole = not (a.is_floating_point() or a.is_complex()) and not isinstance(b, float)
    if given.get("rounding_mode") != "trunc" or not whole or a.dtype == torch.bool or not has_values(a):
        return True
    if isinstance(b, Tensor) and (b.is_floating_point() or b.dtype == torch.bool):
        return True
    least = torch.iinfo(torch.promote_types(a.dtype, b.dtype) if isinstance(b, Tensor) else a.dtype).min
    return not bool(((a == least) & (b == -1)).any())


def _ends(given: dict[str, Any]) -> bool:
    """Rows are taken between the ends of groups."""
    ends = given.get("offs")
    if ends is None or not has_values(ends):
        return True
    rows = max(given["self"].shape[-2:])
    ordered = ends.dim() == 1 and bool((ends.diff() >= 0).all())
    return ordered and bool(((ends >= 0) & (ends <= rows)).all())


def _regions(given: dict[str, Any]) -> bool:
    """A region is read where its numbers say, in the picture that it names."""
    pictures, rois = given["input"], given["rois"]
    if rois.dim() != 2 or rois.shape[1] != 5 or pictures.dim() != 4:
        return False
    if not has_values(rois) or not len(rois):
        return True
    reach = 4 * max(pictures.shape[2:]) + 64
    near = bool((rois[:, 1:].abs() * abs(given["spatial_scale"]) <= reach).all())  # also: no NaN
    return near and bool(((rois[:, 0] >= 0) & (rois[:, 0] < len(pictures))).all())


def _offsets(given: dict[str, Any]) -> bool:
    """An offset that is no number passes the kernel's own comparisons."""
    return not has_values(given["offset"]) or bool(torch.isfinite(given["offset"]).all())


_RESIZED = ["bicubic2d", "bilinear2d", "linear1d", "nearest1d", "nearest2d", "nearest3d", "trilinear3d"]
GUARDS: dict[str, Guard] = {
    "aten::scaled_dot_product_attention": _attention,
    "aten::_weight_norm_interface": _weight_norm,
    **{f"aten::upsample_{name}": _resized for name in _RESIZED},
    **{f"aten::_upsample_nearest_exact{n}d": _resized for n in (1, 2, 3)},
    **{f"aten::_upsample_{name}2d_aa": _resized for name in ("bicubic", "bilinear")},
    **{f"aten::{name}": _sampled for name in ("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")},
    **{f"aten::{name}": _divided for name in ("div", "div_", "divide", "divide_")},
    "aten::_grouped_mm": _ends,
    **{f"torchvision::{name}": _regions for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")},
    "torchvision::deform_conv2d": _offsets,
}


def guard_of(func: Any) -> Callable[[Any, Any], None] | None:
    """A function of the arguments that raises `InputError` where the kernel must not have them; None for most.

    >>> aten = torch.ops.aten
    >>> guard_of(aten.add.Tensor) is None
    True
    >>> guard_of(aten.upsample_nearest1d.default)((torch.zeros(1, 1, 4), [8], 1e-300), {})
    Traceback (most recent call last):
    prunus.core.errors.InputError: aten::upsample_nearest1d was given arguments that its kernel must not have: Where...
    """
    schema = func._schema
    holds = GUARDS.get(schema.name)
    modes = holds is _divided and "mode" not in schema.overload_name
    if holds is None or modes or schema.overload_name == "vec":  # of vec, torch computes the sizes itself
        return None

    def check(args: Any, kwargs: Any) -> None:
        given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        given |= dict(zip([a.name for a in schema.arguments], args)) | dict(kwargs)
        if not holds(given):
            raise InputError(
                f"{schema.name} was given arguments that its kernel must not have: {(holds.__doc__ or '').strip()}"
            )

    return check
