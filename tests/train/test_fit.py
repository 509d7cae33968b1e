"""The loop against a loop written out in plain torch."""

import csv
import math
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus.train.keeper as keeper
from prunus.core import FileError, Group, Groups, InputError, Inputs, Slice, TrainingError
from prunus.data.split import Batches
from prunus.regularizers import centripetal
from prunus.tracing import trace
from prunus.train import evaluate, fit


def slimming(model: nn.Module) -> Groups:
    """The group of the only batch norm, made by hand."""
    units = model[1].num_features
    scale = Slice("1.weight", 0, torch.arange(units)[:, None], "norm_scale", model[1].weight)
    return Groups((Group("0.weight", units, (scale,)),), (), {}, (), (), Inputs())


def batches_seen(model: nn.Module, data: Any, settings: dict[str, Any], monkeypatch: Any) -> list[Any]:
    """The batches that `fit` trains on, noted while it does; `model` is trained."""
    seen: list[Any] = []
    plain = Batches.__iter__

    def noting(self: Batches) -> Any:
        for x, y in plain(self):
            if self.split is data.train:
                seen.append((x.clone(), y.clone()))
            yield x, y

    monkeypatch.setattr(Batches, "__iter__", noting)
    fit(model, data, **settings)
    monkeypatch.setattr(Batches, "__iter__", plain)
    return seen


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_are_those_of_a_plain_loop(optimizer: str, data: Any, small: Any, make: Any, monkeypatch: Any) -> None:
    """Cosine, clip, weight decay on weights only, slimming and distillation together, bit for bit."""
    model, plain, teacher = make(), make(), make(norm=False).eval()
    teacher[6].bias.data.add_(torch.tensor([1.0, -1.0]))
    strength, clip, decay = 0.03, 0.5, 0.01
    settings = small | {
        "optimizer": optimizer, "clip": clip, "weight_decay": decay, "decay": "weights", "teacher": teacher,
        "distill": {"temperature": 3.0, "weight": 0.7}, "groups": slimming(model), "channels_last": False,
        "regularizer": {"name": "bn-gamma", "strength": strength},
    }  # fmt: skip
    seen = batches_seen(model, data, settings, monkeypatch)
    assert len(seen) == 12
    kernels = [p for p in plain.parameters() if p.dim() > 1]
    rest = [p for p in plain.parameters() if p.dim() == 1]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    if optimizer == "sgd":
        opt: Any = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    else:
        opt = torch.optim.AdamW(groups, lr=1.0)
    clipped = 0
    for step, (x, y) in enumerate(seen):
        for group in opt.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / 12)) / 2
        z = plain(x)
        soft = F.kl_div((z / 3).log_softmax(1), (teacher(x) / 3).log_softmax(1), reduction="batchmean", log_target=True)
        opt.zero_grad()
        ((1 - 0.7) * F.cross_entropy(z, y) + 0.7 * 9 * soft).backward()
        clipped += int(nn.utils.clip_grad_norm_(plain.parameters(), clip) > clip)
        plain[1].weight.grad += strength * plain[1].weight.detach().sign()
        opt.step()
    assert clipped, "the test is to clip at least once"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-5, atol=1e-7, msg=name)


def test_it_learns_and_notes_every_epoch(data: Any, small: Any, make: Any, tmp_path: Path) -> None:
    model = make()
    history = fit(model, data, **small | {"epochs": 4}, folder=tmp_path, stage="first")
    assert history.accuracy == 1.0 == evaluate(model, data.decide, small["preprocess"], progress=False)
    assert [row.epoch for row in history] == [1, 2, 3, 4]
    assert history.rows[-1].loss < history.rows[0].loss / 3
    fit(make(), data, **small, folder=tmp_path, stage="second")
    fit(make(), data, **small, folder=tmp_path, stage="second")  # once more: replaces its rows
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["first"] * 4 + ["second"] * 2
    assert float(rows[3]["loss"]) == history.loss
    assert list((tmp_path / "tensorboard" / "first").glob("events*"))
    assert not list(tmp_path.rglob("*.part"))


def test_training_flags_and_device_are_as_before(data: Any, small: Any, make: Any) -> None:
    model = make().eval()
    model[3].train()
    flags = [m.training for m in model.modules()]
    fit(model, data, **small)
    assert [m.training for m in model.modules()] == flags


