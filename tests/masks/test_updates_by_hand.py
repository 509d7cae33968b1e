"""One update of every method that moves masks, computed from its equation in plain lists."""

import math

import pytest
import torch
from torch import nn

import prunus
from prunus.core import InputError, Mask, Plan
from prunus.masks import MaskPruner, methods

LR = 0.1
WEIGHTS = {  # distinct magnitudes, both signs; the second tensor is the larger by far
    "0.weight": [0.9, -0.05, 0.4, 0.31, -0.7, 0.02, 0.15, -0.6, 0.25, 0.8, -0.35, 0.11],
    "1.weight": [2.0, -0.08, 1.4, 0.04, -1.7, 1.2, -0.5, 1.6, 0.3, -1.8, 0.65, 1.1, -0.2, 0.75, 1.5, -0.45],
}
GRADS = {
    "0.weight": [0.1, -0.9, 0.3, 0.05, -0.2, 0.8, -0.7, 0.15, 0.6, -0.4, 0.5, 0.01],
    "1.weight": [-0.02, 0.11, 0.03, -0.12, 0.05, 0.04, -0.06, 0.07, 0.1, -0.01, 0.08, -0.09, 0.13, 0.02, -0.03, 0.14],
}
KEPT = {  # which weights the mask keeps before the update
    "0.weight": [0, 1, 2, 3, 4, 7, 9],
    "1.weight": [0, 1, 2, 4, 5, 7, 8, 9, 11, 13, 14],
}
COUNT = sum(map(len, WEIGHTS.values()))
KEPT_OF_ALL = sum(map(len, KEPT.values()))


class OneStep:
    """A pruner about to make step `step`, of `steps`, at the weights, masks and gradients above."""

    def __init__(self, name, step=10, steps=40, *, density=KEPT_OF_ALL / COUNT, kept=KEPT, sgd_decay=0.0, **options):
        self.model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name_, values in WEIGHTS.items():
                own[name_].copy_(torch.tensor(values, dtype=torch.float64).view_as(own[name_]))
        masks = {n: torch.zeros(p.numel(), dtype=torch.bool) for n, p in own.items()}
        for n, indices in kept.items():
            masks[n][indices] = True
        plan = Plan(masks={n: Mask.of(m.view_as(own[n])) for n, m in masks.items()})
        options = {"density": density, "steps": steps, "plan": plan, **options}
        self.pruner = MaskPruner(self.model, prunus.tensors(self.model), name, **options)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, weight_decay=sgd_decay)
        self.pruner.attach(self.optimizer)
        self.pruner.step = step

    def go(self, grads=GRADS):
        for name, p in self.pruner.covered.parameters.items():
            p.grad = torch.tensor(grads[name], dtype=torch.float64).view_as(p)
        self.draws = {name: self.pruner.moment().draw(name).tolist() for name in WEIGHTS}
        self.optimizer.step()
        return self

    @property
    def kept(self):
        return {n: m.flatten().nonzero().flatten().tolist() for n, m in self.pruner.covered.masks.items()}

    def weights(self, name):
        return self.pruner.covered.parameters[name].flatten().tolist()


def smallest(scores, among, count):
    return sorted(among, key=lambda i: (scores[i], i))[:count]


def largest(scores, among, count):
    return sorted(among, key=lambda i: (-scores[i], i))[:count]


def sizes(values):
    return {n: [abs(v) for v in of] for n, of in values.items()}


def others(name, *taken):
    return [i for i in range(len(WEIGHTS[name])) if not any(i in t for t in taken)]


def exchanged(gone, grown):
    return {n: sorted(set(KEPT[n]) - set(gone[n]) | set(grown[n])) for n in KEPT}


def after_sgd(kept):
    """The weights after a step, of the masks `kept`: what has come starts from zero."""
    return {
        n: [(w if i in KEPT[n] else 0.0) - LR * g if i in kept[n] else 0.0
            for i, (w, g) in enumerate(zip(WEIGHTS[n], GRADS[n]))]
        for n in WEIGHTS
    }  # fmt: skip


