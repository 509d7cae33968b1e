"""Operators by those that torch chooses them for: same kernel, same result, on every device, with arguments checked.

torch's own Python code calls an operator such as ``batch_norm``, which checks its arguments, and it calls a kernel such
as ``native_batch_norm``, which trusts them.  The second is what a recording meets, the first what a file may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunus.core.allowed import find
from prunus.surgery.graph import Step, refs

_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit")
_FILLED = {"empty": "zeros", "empty_like": "zeros_like", "new_empty": "new_zeros", "empty_permuted": "zeros"}
_FILLED |= {"empty_strided": "zeros", "new_empty_strided": "new_zeros"}
_SCALED = ("backward", "ortho", "forward")  # how a transform is scaled: not, by the root, by the number
_UNSCALED = ("forward", "ortho", "backward")  # the inverse, for which torch's names count the other way


def portable(step: Step, used: list[bool], shapes: Mapping[Any, tuple[int, ...]]) -> Step:
    """The step as it may be written down; `used`: which outputs anything reads, `shapes` of tensors where known."""
    base = step.op.split(".")[1]
    given = {a.name: v for a, v in zip(find(step.op)._schema.arguments, step.args)} | dict(step.kwargs)
    if base in ("view", "_unsafe_view", "_reshape_alias") and step.op != "aten.view.dtype":
        return replace(step, op="aten.reshape.default", args=step.args[:2])
    if base in _FILLED:
        keep = 1 + (base.startswith("new_"))
        given_back = {k: v for k, v in step.kwargs.items() if k != "memory_format" or base == "empty_like"}
        return replace(step, op=f"aten.{_FILLED[base]}.default", args=step.args[:keep], kwargs=given_back)
    if base in ("_fft_c2c", "_fft_r2c", "_fft_c2r"):
        return _transform(step, base, given)
    if any(used[1:]) or not step.outs:
        return step
    one = replace(step, outs=step.outs[:1], shapes=step.shapes[:1])
    if base in _NORMS and not step.op.endswith("no_stats"):
        return replace(one, op="aten.batch_norm.default", args=(*step.args[:8], True))
    if base == "_native_batch_norm_legit_no_training":
        return replace(one, op="aten.batch_norm.default", args=(*step.args[:5], False, *step.args[5:7], True))
    if base == "native_group_norm":
        x, weight, bias = step.args[:3]
        return replace(one, op="aten.group_norm.default", args=(x, given["group"], weight, bias, given["eps"], True))
    if base == "_fused_rms_norm":
        return replace(one, op="aten.rms_norm.default", args=step.args[:4])
    if base.startswith("_scaled_dot_product") and not base.endswith("math"):
        return _attention(one, given, shapes)
    return step


def _attention(step: Step, given: Mapping[str, Any], shapes: Mapping[Any, tuple[int, ...]]) -> Step:
    mask = given.get("attn_mask", given.get("attn_bias"))
    args = (*step.args[:3], mask, given.get("dropout_p", 0.0), given.get("is_causal", False))
    kwargs = {"scale": given.get("scale")}
    query, key = (shapes.get(refs(step.args[i])[0], ()) for i in (0, 1))
    if query[1:2] != key[1:2]:  # heads of keys and values are shared
        kwargs["enable_gqa"] = True
    return replace(step, op="aten.scaled_dot_product_attention.default", args=args, kwargs=kwargs)


def _transform(step: Step, base: str, given: Mapping[str, Any]) -> Step:
    """A Fourier transform by dimensions: the last of real to complex is the one that is halved."""
    x, dims, scale = step.args[:3]
    if base == "_fft_c2c":
        name, names = ("fft_fftn", _SCALED) if given["forward"] else ("fft_ifftn", _UNSCALED)
        return replace(step, op=f"aten.{name}.default", args=(x, None, dims, names[scale]), kwargs={})
    if base == "_fft_r2c":
        if not given["onesided"]:
            return replace(step, op="aten.fft_fftn.default", args=(x, None, dims, _SCALED[scale]), kwargs={})
        return replace(step, op="aten.fft_rfftn.default", args=(x, None, dims, _SCALED[scale]), kwargs={})
    sizes = [*[-1] * (len(dims) - 1), given["last_dim_size"]]  # -1: as it is
    return replace(step, op="aten.fft_irfftn.default", args=(x, sizes, dims, _UNSCALED[scale]), kwargs={})
