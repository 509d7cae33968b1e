"""Hard masks: zero through every step of every optimizer, and in files."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.masks import release_
from tests.hand_built import batches, residual

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, many: int = 2) -> None:
    for x, y in batches(many):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def masked(model: nn.Module, density: float = 0.3, **settings):
    groups = prunus.tensors(model)
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=density))
    return groups, prunus.mask_(model, groups, plan, **settings)


def zeros(model: nn.Module, plan: prunus.Plan) -> bool:
    parameters = dict(model.named_parameters())
    return all(bool((parameters[name][~mask.keep] == 0).all()) for name, mask in plan.masks.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_survive_momentum_and_weight_decay_from_before(name):
    model, _ = residual()
    optimizer = OPTIMIZERS[name](model.parameters())
    step(model, optimizer)  # momentum that would move them
    _, report = masked(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(3):
        step(model, optimizer)
        assert zeros(model, report.plan)
    parameters = dict(model.named_parameters())
    for id, mask in report.plan.masks.items():
        p = parameters[id]
        assert (p.grad[~mask.keep] == 0).all()
        assert (p[mask.keep] != before[id][mask.keep]).all(), "kept weights train"
        for value in optimizer.state[p].values():
            if value.shape == p.shape:
                assert (value[~mask.keep] == 0).all()


def test_training_with_masks_is_training_of_the_masked_weights():
    model, _ = residual()
    groups, report = masked(model)
    twin, _ = residual()
    twin.load_state_dict(model.state_dict())
    optimizers = [OPTIMIZERS["sgd"](m.parameters()) for m in (model, twin)]
    for _ in range(3):
        step(model, optimizers[0], 1)
        step(twin, optimizers[1], 1)
        with torch.no_grad():
            for name, p in twin.named_parameters():
                if name in report.plan.masks:
                    p.mul_(report.plan.masks[name].keep)
                    for value in optimizers[1].state[p].values():
                        value.mul_(report.plan.masks[name].keep)
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b)


def test_plain_gradient_steps_keep_them_too_and_release_lets_go():
    model, _ = residual()
    _, report = masked(model)
    for _ in range(2):
        (x, y), *_ = batches()
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    assert zeros(model, report.plan)
    release_(model)
    step(model, OPTIMIZERS["sgd"](model.parameters()))
    assert not zeros(model, report.plan)


def test_the_state_dict_keeps_its_keys_and_a_file_its_zeros(tmp_path):
    model, _ = residual()
    keys = list(model.state_dict())
    groups, report = masked(model)
    assert list(model.state_dict()) == keys and [n for n, _ in model.named_buffers()] == [
        n for n, _ in residual()[0].named_buffers()
    ]
    prunus.save(model, tmp_path / "m.safetensors")
    again = prunus.load(tmp_path / "m.safetensors", lambda: residual()[0])
    assert zeros(again, report.plan)
    fresh = prunus.tensors(again)
    found = fresh.plan(fresh.alive_weights())
    assert found.masks == report.plan.masks, "the zeros tell the masks"
    prunus.mask_(again, fresh, found)
    step(again, OPTIMIZERS["adamw"](again.parameters()))
    assert zeros(again, report.plan)


def test_a_copy_has_the_zeros_and_can_be_held():
    model, _ = residual()
    _, report = masked(model)
    other = copy.deepcopy(model)
    assert zeros(other, report.plan)
    prunus.mask_(other, prunus.tensors(other), report.plan)
    step(other, OPTIMIZERS["sgd"](other.parameters()))
    assert zeros(other, report.plan)


def test_not_a_number_times_zero_is_zero_and_frozen_weights_are_masked():
    model, _ = residual()
    groups = prunus.tensors(model)
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[0] = False
    groups[0].slices[0].tensor.requires_grad_(False).view(-1)[0] = torch.nan
    report = prunus.mask_(model, groups, groups.plan(keep))
    assert zeros(model, report.plan) and not groups[0].slices[0].tensor.requires_grad


def test_report():
    model, _ = residual()
    groups, report = masked(model, 0.25)
    kept = {id: mask.keep.float().mean().item() for id, mask in report.plan.masks.items()}
    assert report.densities == pytest.approx(kept) and report.density == pytest.approx(0.25, abs=2e-3)
    assert report.model is model and "density 25.0%" in str(report)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"repair": True}, "give data= batches"),
        ({"repair": "exact", "data": []}, "no calibration batch"),
        ({"repair": "exact", "data": [torch.full((2, 3, 6, 6), torch.nan)]}, "NaN or infinity"),
        ({"repair": "exactly", "data": batches()}, "no repair of masked layers named 'exactly'"),
    ],
)
def test_what_goes_wrong_leaves_the_network_as_it_was(settings, match):
    model, _ = residual()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(prunus.PrunusError, match=match):
        masked(model, **settings)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_groups_and_plans_of_other_things_are_refused():
    model, channels = residual()
    with pytest.raises(prunus.InputError, match="takes the groups and the plan of weights"):
        prunus.mask_(model, channels, prunus.Plan())
    groups, report = masked(residual()[0])
    with pytest.raises(prunus.InputError, match="is no tensor of the one given"):
        prunus.mask_(model, groups, report.plan)