@pytest.mark.parametrize("step", [10, 30])
def test_set_drops_three_tenths_of_each_tensor_and_grows_at_random(step):
    one = OneStep("set", step).go()
    gone = {n: smallest(sizes(WEIGHTS)[n], kept, math.floor(0.3 * len(kept))) for n, kept in KEPT.items()}
    grown = {n: largest(one.draws[n], others(n, KEPT[n]), len(gone[n])) for n in KEPT}
    assert {n: len(i) for n, i in gone.items()} == {"0.weight": 2, "1.weight": 3}
    assert one.kept == exchanged(gone, grown)
    for name, expected in after_sgd(one.kept).items():
        assert one.weights(name) == pytest.approx(expected, abs=1e-15)


def test_rigl_grows_by_the_gradient_and_its_step_changes_no_weight():
    """alpha_t = 0.3 / 2 (1 + cos(pi t / T_end)), T_end three quarters of the steps."""
    for step in (10, 20):
        one = OneStep("rigl", step).go()
        alpha = 0.3 / 2 * (1 + math.cos(math.pi * step / 30))
        gone = {n: smallest(sizes(WEIGHTS)[n], kept, math.floor(alpha * len(kept))) for n, kept in KEPT.items()}
        stay = {n: [i for i in kept if i not in gone[n]] for n, kept in KEPT.items()}
        grown = {n: largest(sizes(GRADS)[n], others(n, stay[n]), len(gone[n])) for n in KEPT}
        assert [len(of) for of in gone.values()] == {10: [1, 2], 20: [0, 0]}[step]
        assert one.kept == {n: sorted(stay[n] + grown[n]) for n in KEPT}
        for name, now in one.kept.items():
            both = set(now) & set(KEPT[name])
            assert one.weights(name) == [w if i in both else 0.0 for i, w in enumerate(WEIGHTS[name])]
    assert OneStep("rigl", 30).go().kept == OneStep("rigl", 35).go().kept == KEPT


def test_snfs_shares_by_the_mean_momentum_of_what_stays():
    """v <- 0.9 v + g; drop half at first, falling as a cosine; where the momentum of a tensor is large, more grows."""
    one = OneStep("snfs", 4, steps=20)
    later = {"0.weight": GRADS["0.weight"], "1.weight": [3 * g for g in GRADS["1.weight"]]}
    before = {n: [-g for g in reversed(of)] for n, of in later.items()}
    one.go(before)
    weights = {n: one.weights(n) for n in WEIGHTS}
    assert one.kept == KEPT and one.pruner.step == 5
    one.go(later)
    v = {n: [0.9 * a + b for a, b in zip(before[n], later[n])] for n in GRADS}
    alpha = 0.5 / 2 * (1 + math.cos(math.pi * 5 / 20))
    gone = {n: smallest(sizes(weights)[n], kept, math.floor(alpha * len(kept))) for n, kept in KEPT.items()}
    stay = {n: [i for i in kept if i not in gone[n]] for n, kept in KEPT.items()}

    def shared(weight):
        exact = {n: 6 * weight[n] / sum(weight.values()) for n in weight}
        assert all(abs(x - round(x)) < 0.4 for x in exact.values()), "any rounding agrees"
        return {n: round(x) for n, x in exact.items()}

    sums = {n: sum(abs(v[n][i]) for i in stay[n]) for n in stay}
    counts = shared({n: sums[n] / len(stay[n]) for n in stay})
    assert sum(map(len, gone.values())) == 6 and counts != {n: len(gone[n]) for n in gone} and counts != shared(sums)
    assert all(counts[n] <= len(others(n, stay[n])) for n in counts)
    grown = {n: largest(sizes(v)[n], others(n, stay[n]), counts[n]) for n in KEPT}
    assert one.kept == {n: sorted(stay[n] + grown[n]) for n in KEPT}


