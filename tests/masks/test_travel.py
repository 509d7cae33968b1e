"""Masks go where the network goes: files, copies, wrappers; training there is training of the original."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import prunus
from prunus.core import FileError, InputError
from prunus.core.held import held
from prunus.masks import MaskPruner, release_
from tests.hand_built import batches, residual


def network(seed: int = 0) -> nn.Module:
    return residual(seed=seed)[0].train()


def masked() -> nn.Module:
    model = network()
    groups = prunus.tensors(model)
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.3))
    prunus.mask_(model, groups, plan)
    with torch.no_grad():  # a weight that stays may be zero for now: only a file or a copy can tell it from the others
        for group in groups:
            weight = group.slices[0].tensor
            weight.view(-1)[weight.view(-1).nonzero()[0]] = 0
    return model


def by_file(model, folder, **options):
    prunus.save(model, folder / "net.safetensors", **options)
    return prunus.load(folder / "net.safetensors", lambda: network(1))


def by_pickle(model, folder):
    torch.save(model, folder / "net.pt")
    return torch.load(folder / "net.pt", weights_only=False)


def by_state(model, folder):
    torch.save(model.state_dict(), folder / "state.pt")
    fresh = network(1)
    fresh.load_state_dict(torch.load(folder / "state.pt"))
    plan = prunus.Plan(masks={name: prunus.core.Mask.of(keep) for name, keep in held(model).items()})
    assert set(prunus.hold_(fresh, prunus.Plan.from_json(plan.to_json()))) == set(plan.masks)
    return fresh


def by_wrapper(model, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    return DistributedDataParallel(copy.deepcopy(model))


WAYS = {
    "file": by_file,
    "packed file": lambda model, folder: by_file(model, folder, compress=True),
    "file of a copy": lambda model, folder: by_file(copy.deepcopy(model), folder),
    "copy": lambda model, folder: copy.deepcopy(model),
    "copy of a copy": lambda model, folder: copy.deepcopy(copy.deepcopy(model)),
    "average": lambda model, folder: AveragedModel(model).module,
    "pickle": by_pickle,
    "state": by_state,
    "wrapper": by_wrapper,
    "types": lambda model, folder: copy.deepcopy(model).to("cpu", torch.float64).to(torch.float32),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}


def train(model: nn.Module, optimizer: str, steps: int = 3) -> None:
    made = OPTIMIZERS[optimizer](model.parameters())
    for x, y in batches(steps):
        made.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)  # the norm is that of the weights that stay
        made.step()


@pytest.fixture
def way(request):
    yield WAYS[request.param]
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_what_travels_trains_as_the_original(way, optimizer, tmp_path):
    model = masked()
    masks = held(model)
    assert len(masks) == len(prunus.tensors(model)) and all((~keep).any() for keep in masks.values())
    there = way(model, tmp_path)
    train(model, optimizer)
    train(there, optimizer)
    for (name, p), q in zip(model.named_parameters(), there.parameters(), strict=True):
        assert torch.equal(p, q), name
        if name in masks:
            assert torch.equal(q != 0, masks[name]), "all that stays trains, what is masked stays zero"


def test_the_zeros_of_a_plain_state_dict_are_held_by_one_call():
    model, fresh = masked(), network(1)
    fresh.load_state_dict(model.state_dict())
    fresh.fc.weight.data.zero_()  # as a head may be initialised
    zeros = {name: (p == 0) for name, p in fresh.named_parameters()}
    names = prunus.hold_(fresh)
    assert names and "fc.weight" not in names and set(names) < set(held(model))
    train(fresh, "adamw")
    assert all((dict(fresh.named_parameters())[name][zeros[name]] == 0).all() for name in names)
    assert (fresh.fc.weight != 0).any()


def test_a_cut_masked_network_travels_and_so_does_a_rewritten_one(tmp_path):
    for in_place in (True, False):
        model, x = masked(), torch.randn(2, 3, 6, 6)
        groups = prunus.trace(model, x, in_place=in_place)
        plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(params=0.7))
        small = prunus.shrink_(model, groups, plan).model.train()
        prunus.save(small, tmp_path / "small.safetensors")
        back = prunus.load(tmp_path / "small.safetensors", network if in_place else None).train()
        masks = held(small)
        assert len(masks) > 2 and {n: m.shape for n, m in held(back).items()} == {n: m.shape for n, m in masks.items()}
        for net in (small, back):
            train(net, "sgd")
            assert all((dict(net.named_parameters())[n][~keep] == 0).all() for n, keep in masks.items())
        assert all(torch.equal(p, q) for p, q in zip(small.parameters(), back.parameters(), strict=True))


def test_released_weights_are_held_in_no_copy(tmp_path):
    model = masked()
    release_(model)
    for way in ("copy", "file", "pickle"):
        assert held(WAYS[way](model, tmp_path)) == {}


@pytest.mark.parametrize("text", ['{"nothing": ""}', '{"stem.weight": "AA"}', "[1]", '{"stem.weight": 3}', "{"])
def test_a_file_with_other_masks_is_refused_and_changes_nothing(text, tmp_path, monkeypatch):
    from prunus.surgery import files

    model, fresh = masked(), network(1)
    monkeypatch.setattr(files, "held_text", lambda *_: text)
    prunus.save(model, tmp_path / "net.safetensors")
    before = {name: t.clone() for name, t in fresh.state_dict().items()}
    with pytest.raises(FileError, match="mask"):
        prunus.load_(fresh, tmp_path / "net.safetensors")
    assert all(torch.equal(t, before[name]) for name, t in fresh.state_dict().items()) and held(fresh) == {}


def test_a_pruner_that_attaches_takes_the_masks_over_and_says_so():
    model = masked()
    first = held(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = MaskPruner(model, prunus.tensors(model), "rigl", density=0.3, steps=9, every=2)
    pruner.attach(optimizer)
    assert held(model) == {} and "let go of" in pruner.notes[0]
    for x, y in batches(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    grown = [bool((p.detach()[~first[n]] != 0).any()) for n, p in model.named_parameters() if n in first]
    assert any(grown), "weights that the first mask held come back where the pruner lets them"
    other = MaskPruner(model, prunus.tensors(model), "gmp", density=0.3, steps=9)
    groups = prunus.tensors(model)
    for second in (
        lambda: prunus.mask_(model, groups, groups.plan(groups.alive_weights())),
        lambda: prunus.hold_(model),
        lambda: other.attach(optimizer),
    ):
        before = {name: t.clone() for name, t in model.state_dict().items()}
        with pytest.raises(InputError, match="MaskPruner moves the mask"):
            second()
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert "let go of" in " ".join(pruner.finish_().notes)
    assert set(held(model)) == set(first)


def test_hold_refuses_a_plan_of_another_network():
    plan = prunus.Plan(masks={"stem.weight": prunus.core.Mask.of(torch.ones(2, 2))})
    with pytest.raises(InputError, match="of another one"):
        prunus.hold_(network(), plan)