def test_the_regularizer_is_taken_off_at_the_end(data: Any, small: Any, make: Any, monkeypatch: Any) -> None:
    removed = []
    from prunus.regularizers.base import Attached

    monkeypatch.setattr(Attached, "remove", lambda self: removed.append(self))
    model = make()
    fit(model, data, **small, regularizer="bn-gamma", groups=slimming(model))
    assert len(removed) == 1


def test_evaluate_counts_the_right_answers(data: Any, small: Any, make: Any) -> None:
    model = make(dropout=0.5)
    x = small["preprocess"](data.test.images)
    expected = float((model.eval()(x).argmax(1) == data.test.labels).double().mean())
    model.train()
    assert evaluate(model, data.test, small["preprocess"], batch=7, progress=False) == expected
    assert all(m.training for m in model.modules())


def test_infinite_loss_stops_and_keeps_the_last_checkpoint(data: Any, small: Any, make: Any, tmp_path: Path) -> None:
    model = make()

    def rate(step: float) -> float:
        return 0.01 if step < 8 else 1e20

    with pytest.raises(TrainingError) as error:
        fit(model, data, **small | {"epochs": 3, "schedule": rate}, folder=tmp_path, stage="wild")
    assert "stage 'wild'" in str(error.value)
    assert "epoch 2, step" in str(error.value)
    assert "learning rate 1e+20" in str(error.value)
    saved = torch.load(tmp_path / "checkpoints" / "wild.pt", weights_only=True)
    assert saved["position"]["epoch"] == 1
    assert str(tmp_path / "checkpoints" / "wild.pt") in str(error.value)
    assert all(v.isfinite().all() for v in saved["model"].values())


def test_weights_that_overflow_in_the_last_step_are_not_saved(data: Any, small: Any, make: Any, tmp_path: Path) -> None:
    settings = small | {"schedule": lambda step: 1e-4 if step < 11 else 9e37, "weight_decay": 100.0}
    with pytest.raises(TrainingError, match="a weight became infinite or NaN"):
        fit(make(), data, **settings, folder=tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "train.pt", weights_only=True)
    assert saved["position"]["epoch"] == 1