@pytest.mark.parametrize(
    ("threshold", "fraction", "factor", "counts"),
    [
        (0.2, None, 0.5, [1, 1]),  # 6 and 10 survive: 0.75 and 1.25
        (0.2, 0.102, 1.0, [1, 1]),
        (0.2, 0.123, 1.0, [1, 1]),
        (0.2, 0.124, 2.0, [1, 1]),
        (0.06, None, 2.0, [0, 1]),  # 6 and 11
        (0.5, None, 0.5, [2, 3]),  # 4 and 9: 1.5 and 3.5
        (0.75, None, 0.5, [2, 5]),  # 2 and 9: 1.3 and 5.7, and room for 5
    ],
)
def test_dsr_drops_below_one_threshold_which_adapts_and_shares_by_survivors(threshold, fraction, factor, counts):
    """Of 18 that are kept 2 lie below 0.2: within a tenth of what is wanted for fractions from 0.101 to 0.123."""
    one = OneStep("dsr", threshold=threshold, **({} if fraction is None else {"fraction": fraction})).go()
    gone = {n: [i for i in kept if abs(WEIGHTS[n][i]) < threshold] for n, kept in KEPT.items()}
    stay = {n: [i for i in kept if i not in gone[n]] for n, kept in KEPT.items()}
    assert sum(map(len, gone.values())) == sum(counts)
    assert float(one.pruner.memory["threshold"]) == threshold * factor
    grown = {n: largest(one.draws[n], others(n, KEPT[n]), count) for n, count in zip(KEPT, counts)}
    assert one.kept == {n: sorted(stay[n] + grown[n]) for n in KEPT}


def test_dsr_starts_from_a_threshold_of_a_thousandth():
    one = OneStep("dsr").go()
    assert float(one.pruner.memory["threshold"]) == 2e-3, "nothing went: it is doubled"
    assert [t for t in range(41) if one.pruner.method.when(t)] == [5, 10, 15, 20, 25, 30, 35]


def test_dsr_gives_an_emptied_tensor_one_weight_first():
    """All three of the first tensor lie below 1, and one of the second: 4 grow, one in the first, 3 by survivors."""
    kept = {"0.weight": [1, 3, 7], "1.weight": [0, 1, 2, 4, 5, 7]}
    one = OneStep("dsr", kept=kept, threshold=1.0).go()
    assert len(one.kept["0.weight"]) == 1 and not set(one.kept["0.weight"]) & set(kept["0.weight"])
    assert len(one.kept["1.weight"]) == 5 + 3
    kept = {"0.weight": [], "1.weight": KEPT["1.weight"]}
    alone = OneStep("dsr", kept=kept, threshold=0.1).go()
    assert [len(of) for of in alone.kept.values()] == [1, len(kept["1.weight"]) - 1], "the only one that went"


def test_an_emptied_tensor_comes_back_by_momentum_too():
    kept = {"0.weight": [], "1.weight": KEPT["1.weight"]}
    one = OneStep("snfs", 5, steps=20, kept=kept).go()
    assert one.kept["0.weight"] == [1], "where the momentum is largest"


MEST = {5: 0.2, 20: 0.2, 25: 0.1, 30: 0.0}  # of 40 steps: milestones at 22 and 30


@pytest.mark.parametrize("step", [5, 20, 25])
def test_mest_prunes_by_weight_and_gradient_and_grows_back_at_random(step):
    one = OneStep("mest", step, slope=0.5).go()
    scores = {n: [abs(w) + 0.5 * abs(g) for w, g in zip(WEIGHTS[n], GRADS[n])] for n in WEIGHTS}
    counts = {n: math.floor(MEST[step] * len(kept)) for n, kept in KEPT.items()}
    gone = {n: smallest(scores[n], kept, counts[n]) for n, kept in KEPT.items()}
    assert counts == ({"0.weight": 1, "1.weight": 2} if MEST[step] == 0.2 else {"0.weight": 0, "1.weight": 1})
    by_weight = {n: smallest(sizes(WEIGHTS)[n], kept, counts[n]) for n, kept in KEPT.items()}
    assert MEST[step] < 0.2 or gone != by_weight, "the slope decides"
    grown = {n: largest(one.draws[n], others(n, KEPT[n]), counts[n]) for n in KEPT}
    assert one.kept == exchanged(gone, grown)
    for name, expected in after_sgd(one.kept).items():
        assert one.weights(name) == pytest.approx(expected, abs=1e-15)


