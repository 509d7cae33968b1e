"""Pruning before training: the rounds, what collapses, and controls that change something."""

import pytest
import torch
from torch import nn

import prunus
from prunus.core import BudgetError, InputError, Mask
from prunus.masks import FAMOUS, at_init, balanced, collapse, redraw_, safe_sparsity, shuffle
from prunus.recovery.batchnorm import batch_statistics


def mlp(seed: int = 0, bias: bool = False, widths=(6, 16, 12, 4)) -> nn.Module:
    torch.manual_seed(seed)
    layers = [m for a, b in zip(widths, widths[1:]) for m in (nn.Linear(a, b, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def data(n: int = 2) -> list:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 6, generator=g).double(), torch.randint(0, 4, (8,), generator=g)) for _ in range(n)]


def masks(plan):
    return {name: mask.keep for name, mask in plan.masks.items()}


def grads(model, batches):
    loss = torch.cat([nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in batches]).mean()
    return torch.autograd.grad(loss, list(model.parameters()))


def test_snip_of_linear_regression():
    """Score |theta * (2/n) X^T (X theta - y)|."""
    torch.manual_seed(0)
    x, y, net = torch.randn(20, 9).double(), torch.randn(20, 1).double(), nn.Linear(9, 1, bias=False).double()
    model = nn.Sequential(net)
    groups = prunus.tensors(model)
    plan = at_init(model, groups, "snip", density=4 / 9, data=[(x, y)], loss=lambda out, b: (out - b[1]).square())
    w = net.weight.detach()
    expected = (w * (2 / 20 * x.T @ (x @ w.T - y)).T).abs()
    assert torch.equal(masks(plan)["0.weight"], expected >= expected.flatten().sort().values[-4])


@pytest.mark.parametrize("back", [False, True])
def test_iterative_snip_and_force_by_hand(back):
    """Gradients at w * m, times the dense w; FORCE ranks all weights again, iterative SNIP those that are left."""
    model, batches, rounds, density = mlp(), data(), 4, 0.1
    groups = prunus.tensors(model)
    plan = at_init(model, groups, "snip", density=density, rounds=rounds, back=back, data=batches)
    dense = [p.detach().clone() for p in model.parameters()]
    keep, returned = [torch.ones_like(w).bool() for w in dense], 0
    for k in range(1, rounds + 1):
        with torch.no_grad():
            for p, w, m in zip(model.parameters(), dense, keep):
                p.copy_(w * m)
        scores = torch.cat([(w * g).abs().flatten() for w, g in zip(dense, grads(model, batches))])
        flat = torch.cat([m.flatten() for m in keep])
        scores = scores if back else scores.masked_fill(~flat, -1)
        count = int(density ** (k / rounds) * len(scores)) if k < rounds else int(density * len(scores))
        new = torch.zeros_like(flat)
        new[scores.argsort(descending=True)[:count]] = True
        returned += int((new & ~flat).sum())
        keep = [n.view_as(m) for n, m in zip(new.split([m.numel() for m in keep]), keep)]
    assert all(torch.equal(a, b) for a, b in zip(masks(plan).values(), keep))
    assert bool(returned) == back


def test_synflow_sums_are_the_flow_and_survive_where_one_shot_collapses():
    """Without biases the scores of every layer add up to R; iterated, no layer is cut off at a high sparsity."""
    model = mlp(widths=(6, 64, 64, 64, 64, 4))
    groups, shape = prunus.tensors(model), [torch.ones(1, 6)]
    stats = prunus.collect(model, groups, shape, {"flow"})
    sums = torch.stack([s.sum() for s in prunus.score(groups, "synflow", stats).values()])
    flow = torch.ones(1, 6).double()
    for p in model.parameters():
        flow = flow @ p.detach().abs().T
    assert torch.allclose(sums, flow.sum().expand_as(sums), rtol=1e-12)
    density = 0.004
    iterated = at_init(model, groups, "synflow", density=density, rounds=100, data=shape)
    assert not collapse(model, groups, iterated, shape).dead
    once = at_init(model, groups, "synflow", density=density, data=shape)
    assert collapse(model, groups, once, shape).dead


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    g = torch.Generator().manual_seed(0)
    batches = [(3 + torch.randn(8, 2, 5, 5, generator=g), torch.arange(8) % 4)]
    for name, options in FAMOUS.items():
        options = {**options, "rounds": min(options["rounds"], 3)}
        plan = at_init(model, prunus.tensors(model), density=0.2, data=batches, **options)
        kept = sum(int(m.sum()) for m in masks(plan).values())
        assert kept == int(0.2 * (144 + 288)), name
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_the_average_of_the_data_is_a_constant_and_a_batch_of_its_own_is_not():
    """With one batch both normalise alike; the gradients of the first layer differ by what goes through the mean."""
    model, batches = normed(), labelled()[:1]
    groups = prunus.tensors(model)
    data, own = (at_init(model, groups, "snip", density=0.3, data=batches, norms=norms) for norms in ("data", "batch"))
    frozen = normed()
    prunus.recovery.recalibrate_(frozen, batches)
    assert data == at_init(
        frozen, groups_of := prunus.tensors(frozen), "snip", density=0.3, data=batches, norms="running"
    )
    assert own != data and len(groups_of) == 2
    assert (model[1].running_mean == 0).all() and model[1].num_batches_tracked == 0
    with batch_statistics(model):
        x = batches[0][0]
        assert torch.allclose(model.eval()[:2](x).mean((0, 2, 3)), torch.zeros(8).double(), atol=1e-12)
    assert (model[1].running_var == 1).all()


