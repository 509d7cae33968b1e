"""Distillation against its closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from prunus.core import InputError
from prunus.recovery import distill


def by_hand(s: list[list[float]], t: list[list[float]], y: list[int], temperature: float, weight: float) -> float:
    """The equation, in plain Python."""

    def softmax(row: list[float], temperature: float) -> list[float]:
        e = [math.exp(v / temperature) for v in row]
        return [v / sum(e) for v in e]

    hard = sum(-math.log(softmax(row, 1)[label]) for row, label in zip(s, y, strict=True)) / len(s)
    soft = 0.0
    for a, b in zip(s, t, strict=True):
        p, q = softmax(b, temperature), softmax(a, temperature)
        soft += sum(u * math.log(u / v) for u, v in zip(p, q, strict=True)) / len(s)
    return (1 - weight) * hard + weight * temperature**2 * soft


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (4.0, 0.9), (2.0, 1.0), (3.0, 0.0)])
def test_value_is_the_equation(temperature: float, weight: float) -> None:
    s, t, y = [[1.0, -2.0, 0.5], [0.0, 0.3, 3.0]], [[2.0, 0.0, -1.0], [0.1, 0.2, 0.0]], [2, 1]
    got = distill(torch.tensor(s), torch.tensor(t), torch.tensor(y), temperature, weight)
    assert float(got) == pytest.approx(by_hand(s, t, y, temperature, weight), rel=1e-5)


def test_gradient_at_high_temperature_is_the_centred_difference_of_logits() -> None:
    torch.manual_seed(0)
    n, c = 5, 7
    s = torch.randn(n, c, dtype=torch.float64, requires_grad=True)
    t = torch.randn(n, c, dtype=torch.float64)
    distill(s, t, torch.zeros(n, dtype=torch.long), temperature=500.0, weight=1.0).backward()
    law = ((s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))).detach() / (c * n)
    assert float((s.grad - law).norm() / law.norm()) < 0.005


def test_gradient_flows_into_the_student_alone_and_learning_closes_the_gap() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(16, 4)
    student = torch.zeros(16, 4, requires_grad=True)
    y = torch.randint(0, 4, (16,))

    def gap() -> float:
        return float(
            F.kl_div(student.detach().log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
        )

    before = gap()
    optimizer = torch.optim.SGD([student], lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        distill(student, teacher, y, temperature=2.0, weight=1.0).backward()
        optimizer.step()
    assert gap() < before / 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"temperature": 0.0}, "temperature=0.0"), ({"weight": 1.5}, r"weight=1.5.: expected a number in .0, 1.")],
)
def test_settings_out_of_range(arguments: dict[str, float], message: str) -> None:
    z = torch.zeros(2, 3)
    with pytest.raises(InputError, match=message):
        distill(z, z, torch.zeros(2, dtype=torch.long), **arguments)


def test_other_classes_than_the_teacher() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\), the teacher's \(2, 4\)"):
        distill(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