def test_mest_moves_at_its_milestones_and_not_after():
    """The authors' schedule: 9/16 and 3/4 of the steps, and masks stay from there on."""
    method = OneStep("mest").pruner.method
    assert [t for t in range(41) if method.when(t)] == [5, 10, 15, 20, 25]
    plain = OneStep("mest", 20).go()
    gone = {n: smallest(sizes(WEIGHTS)[n], kept, int(0.2 * len(kept))) for n, kept in KEPT.items()}
    assert {n: sorted(set(KEPT[n]) - set(of)) for n, of in plain.kept.items()} == gone, "no slope by default"


def test_mest_with_a_soft_bound_grows_above_the_budget_and_ends_at_it():
    """EM&S: grow to n (1 + f), prune to n, the highest of all that is there; at the last milestone back to n."""
    one = OneStep("mest", 5, soft=True).go()
    grown = {n: largest(one.draws[n], others(n, KEPT[n]), math.floor(0.2 * len(KEPT[n]))) for n in KEPT}
    first = {n: sorted(KEPT[n] + grown[n]) for n in KEPT}
    assert one.kept == first and {n: len(i) for n, i in grown.items()} == {"0.weight": 1, "1.weight": 2}
    one.pruner.step = 25
    now = {n: sizes({n: one.weights(n)})[n] for n in KEPT}
    one.go()
    stay = {n: largest(now[n], first[n], len(KEPT[n])) for n in KEPT}
    grown = {n: largest(one.draws[n], others(n, first[n]), math.floor(0.1 * len(KEPT[n]))) for n in KEPT}
    assert one.kept == {n: sorted(stay[n] + grown[n]) for n in KEPT}
    one.pruner.step = 30
    assert one.pruner.method.when(30) and not OneStep("mest").pruner.method.when(30)
    one.go()
    assert {n: len(of) for n, of in one.kept.items()} == {n: len(of) for n, of in KEPT.items()}
    with pytest.raises(InputError, match="fractions"):
        OneStep("mest", fractions=(0.2, 0.1))


def test_surgery_splices_by_mean_and_deviation_with_hysteresis():
    """t = mean + c std of |w|; below 0.9 t out, above 1.1 t in, between as it was; all weights train by feedback."""
    one = OneStep("dns", 0, rate=-0.2).go()
    expected = {}
    for n, of in sizes(WEIGHTS).items():
        mean = sum(of) / len(of)
        t = max(mean - 0.2 * math.sqrt(sum((x - mean) ** 2 for x in of) / len(of)), 0)
        expected[n] = [i for i, x in enumerate(of) if x > 1.1 * t or (x > 0.9 * t and i in KEPT[n])]
        between = [i for i, x in enumerate(of) if 0.9 * t < x <= 1.1 * t]
        assert between and set(expected[n]) != set(KEPT[n])
        assert float(one.pruner.memory[f"threshold {n}"]) == pytest.approx(t, rel=1e-12)
    assert one.kept == expected
    for n in WEIGHTS:
        dense = [w - LR * g for w, g in zip(WEIGHTS[n], GRADS[n])]
        assert one.pruner.covered.dense[n].flatten().tolist() == pytest.approx(dense, abs=1e-15)
        assert one.weights(n) == pytest.approx([w if i in expected[n] else 0 for i, w in enumerate(dense)], abs=1e-15)


def test_surgery_between_the_thresholds_depends_on_the_mask():
    for n, of in sizes(WEIGHTS).items():
        kept = {**KEPT, n: KEPT[n]}
        one = OneStep("dns", 0, rate=0.0, kept=kept)
        one.pruner.memory[f"threshold {n}"] = torch.tensor(of[3], dtype=torch.float64)  # of[3] itself lies between
        inside = one.go().kept[n]
        kept = {**KEPT, n: sorted(set(KEPT[n]) ^ {3})}
        other = OneStep("dns", 0, rate=0.0, kept=kept)
        other.pruner.memory[f"threshold {n}"] = torch.tensor(of[3], dtype=torch.float64)
        assert (3 in inside) == (3 in KEPT[n]) and (3 in other.go().kept[n]) != (3 in inside)