def test_random_masks_keep_exact_counts():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 32, 3, bias=False))
    groups = prunus.tensors(model)
    plan = at_init(model, groups, density=0.1, **FAMOUS["erk"])
    densities = [float(m.double().mean()) for m in masks(plan).values()]
    assert densities == pytest.approx([0.369198, 0.074763], abs=1 / 432)
    assert sum(int(m.sum()) for m in masks(plan).values()) == 504


def test_shuffled_masks_move_and_keep_their_counts():
    model = mlp()
    groups = prunus.tensors(model)
    plan = at_init(model, groups, "l1", density=0.3)
    moved = shuffle(groups, plan, seed=1)
    for name, mask in masks(plan).items():
        assert masks(moved)[name].sum() == mask.sum() and not torch.equal(masks(moved)[name], mask)
    assert moved == shuffle(groups, plan, seed=1) and moved != shuffle(groups, plan, seed=2)


def test_shuffling_keeps_patterns():
    groups = prunus.tensors(nn.Sequential(nn.Linear(16, 8)), "2:4")
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.5))
    moved = masks(shuffle(groups, plan))["0.weight"]
    assert (moved.reshape(-1, 4).sum(1) == 2).all() and not torch.equal(moved, masks(plan)["0.weight"])


def test_redrawn_and_inverted_really_change_something():
    model = mlp()
    groups, before = prunus.tensors(model), [p.detach().clone() for p in model.parameters()]
    best = at_init(model, groups, "l1", density=0.3)
    worst = at_init(model, groups, "l1", density=0.3, invert=True)
    low, high = (torch.cat([p.detach()[masks(plan)[n]].abs() for n, p in model.named_parameters()])
                 for plan in (worst, best))  # fmt: skip
    assert low.max() <= high.min()
    redraw_(groups, seed=3)
    for p, was in zip(model.parameters(), before):
        assert not torch.equal(p, was) and torch.equal(p.detach().flatten().sort()[0], was.flatten().sort()[0])


def test_collapse_names_what_is_cut_off():
    model = mlp(widths=(2, 3, 2, 1))
    groups = prunus.tensors(model)
    keep = {n: torch.ones_like(p).bool() for n, p in model.named_parameters()}
    whole = prunus.Plan(masks={n: Mask.of(k) for n, k in keep.items()})
    assert not collapse(model, groups, whole, [torch.ones(1, 2)])
    keep["2.weight"][:] = False
    keep["2.weight"][0, 0] = True
    keep["0.weight"][0] = False  # the only neuron that is read
    found = collapse(model, groups, prunus.Plan(masks={n: Mask.of(k) for n, k in keep.items()}), [torch.ones(1, 2)])
    assert set(found.dead) == set(keep) and found.emptied == ("2.weight",) and "2.weight" in str(found)


def test_safe_sparsity_is_the_last_before_a_tensor_loses_all():
    model = mlp()
    groups = prunus.tensors(model)
    scores = prunus.score(groups, "l1")
    safe, name = safe_sparsity(groups, scores)
    flat = torch.cat([scores[g.id] for g in groups])
    of = torch.cat([torch.full((g.units,), i) for i, g in enumerate(groups)])
    order, count = flat.argsort(), round(safe * groups.units)
    assert len(of[order[count:]].unique()) == 3 and len(of[order[count + 1 :]].unique()) == 2
    assert groups[int(of[order[count]])].id == name


def test_bad_input_says_what_is_wrong():
    model = mlp()
    groups = prunus.tensors(model)
    with pytest.raises(InputError, match="looks at data"):
        at_init(model, groups, "snip", density=0.5)
    with pytest.raises(InputError, match="rounds"):
        at_init(model, groups, "l1", density=0.5, rounds=0)
    with pytest.raises(BudgetError):
        at_init(model, groups, "l1", density=1e-9)


