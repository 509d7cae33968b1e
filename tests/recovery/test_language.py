"""Repair of language models: the head and tied tensors stay, giant rows do not decide, memory is bounded."""

import copy
import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.core import Budget
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.recovery import compensate_, lost, moments, prepare, repair, repair_, solvable, targets
from prunus.recovery.moments import RIDGES, Moments, chosen_ridge, least_squares, shares
from prunus.surgery import give_biases_

WORDS, WIDTH, INNER = 40, 8, 24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    """Words, blocks, a norm and a head, tied or not; a running mean of the words after the first is the attention."""

    def __init__(self, blocks=3, tied=True, words=WORDS) -> None:
        super().__init__()
        self.words = nn.Embedding(words, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(blocks)])
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, words, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x):
        x = self.words(x)
        x = x + (x.cumsum(1) - x[:, :1]) / torch.arange(1, x.shape[1] + 1)[:, None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def language(**options) -> nn.Module:
    torch.manual_seed(0)
    return Language(**options).eval()


def tokens(n: int, seed: int = 1, words: int = WORDS) -> torch.Tensor:
    return torch.randint(0, words, (n, 12), generator=torch.Generator().manual_seed(seed))


def cut(net, x, biases=False, **options):
    """The first half of the inner units of every block is gone; what was asked of the repair, and what it said."""
    groups = prunus.trace(net, x[:2], only="blocks")
    keep = torch.ones(groups.units, dtype=torch.bool)
    for group in groups:
        keep[group.offset : group.offset + group.units // 2] = False
    plan = groups.plan(keep)
    if biases:
        give_biases_(net, groups, plan)
        groups = prunus.trace(net, x[:2], only="blocks")
    wanted = (lost if biases else targets)(net, groups, [x], plan=plan, **options)
    report = prunus.shrink_(net, groups, plan)
    return report.model, prunus.trace(report.model, x[:2]), plan, wanted


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["least-squares", "bias"])
def test_the_head_of_a_vocabulary_and_tied_tensors_stay_to_the_bit(tied, method):
    net, x, fresh = language(tied=tied), tokens(60), tokens(40, seed=2)
    whole, words, head = copy.deepcopy(net), net.words.weight.detach().clone(), net.head.weight.detach().clone()
    plain = copy.deepcopy(net)
    calls = []
    net.head.register_forward_hook(lambda *args: calls.append(1))
    options = {"budget": Budget(macs=0.75), "only": "blocks"}
    report = prunus.prune_(net, x[:2], data=[x], repair=method, **options)
    assert any(note.startswith("3 layers" if method == "bias" else "9 layers") for note in report.notes)
    assert torch.equal(net.words.weight, words) and torch.equal(net.head.weight, head)
    assert (net.head.weight is net.words.weight) == tied and net.head.bias is None
    bare = prunus.prune_(plain, x[:2], **options).model
    error = [(one(fresh) - whole(fresh)).square().mean() for one in (report.model, bare)]
    assert error[0] < (0.6 if method == "least-squares" else 1) * error[1]


def test_scores_of_all_words_are_never_computed_by_the_repair():
    net, x = language(), tokens(20)
    seen = []
    cut_, groups, plan, wanted = cut(net, x)
    cut_.head.register_forward_hook(lambda *args: seen.append(1))
    assert repair_(cut_, groups, plan, wanted).layers == 9 and not seen
    again = language()
    again.head.register_forward_hook(lambda *args: seen.append(1))
    groups = prunus.trace(again, x[:2])
    seen.clear()
    targets(again, groups, [x])
    assert not seen


def test_a_last_layer_is_a_head_only_if_it_has_a_number_for_every_row_of_an_embedding():
    for net, of in ((language(), True), (language(tied=False), True), (nn.Sequential(nn.Linear(4, 40)), False)):
        example = torch.randn(2, 4) if isinstance(net, nn.Sequential) else tokens(2)
        groups = prunus.trace(net, example)
        read = solvable.parameters_read(net, groups.operators)
        last = max(i for i, op in enumerate(groups.operators) if op.macs is not None and read[i])
        assert solvable.head_of_a_vocabulary(groups.operators, read, last) is of
    inner = language(words=INNER)  # the feed-forward layers are as wide as the vocabulary, and lie before others
    groups = prunus.trace(inner, tokens(2, words=INNER))
    chosen = solvable.solvable(inner, groups, 2, 1 << 30)
    assert len(chosen.rows) == 9 and chosen.left == ("words.weight",)


def test_parameters_that_show_the_same_memory_are_tied():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
    net[2].weight = nn.Parameter(net[0].weight.data)
    chosen = solvable.solvable(net, prunus.trace(net, torch.randn(2, 6)), 2, 1 << 30)
    assert chosen.left == ("0.weight", "2.weight") and len(chosen.rows) == 1


def test_giant_rows_count_as_much_as_the_median_row_and_all_others_whole():
    rows = torch.tensor([[1.0, 1], [1, -1], [2, 0], [14, 14], [15, 15], [0, 0]])  # mean squares 1 1 2 196 225 0
    assert moments.GIANT == 100
    assert shares(rows).tolist() == pytest.approx([1, 1, 1, 1, 2 / 225, 1])
    assert shares(torch.zeros(3, 2)).tolist() == [1, 1, 1]


def test_weighted_least_squares_is_that_of_numpy_on_scaled_rows():
    generator = torch.Generator().manual_seed(0)
    x, t, a = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((1, 50, 4), (50, 3), (50,)))
    weight, bias = least_squares(x, t, torch.zeros(1, 3, 4).double(), ridge=0, share=a)
    rows = np.concatenate([x[0].numpy(), np.ones((50, 1))], 1) * np.sqrt(a.numpy())[:, None]
    expected = np.linalg.lstsq(rows, t.numpy() * np.sqrt(a.numpy())[:, None], rcond=None)[0]
    np.testing.assert_allclose(weight[0].numpy(), expected[:4].T, rtol=1e-9)
    np.testing.assert_allclose(bias.numpy(), expected[4], rtol=1e-9)
    weight, bias = least_squares(x, t, torch.zeros(1, 3, 4).double(), ridge=0, share=a, intercept=False)
    expected = np.linalg.lstsq(rows[:, :4], t.numpy() * np.sqrt(a.numpy())[:, None], rcond=None)[0]
    np.testing.assert_allclose(weight[0].numpy(), expected.T, rtol=1e-9)
    assert bias.tolist() == [0, 0, 0]