@pytest.mark.parametrize(("value", "stays", "comes"), [(0.91, 1, 0), (0.9, 0, 0), (1.1, 1, 0), (1.11, 1, 1)])
def test_surgery_has_its_two_thresholds_at_nine_and_eleven_tenths(value, stays, comes):
    for kept, expected in (([0, 1], stays), ([1], comes)):
        one = OneStep("dns", 0, rate=0.0, kept={**KEPT, "0.weight": kept})
        one.pruner.memory["threshold 0.weight"] = torch.tensor(1.0, dtype=torch.float64)
        one.pruner.covered.dense["0.weight"].view(-1)[:2] = torch.tensor([value, 2.0], dtype=torch.float64)
        assert (0 in one.go().kept["0.weight"]) == bool(expected)


def test_surgery_without_a_rate_starts_from_the_density():
    """t is the quantile of |w| that leaves 0.75, so that a quarter of the weights, and those near it, go."""
    one = OneStep("dns", 0, density=0.75).go()
    for n, of in sizes(WEIGHTS).items():
        t = sorted(of)[int(0.25 * (len(of) - 1))]
        assert one.pruner.memory[f"threshold {n}"].item() == t


def test_surgery_comes_ever_more_rarely():
    """At step t with probability (1 + gamma t)^-power, until three quarters of the steps."""
    steps = 4000
    for gamma, power in ((0.01, 1.0), (0.01, 2.0)):
        when = methods["dns"].call(0.5, steps, gamma=gamma, power=power).when
        made, chances = [t for t in range(steps) if when(t)], [(1 + gamma * t) ** -power for t in range(3000)]
        off = 4 * math.sqrt(sum(p * (1 - p) for p in chances))
        assert abs(len(made) - sum(chances)) < off and max(made) < 3000 and made[0] == 0
    usual = methods["dns"].call(0.5, steps).when
    assert 2400 < sum(usual(t) for t in range(3000)) < 2800, "by default 1 / (1 + 1e-4 t): 2,624 are expected"


def test_gmp_removes_the_smallest_of_each_tensor_by_the_cubic_and_none_comes_back():
    """s_t = s_f (1 - (1 - t / T)^3) of every tensor, T three quarters of the steps; hard masks."""
    one = OneStep("gmp", 15, density=0.25, every=5).go()
    share = 1 - 0.75 * (1 - (1 - 15 / 30) ** 3)
    for n, of in sizes(WEIGHTS).items():
        stay = largest(of, KEPT[n], math.floor(share * len(of)))
        assert one.kept[n] == sorted(stay) and len(stay) < len(KEPT[n])
    for name, expected in after_sgd(one.kept).items():
        assert one.weights(name) == pytest.approx(expected, abs=1e-15)
    method = one.pruner.method
    assert [t for t in range(41) if method.when(t)] == [5, 10, 15, 20, 25, 30]
    early = OneStep("gmp", 5, density=0.25, every=5).go()  # the schedule would leave more than there are
    assert early.kept == KEPT


def test_dpf_keeps_the_largest_of_the_network_and_trains_what_is_masked():
    """Masks by global magnitude of the dense weights, w <- w - eta g(w * m) of all."""
    kept = {**KEPT, "1.weight": [i for i in KEPT["1.weight"] if i != 9]}
    one = OneStep("dpf", 15, density=0.25, every=5, kept=kept).go()
    count = math.floor((1 - 0.75 * (1 - (1 - 15 / 30) ** 3)) * COUNT)
    ranked = sorted(((abs(w), n, i) for n in WEIGHTS for i, w in enumerate(WEIGHTS[n])), reverse=True)[:count]
    expected = {n: sorted(i for _, of, i in ranked if of == n) for n in WEIGHTS}
    assert one.kept == expected and 9 in expected["1.weight"], "it came back"
    for n in WEIGHTS:
        dense = [w - LR * g for w, g in zip(WEIGHTS[n], GRADS[n])]
        assert one.pruner.covered.dense[n].flatten().tolist() == pytest.approx(dense, abs=1e-15)
        assert one.weights(n) == pytest.approx([w if i in expected[n] else 0 for i, w in enumerate(dense)], abs=1e-15)
    method = OneStep("dpf", steps=400).pruner.method
    assert [t for t in range(400) if method.when(t)][:3] == [16, 32, 48], "every 16 steps"


