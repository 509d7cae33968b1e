"""Learning rates by name, and the parts of the loop that stand alone."""

import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.core import InputError, UnknownNameError
from prunus.core.writing import write_atomically
from prunus.train import choose_precision
from prunus.train.history import Epoch, write_metrics
from prunus.train.interrupt import Interrupt
from prunus.train.optimizers import build_optimizer
from prunus.train.rates import learning_rate


def values(schedule: object, epochs: int = 4, steps: int = 5, lr: float = 0.1) -> list[float]:
    rate = learning_rate(schedule, lr, epochs, steps)
    return [rate(step) for step in range(epochs * steps)]


def test_constant_and_a_function() -> None:
    assert values("constant") == [0.1] * 20
    assert values(lambda step: step * 2.0)[:3] == [0.0, 2.0, 4.0]


def test_network_slimming_divides_at_half_and_three_quarters() -> None:
    assert values("multi-step") == pytest.approx([0.1] * 10 + [0.01] * 5 + [0.001] * 5)


def test_falling_schedules_begin_at_lr_and_end_near_their_end() -> None:
    for name in ("cosine", "linear", "exponential"):
        v = values({"name": name, "end": 0.01}, steps=500)
        assert v[0] == pytest.approx(0.1)
        assert v[-1] == pytest.approx(0.01, rel=0.02)
        assert all(a > b for a, b in zip(v, v[1:]))


def test_warmup_rises_in_front_of_the_rest() -> None:
    v = values({"name": "linear", "warmup": 2})
    assert v[:10] == pytest.approx([0.01 * i for i in range(10)])
    assert v[10:] == pytest.approx([0.1 - 0.01 * i for i in range(10)])


def test_rewind_and_last_know_the_original_training() -> None:
    original = values("multi-step", epochs=16)
    assert values({"name": "rewind", "of": "multi-step", "epochs": 16}) == original[-20:]
    assert values({"name": "last", "of": "multi-step", "epochs": 16}) == original[-1:] * 20


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosin", "Did you mean 'cosine'"),
        ({"name": "cosine", "factor": 2}, "schedule 'cosine' has no option 'factor'. Known: end, warmup"),
        ({"name": "rewind"}, "needs epochs"),
        ({"name": "rewind", "epochs": 2}, "20 steps of fine-tuning, but the original training had only 10"),
        ({"name": "cosine", "warmup": 4}, "does not fit into a stage of 4 epochs"),
    ],
)
def test_bad_schedules(schedule: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        values(schedule)


def test_no_decay_on_norms_and_biases_when_asked() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    model[3].weight.requires_grad_(False)
    all_, weights = (
        build_optimizer(model, "sgd", lr=0.1, momentum=0.9, weight_decay=0.1, decay=decay)
        for decay in ("all", "weights")
    )
    assert [(len(g["params"]), g["weight_decay"]) for g in all_.param_groups] == [(5, 0.1)]
    assert [(len(g["params"]), g["weight_decay"]) for g in weights.param_groups] == [(1, 0.1), (4, 0.0)]
    assert all_.param_groups[0]["nesterov"]


def test_nothing_to_train() -> None:
    with pytest.raises(InputError, match="nothing to train"):
        build_optimizer(nn.Linear(1, 1).requires_grad_(False), "sgd", lr=1, momentum=0, weight_decay=0, decay="all")


def test_precision_is_a_function_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("prunus.train.precision._amx_bf16", lambda: True)
    assert choose_precision("auto", cpu) == "bf16-mixed"
    assert choose_precision("32", cpu) == "32"
    monkeypatch.setattr("prunus.train.precision._amx_bf16", lambda: False)
    assert choose_precision("auto", cpu) == "32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_precision("auto", torch.device("cuda")) == "32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_precision("auto", torch.device("cuda")) == "bf16-mixed"
    with pytest.raises(InputError, match="Known: auto, 32, bf16-mixed"):
        choose_precision("64", cpu)


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, lambda file: void(file.write(b"old")))

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_metrics_of_other_stages_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = (Epoch("a", 1, 5, 0.5, None, 0.1, 1.0),)
    write_metrics(path, "a", rows)
    write_metrics(path, "b", (Epoch("b", 1, 5, 0.25, 0.75, 0.1, 1.0),))
    write_metrics(path, "a", rows)
    lines = path.read_text().splitlines()
    assert lines[0] == "stage,epoch,step,loss,accuracy,lr,seconds"
    assert sorted(lines[1:]) == ["a,1,5,0.5,,0.1,1.0", "b,1,5,0.25,0.75,0.1,1.0"]


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.wanted == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_ends_with_its_exit_code() -> None:
    with pytest.raises(SystemExit) as error, Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        interrupt.leave()
    assert error.value.code == 143


def test_in_another_thread_signals_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_unknown_optimizer() -> None:
    with pytest.raises(UnknownNameError, match="Known: sgd, adamw"):
        build_optimizer(nn.Linear(1, 1), "lion", lr=1, momentum=0, weight_decay=0, decay="all")


def void(_: object) -> None:
    """Drop a result."""
