"""Collected statistics against gradients computed in one pass, and a network that must not notice."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunus.core import InputError, UnknownNameError
from prunus.observe import Stats, collect
from tests.hand_built import batches, chain, groups_of


def full_gradients(model, groups, loss_of):
    """The gradient of the mean loss over all samples at once."""
    names = list(dict.fromkeys(s.name for g in groups for s in g.slices if s.tensor.requires_grad))
    tensors = [dict(model.named_parameters())[n] for n in names]
    return dict(zip(names, torch.autograd.grad(loss_of(model), tensors), strict=True))


def test_the_gradient_is_the_mean_over_samples_of_uneven_batches():
    model, groups = chain()
    model.eval()
    data = [*batches(2, 4, seed=1), *batches(1, 3, seed=2)]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    expected = full_gradients(model, groups, lambda m: F.cross_entropy(m(x), y))
    stats = collect(model, groups, data, {"grad"})
    assert set(stats.kinds["grad"]) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(stats.kinds["grad"][name], value, rtol=1e-4, atol=1e-6)


def test_a_loss_of_ones_own_per_sample_or_mean():
    model, groups = chain()
    model.eval()
    data = batches(3)
    x = torch.cat([x for x, _ in data])
    expected = full_gradients(model, groups, lambda m: m(x).square().sum(1).mean())
    for loss in (lambda out, batch: out.square().sum(1), lambda out, batch: out.square().sum(1).mean()):
        stats = collect(model, groups, data, {"grad"}, loss)
        torch.testing.assert_close(stats.kinds["grad"]["conv1.weight"], expected["conv1.weight"], rtol=1e-4, atol=1e-6)


def test_the_network_is_left_as_it_was():
    model, groups = chain()
    model.train()
    model.bn2.eval()
    model.fc.bias.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.get_rng_state()

    def noisy(out, batch):
        model.bn1.num_batches_tracked.add_(torch.randint(1, 5, ()))
        return F.cross_entropy(out, batch[1])

    with torch.no_grad():
        collect(model, groups, batches(), {"grad"}, noisy)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in (model, model.bn1, model.bn2)] == [True, True, False]
    assert model.fc.weight.requires_grad and not model.fc.bias.requires_grad
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight)) and model.conv1.weight.grad is None


def test_it_is_left_as_it_was_when_the_loss_raises():
    model, groups = chain()
    model.train()
    with pytest.raises(ZeroDivisionError):
        collect(model, groups, batches(), {"grad"}, lambda out, batch: 1 / 0)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_frozen_parameters_are_seen_as_well_and_unused_ones_are_zero():
    model, groups = chain()
    model.conv1.weight.requires_grad_(False)
    seen = collect(model, groups, batches(), {"grad"}).kinds["grad"]
    assert seen["conv1.weight"].abs().sum() > 0 and not model.conv1.weight.requires_grad
    blind = collect(model, groups, batches(), {"grad"}, lambda out, batch: model.bn1.weight.sum()).kinds["grad"]
    assert torch.equal(blind["bn1.weight"], torch.ones(4)) and blind["conv2.weight"].abs().sum() == 0


class Named(nn.Module):
    """Takes keywords and computes its own loss, as language models do."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x, labels):
        return {"loss": (self.fc(x) - labels).square().mean(), "logits": self.fc(x)}


def test_batches_of_keywords_and_a_model_with_its_own_loss():
    model = Named()
    groups = groups_of(model, {"fc": (2, [("fc.weight", 0, "out"), ("fc.bias", 0, "bias")])})
    data = [{"x": torch.randn(4, 3), "labels": torch.randn(4, 2)} for _ in range(2)]
    seen = collect(model, groups, data, ["grad"]).kinds["grad"]
    whole = {k: torch.cat([d[k] for d in data]) for k in data[0]}
    expected = full_gradients(model, groups, lambda m: m(**whole)["loss"])
    torch.testing.assert_close(seen["fc.weight"], expected["fc.weight"])


def test_bad_input_gets_one_clear_message():
    model, groups = chain()
    with pytest.raises(InputError, match="no default loss fits an output of type Tensor and a batch of type Tensor"):
        collect(model, groups, [torch.zeros(2, 3, 6, 6)], {"grad"})
    with pytest.raises(InputError, match="holds no batch"):
        collect(model, groups, [], {"grad"})
    with pytest.raises(InputError, match="expected a tensor that depends on the weights"):
        collect(model, groups, batches(), {"grad"}, lambda out, batch: out.detach().sum())
    with pytest.raises(UnknownNameError, match="no statistic named 'grads'. Did you mean 'grad'"):
        collect(model, groups, batches(), {"grads"})


def test_statistics_are_void_after_a_cut():
    model, groups = chain(4, 6)
    stats = collect(model, groups, batches(), {"grad"})
    stats.check(groups)
    with pytest.raises(InputError, match=r"on 4 units of group 'conv1', which has 3 now.* void after a cut"):
        stats.check(chain(3, 6)[1])


def test_statistics_cannot_be_changed():
    stats = Stats({"grad": {"w": torch.ones(1)}})
    with pytest.raises(TypeError):
        stats.kinds["grad"]["w"] = torch.zeros(1)


def test_a_long_pass_shows_how_far_it_is(capsys, monkeypatch):
    from prunus.core.progress import progress

    assert list(progress(range(3), "waiting", after=60)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    assert list(progress(range(3), "waiting", after=-1)) == [0, 1, 2]
    assert "waiting" in capsys.readouterr().err
    outer = progress(range(2), "outside", after=-1)  # a long item shows before it ends, in one bar of the whole
    assert next(outer) == 0 and list(progress(range(3), "inside", after=-1)) == [0, 1, 2]
    shown = capsys.readouterr().err
    assert "outside" in shown and "inside" not in shown and list(outer) == [1]
    for _ in zip(range(1), progress(range(3), "left early", after=-1)):
        pass
    assert list(progress(iter("abc"), "no length", after=-1)) == ["a", "b", "c"]
    assert "no length" in capsys.readouterr().err


def on_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, groups = chain()
    data = batches(3, 4)  # rank 0 sees two batches, rank 1 the third
    stats = collect(model, groups, data[:2] if rank == 0 else data[2:], {"grad"})
    torch.save(dict(stats.kinds["grad"]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_see_the_mean_over_both(tmp_path):
    torch.multiprocessing.spawn(on_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    model, groups = chain()
    alone = collect(model, groups, batches(3, 4), {"grad"}).kinds["grad"]
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), "ranked on equal values"
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