def test_the_ridge_is_relative_to_the_mean_of_the_weighted_diagonal_and_draws_to_the_prior():
    x = torch.tensor([[[1.0, 0], [0, 3]]], dtype=torch.float64)  # with shares 1 and 3: diagonal 1/4, 27/4, mean 3.5
    t, prior = torch.tensor([[1.0], [6.0]]).double(), torch.tensor([[[5.0, 7.0]]]).double()
    share = torch.tensor([1.0, 3.0])
    weight, _ = least_squares(x, t, prior, ridge=0.1, intercept=False, share=share)
    assert weight.flatten().tolist() == pytest.approx([(0.25 + 0.35 * 5) / 0.6, (13.5 + 0.35 * 7) / 7.1])


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("noise", [0, 0.5, 3.0, 30.0])
def test_the_ridge_is_the_one_by_which_held_out_rows_are_met_best(noise, intercept):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    prior, x, share = drawn(2, 3, 12), drawn(2, 60, 12), drawn(60).square()
    real = prior + 0.7 * drawn(2, 3, 12) / 12**0.5
    t = torch.cat(list(x @ real.mT), 1) + noise * drawn(60, 6) + (5 if intercept else 0)
    fit, held = Moments(), Moments()
    fit.add(x[:, :20], t[:20], share[:20])
    held.add(x[:, 20:], t[20:], share[20:])
    errors, none = [], (share[20:, None] * t[20:].square()).sum()
    for each in RIDGES:
        weight, bias = least_squares(x[:, :20], t[:20], prior, ridge=each, share=share[:20], intercept=intercept)
        given = torch.cat(list(x[:, 20:] @ weight.mT), 1) + bias
        errors.append(float((share[20:, None] * (given - t[20:]).square()).sum()))
        assert held.error(weight, bias) == pytest.approx(errors[-1] - float(none), rel=1e-9, abs=1e-7)
    found = chosen_ridge(fit, held, prior, intercept=intercept)
    assert found == RIDGES[errors.index(min(errors))] and (found < 0.01) == (noise == 0)
    fit.join(held)
    whole = least_squares(x, t, prior, ridge=found, share=share, intercept=intercept)
    torch.testing.assert_close(fit.solve(prior, ridge=found, intercept=intercept), whole)