def test_ctrl_c_saves_and_resume_continues(data: Any, small: Any, make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    whole, model = make(dropout=0.3), make(dropout=0.3)
    expected = fit(whole, data, **small)
    plain = Batches.__iter__

    def interrupting(self: Batches) -> Any:
        for i, batch in enumerate(plain(self)):
            if self.epoch == 1 and self.split is data.train and i == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(Batches, "__iter__", interrupting)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, **small, folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) == handler
    saved = torch.load(tmp_path / "checkpoints" / "train.pt", weights_only=True)
    assert (saved["position"]["epoch"], saved["position"]["batch"]) == (1, 4)
    monkeypatch.setattr(Batches, "__iter__", plain)
    again = make(dropout=0.3)
    history = fit(again, data, **small, folder=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert [(r.epoch, r.loss, r.accuracy) for r in history] == [(r.epoch, r.loss, r.accuracy) for r in expected]


def test_what_a_regularizer_chose_at_the_start_is_resumed(
    data: Any, small: Any, make: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    settings = small | {"lr": 0.5, "regularizer": {"name": "centripetal", "keep": 0.5, "strength": 0.01}}

    def run(model: Any, **options: Any) -> Any:
        fit(model, data, **settings, groups=trace(model, torch.zeros(2, 1, 8, 8)), **options)
        return model.state_dict()

    whole = run(make())
    plain = Batches.__iter__

    def interrupting(self: Batches) -> Any:
        for i, batch in enumerate(plain(self)):
            if self.epoch == 1 and self.split is data.train and i == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(Batches, "__iter__", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(make(), folder=tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "train.pt", weights_only=True)["regularizer"]
    monkeypatch.setattr(Batches, "__iter__", plain)
    found = centripetal.clusters  # of other weights there would be other clusters
    monkeypatch.setattr(centripetal, "clusters", lambda rows, k: (found(rows, k)[0].roll(1), None))
    again = run(make(), folder=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), again.values(), strict=True))


def test_ctrl_c_after_the_last_step_still_ends_the_run(
    data: Any, small: Any, make: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    plain = Batches.__iter__

    def interrupting(self: Batches) -> Any:
        if self.epoch == 0 and self.split is data.decide and (tmp_path / "checkpoints" / "train.pt").exists():
            os.kill(os.getpid(), signal.SIGINT)
        yield from plain(self)

    monkeypatch.setattr(Batches, "__iter__", interrupting)
    with pytest.raises(KeyboardInterrupt):  # while the second and last epoch is measured
        fit(make(), data, **small, folder=tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "train.pt", weights_only=True)["finished"]


def test_a_finished_stage_is_only_loaded(data: Any, small: Any, make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model, other = make(), make()
    history = fit(model, data, **small, folder=tmp_path)
    monkeypatch.setattr(Batches, "__iter__", lambda self: pytest.fail("it trained again"))
    assert fit(other, data, **small, folder=tmp_path, resume=True) == history
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_new_run_does_not_take_an_old_checkpoint(data: Any, small: Any, make: Any, tmp_path: Path) -> None:
    fit(make(), data, **small, folder=tmp_path)
    with pytest.raises(TrainingError):
        fit(make(), data, **small | {"schedule": lambda step: 1e20}, folder=tmp_path)
    assert not (tmp_path / "checkpoints" / "train.pt").exists()


def test_a_full_disk_keeps_the_last_checkpoint(data: Any, small: Any, make: Any, tmp_path: Path) -> None:
    """The system itself refuses to write past a limit of file size."""
    fit(make(), data, **small | {"epochs": 1}, folder=tmp_path, stage="a")
    path = tmp_path / "checkpoints" / "a.pt"
    good = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"model": {"w": torch.zeros(50_000)}}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        kept = keeper.Keeper(tmp_path, "a", every=1.0)
        with pytest.warns(RuntimeWarning, match="The last one is kept; training goes on"):
            kept.write(state, (), final=False)
        with pytest.raises(TrainingError, match="make room and resume"):
            kept.write(state, (), final=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == good
    assert not list(tmp_path.rglob("*.part"))


def test_other_settings_are_not_resumed(data: Any, small: Any, make: Any, tmp_path: Path) -> None:
    fit(make(), data, **small, folder=tmp_path)
    with pytest.raises(FileError, match="epochs was 2, is now 3"):
        fit(make(), data, **small | {"epochs": 3}, folder=tmp_path, resume=True)


def test_another_network_is_not_resumed(data: Any, small: Any, make: Any, tmp_path: Path) -> None:
    fit(make(), data, **small, folder=tmp_path)
    with pytest.raises(FileError, match="does not fit the network"):
        fit(make(norm=False), data, **small, folder=tmp_path, resume=True)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\x80\x02}q\x00." + b[5:]])
def test_a_damaged_checkpoint_is_said_to_be(damage: Any, data: Any, small: Any, make: Any, tmp_path: Path) -> None:
    fit(make(), data, **small | {"epochs": 1}, folder=tmp_path)
    path = tmp_path / "checkpoints" / "train.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileError, match="checkpoint"):
        fit(make(), data, **small | {"epochs": 1}, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, r"epochs=0\): expected a whole number"),
        ({"lr": 0.0}, r"lr=0.0\): expected a number above 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"stage": "../up"}, "also a file name"),
        ({"precision": "16-mixed"}, "Did you mean 'bf16-mixed'"),
        ({"optimizer": "adam"}, "Did you mean 'adamw'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"decay": "none"}, "one of 'all', 'weights'"),
        ({"distill": {"temperature": 2.0}}, "no teacher"),
        ({"distill": {"temp": 2.0}}, "distill has no temp"),
        ({"regularizer": "bn-gamma"}, "needs groups"),
        ({"regularizer": "bn-gama"}, "needs groups"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, data: Any, small: Any, make: Any) -> None:
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        fit(model, data, **small | settings)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_bfloat16_trains_in_float32_weights(data: Any, small: Any, make: Any) -> None:
    model = make()
    history = fit(model, data, **small | {"precision": "bf16-mixed", "epochs": 4})
    assert history.precision == "bf16-mixed"
    assert history.accuracy == 1.0
    assert all(p.dtype == torch.float32 for p in model.parameters())