@pytest.mark.parametrize(("asymptotic", "gone"), [(False, 3), (True, 2)])
def test_soft_filters_are_zero_when_chosen_and_train_on(asymptotic, gone):
    """Three quarters of the filters of every tensor, those with the smallest norms; ASFP a half of that as yet."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
    for n, p in model.named_parameters():
        p.data = torch.tensor(WEIGHTS[n], dtype=torch.float64).view_as(p)
    groups = prunus.tensors(model, "filter")
    assert [(g.units, g.slices[0].index.shape[1]) for g in groups] == [(4, 3), (4, 4)]
    pruner = MaskPruner(model, groups, "sfp", density=0.25, steps=80, every=5, asymptotic=asymptotic)
    assert [t for t in range(81) if pruner.method.when(t)] == [*range(5, 80, 5), 79]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    pruner.attach(optimizer)
    pruner.step = 5
    norms = {n: [sum(w * w for w in row) for row in p.tolist()] for n, p in model.named_parameters()}
    out = {n: smallest(of, range(4), gone) for n, of in norms.items()}
    for turn in range(2):
        for n, p in model.named_parameters():
            p.grad = torch.tensor(GRADS[n], dtype=torch.float64).view_as(p)
        optimizer.step()
        for n, p in model.named_parameters():
            assert [bool(p[i].any()) for i in range(4)] == [i not in out[n] or turn == 1 for i in range(4)]
    for n, p in model.named_parameters():
        gradient = torch.tensor(GRADS[n], dtype=torch.float64).view_as(p)
        lengths = gradient.norm(dim=1)
        usual = lengths[[i for i in range(4) if i not in out[n]]].mean()
        for i in out[n]:
            expected = -LR * gradient[i] * min(1.0, float(usual / lengths[i]))
            assert torch.allclose(p[i], expected, atol=1e-15), "no longer than the others on average"


def test_soft_filters_that_were_zero_come_back_when_they_have_grown():
    model = nn.Sequential(nn.Linear(1, 4, bias=False)).double()
    for weights, kept in (([1.0, 2.0, 3.0, 4.0], [2, 3]), ([5.0, 1.0, 3.0, 2.0], [0, 2])):
        model[0].weight.data = torch.tensor(weights, dtype=torch.float64).view(4, 1)
        pruner = MaskPruner(model, prunus.tensors(model, "filter"), "sfp", density=0.5, steps=80, every=5)
        pruner.keep[:] = torch.tensor([False, False, True, True])  # as it was chosen before
        assert pruner.method.update(pruner.moment())["0.weight"].nonzero().flatten().tolist() == kept


def test_asymptotic_soft_filters_follow_the_curve_of_the_paper():
    """P = 0.3: 0.225, 0.2813 and 0.2988 after an eighth, a quarter and half of the way."""
    model = nn.Sequential(nn.Linear(1, 10000, bias=False))
    options = {"density": 0.7, "steps": 200, "asymptotic": True}
    pruner = MaskPruner(model, prunus.tensors(model, "filter"), "sfp", **options)
    for pruner.step, share in ((25, 0.225), (50, 0.2813), (100, 0.2988), (200, 0.3)):
        kept = pruner.method.update(pruner.moment())["0.weight"]
        assert 1 - float(kept.double().mean()) == pytest.approx(share, abs=1.1e-4)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_str_moves_weights_and_threshold_by_the_chain_rule():
    """w~ = sign(w) relu(|w| - sigma(s)); ds = -sigma'(s) sum sign(w) dw~ over what is above, plus the decay of s."""
    everything = {n: list(range(len(of))) for n, of in WEIGHTS.items()}
    one = OneStep("str", 0, kept=everything, initial=-1.0, decay=0.01).go()
    s, t = -1.0, sigmoid(-1.0)
    for n, of in WEIGHTS.items():
        above = [i for i, w in enumerate(of) if abs(w) > t]
        slope = -t * (1 - t) * sum(math.copysign(1, of[i]) * GRADS[n][i] for i in above)
        new = s - LR * (slope + 0.01 * s)
        assert one.pruner.covered.thresholds[n].item() == pytest.approx(new, rel=1e-12)
        dense = [w - LR * g * (i in above) for i, (w, g) in enumerate(zip(of, GRADS[n]))]
        assert one.pruner.covered.dense[n].flatten().tolist() == pytest.approx(dense, abs=1e-15)
        shown = [math.copysign(max(abs(w) - sigmoid(new), 0), w) for w in dense]
        assert one.weights(n) == pytest.approx(shown, abs=1e-15)
    usual = OneStep("str", 0, kept=everything)
    assert all(s.item() == -5 for s in usual.pruner.covered.thresholds.values())
    assert usual.optimizer.param_groups[-1]["weight_decay"] == 5e-4