def labelled(n: int = 40, classes: int = 4) -> list:
    g = torch.Generator().manual_seed(3)
    x, y = 1 + 2 * torch.randn(n, 2, 5, 5, generator=g).double(), torch.randint(0, classes, (n,), generator=g)
    return [(x[: n // 2], y[: n // 2]), (x[n // 2 :], y[n // 2 :])]


def normed() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    return nn.Sequential(*layers).double()


def by_hand(model, batch, sees, temperature: float = 1.0, masked_by=None) -> torch.Tensor:
    """The scores of the papers, in training mode: |w g| (SNIP), or w times the Hessian's product with g (GraSP)."""
    twin = normed().train()
    twin.load_state_dict(model.state_dict())
    own = [twin[0].weight, twin[4].weight]
    dense = [w.detach().clone() for w in own]
    with torch.no_grad():
        for w, m in zip(own, masked_by or []):
            w.mul_(m)
    x, y = batch
    loss = nn.functional.cross_entropy(twin(x) / temperature, y)
    first = torch.autograd.grad(loss, own, create_graph=True)
    if sees == "snip":
        return torch.cat([(w * g).abs().flatten() for w, g in zip(dense, first)]).detach()
    again = torch.autograd.grad(sum((g * g.detach()).sum() for g in first), own)
    return torch.cat([(w * hg).flatten() for w, hg in zip(dense, again)])


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[scores.argsort(descending=True)[:count]] = True
    return keep


@pytest.mark.parametrize(("name", "temperature"), [("snip", 1.0), ("grasp", 200.0)])
def test_snip_and_grasp_are_those_of_the_papers_in_training_mode(name, temperature):
    """One batch of as many samples of every class, its own statistics, through which gradients go; logits / 200."""
    model, batches = normed(), labelled()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    groups = prunus.tensors(model)
    plan = at_init(model, groups, **FAMOUS[name], density=0.1, data=batches)
    count = int(0.1 * groups.units)
    x, y = (torch.cat(part) for part in zip(*batches))
    taken = [[i for i, label in enumerate(y.tolist()) if label == c][:10] for c in range(4)]
    least = min(map(len, taken))
    rows = [i for of in taken for i in of[:least]]
    kept = torch.cat([m.flatten() for m in masks(plan).values()])
    assert 4 <= least < 10 and torch.equal(kept, best(by_hand(model, (x[rows], y[rows]), name, temperature), count))
    for other in ({"norms": "data"}, {"norms": "running"}, {"per_class": None}, {"temperature": 1.0}):
        if other.get("temperature") != temperature:
            changed = at_init(model, groups, **(FAMOUS[name] | other), density=0.1, data=batches)
            assert changed != plan, other
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items()) and model.training


@pytest.mark.parametrize("name", ["iterative-snip", "force"])
def test_iterative_snip_and_force_ask_sixty_times_in_training_mode(name):
    """Densities d^(k/60); FORCE ranks all weights anew, by the dense weight times the gradient under the mask."""
    model, (batch, _) = normed(), labelled()
    groups = prunus.tensors(model)
    plan = at_init(model, groups, **FAMOUS[name], density=0.05, data=[batch])
    keep, returned = torch.ones(groups.units, dtype=torch.bool), 0
    for k in range(1, 61):
        parts = [m.view_as(p) for m, p in zip(keep.split([144, 288]), (model[0].weight, model[4].weight))]
        scores = by_hand(model, batch, "snip", masked_by=parts)
        scores = scores if name == "force" else scores.masked_fill(~keep, -1)
        new = best(scores, int(0.05 ** (k / 60) * groups.units + 1e-9))
        returned, keep = returned + int((new & ~keep).sum()), new
    assert torch.equal(torch.cat([m.flatten() for m in masks(plan).values()]), keep)
    assert bool(returned) == (name == "force")


def test_what_the_papers_ask():
    """SynFlow 100 rounds, GraSP logits over 200, SNIP once, iterative SNIP and FORCE 60 times; 10 samples a class."""
    found = {name: (of["rounds"], of.get("temperature", 1.0), of.get("back", False)) for name, of in FAMOUS.items()}
    assert found == {
        **dict.fromkeys(("snip", "random", "erk", "magnitude"), (1, 1.0, False)),
        "iterative-snip": (60, 1.0, False),
        "force": (60, 1.0, True),
        "grasp": (1, 200.0, False),
        "synflow": (100, 1.0, False),
    }
    assert {name: of["per_class"] for name, of in FAMOUS.items() if "per_class" in of} == {"snip": 10, "grasp": 10}


def test_samples_of_every_class_in_turns():
    x, y = torch.arange(7.0)[:, None], torch.tensor([2, 0, 2, 0, 2, 2, 0])
    both = balanced([(x[:2], y[:2]), (x[2:], y[2:])], 2)
    assert both[0].flatten().tolist() == [1, 0, 3, 2] and both[1].tolist() == [0, 2, 0, 2]
    assert balanced([(x, y)], 9)[1].tolist() == [0, 2] * 3, "as many as the rarest has"
    for bad in ([x], [(x, x)], [(x, y.float())]):
        with pytest.raises(InputError, match="one class a sample"):
            balanced(bad, 2)
    with pytest.raises(InputError, match="no batch"):
        balanced([], 2)
