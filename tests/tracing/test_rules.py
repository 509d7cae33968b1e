"""Every rule against the operator itself: narrowed operands give narrowed results, and probing finds the same maps."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from prunus.tracing.probe import learn
from prunus.tracing.rules.base import RULES
from tests.tracing import samples_joins, samples_points, samples_products, samples_reductions, samples_views
from tests.tracing.sampling import Followed, Sample, follow, operands, run

TABLES = (samples_points, samples_views, samples_joins, samples_products, samples_reductions)
SAMPLES: list[Sample] = [sample for table in TABLES for sample in table.SAMPLES]
for _k, _sample in enumerate(SAMPLES):
    _sample.id = f"{_sample.op}-{_k}"
GPU, MKLDNN = "a kernel of GPUs only", "its operands have a memory layout of their own"
COMPILED = "the compiled part of torchvision is not there beside every torch"
UNCALLABLE = {
    "cudnn_batch_norm": GPU,
    "miopen_batch_norm": GPU,
    "_scaled_dot_product_cudnn_attention": GPU,
    "_scaled_dot_product_efficient_attention": GPU,
    "_scaled_dot_product_flash_attention": GPU,
    "_scaled_dot_product_fused_attention_overrideable": "torch has no kernel for it but those of other devices",
    "mkldnn_max_pool2d": MKLDNN,
    **dict.fromkeys(("prim::device", "prim::dtype", "prim::layout"), "it gives no tensor"),
    "mkldnn_max_pool3d": MKLDNN,
    "mkldnn_adaptive_avg_pool2d": MKLDNN,
    "torchvision::deform_conv2d": COMPILED,
    "torchvision::nms": COMPILED,
    "torchvision::ps_roi_align": COMPILED,
    "torchvision::ps_roi_pool": COMPILED,
    "torchvision::roi_align": COMPILED,
    "torchvision::roi_pool": COMPILED,
}
CLOSE = {torch.bfloat16: 0.1, torch.float32: 1e-5}
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.id)


def masks(found: Followed, number: int, only: set[int] | None = None) -> list[np.ndarray]:
    """Random choices of atoms that empty no operand."""
    rng, count, out = np.random.default_rng(0), found.tracer.labels.count, []
    for _ in range(200):
        keep = np.repeat(rng.random(count) < rng.choice([0.4, 0.7]), found.sample.step)[:count]
        if only is not None:
            keep |= ~np.isin(np.arange(count), list(only))
        tensors = operands(found.sample)
        dims = [(dim, n) for x, of in zip(tensors, found.before) for dim, n in zip(of, x.shape) if n]
        if all(len(found.alive(dim, n, keep)) for dim, n in dims) and found.balanced(keep):
            out.append(keep)
        if len(out) == number:
            break
    return out


followed = lru_cache(None)(follow)


@lru_cache(None)
def maps(sample: Sample) -> dict:
    """The index maps that running the operator shows."""
    places = [(k, d) for k, x in enumerate(operands(sample)) for d, n in enumerate(x.shape) if n > 1]
    return learn(sample.func, sample.args, sample.kwargs, places)


def atoms(found: Followed, place: tuple[int, int]) -> set[int]:
    k, d = place
    rows = found.resolved(found.before[k][d], operands(found.sample)[k].shape[d])
    return set(rows[rows >= 0].tolist())


def agree(found: Followed, keep: np.ndarray, values: bool) -> bool:
    """The operator on narrowed operands gives the narrowed result; whether the values, too, were compared or agree."""
    sample, tensors = found.sample, operands(found.sample)
    whole = run(sample, found.silenced(tensors, keep))
    part = run(sample, found.narrowed(tensors, found.before, keep), found.facts(keep))
    assert [len(of) for of in found.after] == [x.dim() for x in whole]
    same = True
    for x, y in zip(found.narrowed(whole, found.after, keep), part, strict=True):
        assert x.shape == y.shape
        same &= torch.allclose(y, x, rtol=1e-9, atol=CLOSE.get(y.dtype, 1e-9), equal_nan=True)
    assert same or not values
    return same


def agree_beside(found: Followed) -> None:
    """Units that pass by themselves are exact also beside units that are taken together."""
    sample, learnt = found.sample, maps(found.sample)
    alone = set().union(*(atoms(found, place) for place in learnt))
    places = [(k, d) for k, x in enumerate(operands(sample)) for d in range(x.dim()) if (k, d) not in learnt]
    alone -= set().union(*(atoms(found, place) for place in places))
    for keep in masks(found, 3, alone) if alone else ():
        agree(found, keep, values=sample.defined)


def agree_permuted(found: Followed) -> None:
    """Permuted units give permuted results: the labels of a norm or a softmax are not shifted or reversed."""
    sample, tensors = found.sample, operands(found.sample)
    rng = np.random.default_rng(0)
    for place in [(k, d) for k, x in enumerate(tensors) for d in range(x.dim())]:
        free = np.array(sorted(atoms(found, place)), np.int64)
        move = np.arange(found.tracer.labels.count)
        move[free] = rng.permutation(free)
        orders = [permuted(found, x, of, move) for x, of in zip(tensors, found.before)]
        results = [permuted(found, x, of, move) for x, of in zip(run(sample, tensors), found.after)]
        if all(x is not None for x in orders + results):
            for x, y in zip(results, run(sample, orders), strict=True):
                assert torch.allclose(y, x, equal_nan=True)


def permuted(found: Followed, x: torch.Tensor, dims: list, move: np.ndarray) -> torch.Tensor | None:
    """Row i becomes the row whose units are those that row i's units move to; None where there is no such row."""
    for d, dim in enumerate(dims):
        rows = found.resolved(dim, x.shape[d])
        where = {tuple(sorted(row)): k for k, row in enumerate(rows.tolist())}
        if rows.shape[1] == 0 or len(where) < len(rows):
            continue
        order = [where.get(tuple(sorted(np.where(row < 0, row, move[row]).tolist()))) for row in rows]
        if None in order:
            return None
        x = x.index_select(d, torch.tensor(order))
    return x


@every_sample
def test_narrowed_operands_give_narrowed_results(sample):
    found = followed(sample)
    chosen = masks(found, 6)
    assert chosen
    same = [agree(found, keep, values=sample.defined and not found.call.over) for keep in chosen]
    if found.call.over:
        assert not all(same), "units are said to be taken together, but are not"
        agree_beside(found)
    if found.call.over and sample.defined and not sample.ordered:
        agree_permuted(found)


@every_sample
def test_labels_are_the_index_maps_that_running_it_shows(sample):
    found, learnt = followed(sample), maps(sample)
    careful = set()
    for (k, d), places in learnt.items():
        rows = found.resolved(found.before[k][d], operands(sample)[k].shape[d])
        if (rows < 0).all(1).any():
            careful.add((k, d))
            continue
        for o, e, source in places:
            passed = found.resolved(found.after[o][e], len(source))
            for column in rows.T:
                assert (passed == column[source.numpy()][:, None]).any(1)[column[source.numpy()] >= 0].all()
    assert careful == set(sample.careful)


def test_every_rule_has_a_sample():
    sampled = {sample.name for sample in SAMPLES}
    sampled |= {name.rstrip("_") for name in sampled}
    assert set(RULES) - sampled == set(UNCALLABLE)