def slope_of_step(x):
    return 2 - 4 * abs(x) if abs(x) <= 0.4 else 0.4 if abs(x) <= 1 else 0.0


def test_dst_moves_weights_and_thresholds_by_its_slope_of_a_step():
    """Forward w [|w| > t]; d step / dx = 2 - 4 |x| up to 0.4, 0.4 up to 1; the penalty alpha exp(-t) pushes t up."""
    everything = {n: list(range(len(of))) for n, of in WEIGHTS.items()}
    one = OneStep("dst", 0, kept=everything, strength=0.3)
    rows = {n: len(p) for n, p in one.pruner.covered.parameters.items()}
    start = 0.3
    with torch.no_grad():
        for t in one.pruner.covered.thresholds.values():
            assert t.tolist() == [0.0] * len(t)
            t.fill_(start)
    one.go()
    for n, of in WEIGHTS.items():
        width = len(of) // rows[n]
        slopes = [slope_of_step(abs(w) - start) for w in of]
        dense, thresholds = [], []
        for w, g, h in zip(of, GRADS[n], slopes):
            dense.append(w - LR * g * ((abs(w) > start) + w * h * math.copysign(1, w)))
        for row in range(rows[n]):
            at = range(row * width, (row + 1) * width)
            pull = -sum(GRADS[n][i] * of[i] * slopes[i] for i in at) - 0.3 * math.exp(-start)
            thresholds.append(start - LR * pull)
        assert one.pruner.covered.dense[n].flatten().tolist() == pytest.approx(dense, abs=1e-14)
        assert one.pruner.covered.thresholds[n].tolist() == pytest.approx(thresholds, abs=1e-14)
        shown = [w if abs(w) > thresholds[i // width] else 0.0 for i, w in enumerate(dense)]
        assert one.weights(n) == pytest.approx(shown, abs=1e-14)
    usual = OneStep("dst", 0, kept=everything, sgd_decay=0.1).go({n: [0.0] * len(of) for n, of in WEIGHTS.items()})
    moved = [float(t) for s in usual.pruner.covered.thresholds.values() for t in s.detach()]
    assert moved == pytest.approx([LR * 1e-6] * 8, rel=1e-9), "alpha = 1e-6 alone pushes"
    assert usual.optimizer.param_groups[-1]["weight_decay"] == 0


@pytest.mark.parametrize("name", ["rigl", "set", "snfs", "dsr", "mest"])
def test_short_trainings_move_masks_and_weights_or_are_refused(name):
    for steps in range(4, 60):
        method = methods[name].call(0.5, steps)
        moves = [t for t in range(steps) if method.when(t)]
        assert moves and (not method.skip or len(moves) <= steps / 2), "most steps train"
    with pytest.raises(InputError, match="never move"):
        methods[name].call(0.5, 40, every=40)
    with pytest.raises(InputError, match="never move"):
        methods[name].call(0.5, 1)
    if methods[name].call(0.5, 40).skip:
        with pytest.raises(InputError, match="every=2 or more"):
            methods[name].call(0.5, 40, every=1)