def test_ridges_are_tried_from_the_largest_which_is_taken_where_nothing_is_held_out():
    assert RIDGES == (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3)
    fit = Moments()
    fit.add(torch.ones(1, 3, 1), torch.zeros(3, 1))
    assert chosen_ridge(fit, Moments(), torch.ones(1, 1, 1).double()) == 10
    found = repair.held_out(40).nonzero()[:, 0].tolist()  # pieces of two rows, every fifth
    assert found == [8, 9, 18, 19, 28, 29, 38, 39] and not len(repair.held_out(0))


def test_a_layer_is_solved_on_all_rows_with_the_ridge_that_held_out_rows_chose():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).double(), torch.randn(40, 6).double()
    groups = prunus.trace(net, x[:1])
    plan, prior = groups.plan(torch.arange(16) < 8), net[2].weight.detach()[None, :, :8].clone()
    wanted = targets(net, groups, [x], plan=plan)
    t, inner = net(x).detach(), net[:2](x)[:, :8].detach()[None]
    done = prunus.shrink_(net, groups, plan).model
    repair_(done, prunus.trace(done, x[:1]), plan, wanted)
    out, found = torch.arange(40) // 2 % 5 == 4, []
    for ridge in RIDGES:
        weight, bias = least_squares(inner[:, ~out], t[~out], prior, ridge=ridge)
        found.append((float((inner[0, out] @ weight[0].T + bias - t[out]).square().sum()), ridge))
    assert 1e-3 < min(found)[1] < 10
    weight, bias = least_squares(inner, t, prior, ridge=min(found)[1])
    torch.testing.assert_close(done[2].weight, weight[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(done[2].bias, bias, rtol=1e-5, atol=1e-6)


def giants():
    """A network in which two units of one block, one of them cut, write numbers a thousand times as large as all others
    where a text begins: its first word, and nothing else, has a number in the last channel."""
    net = language()
    with torch.no_grad():
        net.words.weight[:, -1] = 0
        net.words.weight[0, -1] = 3
        for unit in (0, INNER - 1):
            net.blocks[1].gate.weight[unit] = net.blocks[1].up.weight[unit] = 0
            net.blocks[1].gate.weight[unit, -1] = net.blocks[1].up.weight[unit, -1] = 50
            net.blocks[1].down.weight[:-1, unit] = torch.randn(WIDTH - 1, generator=torch.Generator().manual_seed(unit))
        for block in net.blocks:
            block.down.weight[-1] = 0
    return net


@pytest.mark.parametrize("method", ["least-squares", "bias"])
def test_giant_rows_do_not_decide(method, monkeypatch):
    x, fresh = tokens(80).clamp(min=1), tokens(60, seed=3).clamp(min=1)
    x[:, 0] = fresh[:, 0] = 0
    whole, bias = giants(), method == "bias"
    with torch.no_grad():
        inner = whole.blocks[0](whole.words(x))
        made = (whole.blocks[1](inner) - inner).square().mean(2)
    assert made[:, 0].min() > 1e6 * made[:, 1:].max()

    def error(repaired):
        net, groups, plan, wanted = cut(giants(), x, biases=bias)
        if repaired:
            compensate_(net, groups, wanted) if bias else repair_(net, groups, plan, wanted)
        with torch.no_grad():
            return float((net(fresh) - whole(fresh))[:, 1:].square().mean())

    repaired, bare = error(True), error(False)
    assert repaired < (0.98 if bias else 0.8) * bare
    monkeypatch.setattr(moments, "GIANT", 1e12)
    assert error(True) > 1.1 * repaired


def test_what_is_kept_fits_in_memory_and_layers_that_lose_inputs_come_first():
    def kept(memory):
        chosen = solvable.solvable(net, groups, 30, memory, plan)
        assert sum(4 * rows * groups.operators[i].shapes[0][1] for i, rows in chosen.rows.items()) <= memory
        return list(chosen.rows.values()), chosen.notes

    net, x = language(), tokens(60)
    groups = prunus.trace(net, x[:2], only="blocks")
    plan = groups.plan(torch.arange(groups.units) % 2 == 0)
    rows = 60 * 12
    need, rest = 3 * 4 * rows * WIDTH, 3 * 4 * rows * 2 * INNER
    assert kept(need + rest) == ([rows] * 9, ())
    assert sorted(kept(need + rest // 2)[0]) == [rows // 2] * 6 + [rows] * 3
    few = rest * solvable.ENOUGH * WIDTH / rows
    assert len(kept(int(need + few) + 300)[0]) == 9
    found, notes = kept(int(need + few) - 300)
    assert found == [rows] * 3 and "6 layers that read nothing that was removed stay as they were" in notes[0]
    assert kept(need // 2)[0] == [rows // 2] * 3
    wanted = targets(net, groups, [x], plan=plan, memory=need // 2)
    assert 0 < sum(4 * v.numel() for v in wanted.values.values()) <= need // 4 and wanted.inputs.batch < 60
    assert len(wanted.notes) == 2 and "6 layers" in wanted.notes[1]
    assert lost(net, groups, [x], plan, memory=need // 2).notes == wanted.notes[:1]  # biases are of layers that lose


def test_data_may_be_longer_than_the_example():
    net, x = language(), tokens(60)
    wanted = targets(net, prunus.trace(net, x[:2, :4], only="blocks"), [x])
    assert {len(rows) for rows in wanted.values.values()} == {60 * 12}


def test_one_layer_is_solved_at_a_time_and_no_stream_outlives_its_sum(monkeypatch):
    net, groups, plan, wanted = cut(language(blocks=4), tokens(40))
    alive, most, live = weakref.WeakSet(), [], []

    class Counted(Moments):
        __hash__ = object.__hash__

        def __init__(self, squares=True):
            gc.collect()
            super().__init__(squares)
            alive.add(self)
            most.append(len(alive))

    class Watched(repair.Behind):
        def after(self, *args):
            super().after(*args)
            live.append(len(self.live))

    monkeypatch.setattr(repair, "Moments", Counted)
    monkeypatch.setattr(repair, "Behind", Watched)
    done = repair_(net, groups, plan, wanted)
    assert done.layers == 12 == len(most) / 2 and max(most) == 2 and max(live) == 1


def test_rows_are_counted_in_pieces(monkeypatch):
    found = []
    for at_once in (10_000, 7):
        monkeypatch.setattr(repair, "AT_ONCE", at_once)
        net, groups, plan, wanted = cut(language(), tokens(30))
        repair_(net, groups, plan, wanted)
        found.append(net(tokens(5)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


MODELS = os.environ.get("PRUNUS_MODELS")


@pytest.mark.skipif(MODELS is None or not Path(MODELS, "smollm2").is_dir(), reason="no language model here")
def test_smollm2_gains_by_least_squares_and_biases_do_little():
    declare_torchvision_operators()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, shared = Path(MODELS, "smollm2"), Path(os.environ.get("PRUNUS_SHARED", "../shared"))
    text = AutoTokenizer.from_pretrained(folder)

    def windows(part, count):
        ids = torch.tensor(text((shared / f"data/wikitext2/{part}.txt").read_text()[:200_000])["input_ids"])
        return ids[: len(ids) // 128 * 128].reshape(-1, 128)[:count]

    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    x, fresh, found = windows("valid", 24), windows("test", 6), {}
    part = "model.layers.1?.mlp.*"  # the massive activations are made in one of them
    traced = prunus.trace(whole, x[:1, :8], only=part)
    for method in (None, "bias", "least-squares"):
        net = copy.deepcopy(whole)
        groups = traced.bind(net)
        plan = groups.plan(torch.arange(groups.units) % 8 > 1)
        if method == "bias" and give_biases_(net, groups, plan):
            groups = prunus.trace(net, x[:1, :8], only=part)
        mend = prepare(method, net, groups, plan, [x]) if method else None
        net = prunus.shrink_(net, groups, plan, verify=False).model
        if mend is not None:
            mend(net, prunus.trace(net, x[:1, :8], in_place=False))
        assert torch.equal(net.model.embed_tokens.weight, whole.model.embed_tokens.weight)
        with torch.no_grad():
            scores = net(fresh).logits[:, :-1]
        found[method] = float(F.cross_entropy(scores.flatten(0, 1), fresh[:, 1:].flatten()))
    assert found["least-squares"] < found[None] - 0.02 and found["bias"] < found[None] + 0.01
