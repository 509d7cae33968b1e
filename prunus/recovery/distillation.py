"""Learning from the unpruned network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prunus.core.checks import check_arguments
from prunus.core.errors import InputError
from prunus.core.words import a_tensor


def distill(
    student_logits: Tensor, teacher_logits: Tensor, y: Tensor, temperature: float = 4.0, weight: float = 0.9
) -> Tensor:
    r"""Cross-entropy mixed with the divergence from a teacher's softened answer.

    .. math:: L = (1-a)\,CE(y, z_s) + a\,T^2\,\frac1N \sum_n KL(\mathrm{softmax}(z_t/T) \| \mathrm{softmax}(z_s/T))

    The factor T^2 keeps the size of the gradient independent of the temperature; as T grows it tends to
    ``(z_s - z_t) / (C N)`` with both logits centred.

    Args:
        student_logits: ``(N, C)``, the network being trained.
        teacher_logits: ``(N, C)``, the unpruned network in eval mode, without gradient.
        y: ``(N,)`` integer labels.
        temperature: T > 0, usually 2 to 4.
        weight: a in [0, 1], the share of the teacher, usually 0.5 to 0.9.

    Raises:
        InputError: the shapes differ, or temperature or weight is out of range.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    >>> import torch
    >>> z = torch.tensor([[2., 0.]])
    >>> float(distill(z, z, torch.tensor([0]), weight=1.0))   # nothing to learn from a teacher that agrees
    0.0
    """
    check_arguments(locals(), student_logits=a_tensor, teacher_logits=a_tensor, y=a_tensor)
    check_distill(temperature, weight)
    if student_logits.dim() != 2 or y.shape != student_logits.shape[:1] or y.is_floating_point():
        raise InputError(
            f"distill: expected logits (N, C) and N class numbers; given {tuple(student_logits.shape)} and labels "
            f"{y.dtype} of shape {tuple(y.shape)}."
        )
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"distill: the student's logits have shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}; the teacher must answer the same samples with the same classes."
        )
    soft_student = F.log_softmax(student_logits / temperature, dim=1)  # (N, C)
    soft_teacher = F.log_softmax(teacher_logits / temperature, dim=1)  # (N, C)
    divergence = F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True)
    return (1 - weight) * F.cross_entropy(student_logits, y) + weight * temperature**2 * divergence


def check_distill(temperature: float, weight: float) -> None:
    """Raise `InputError` when the settings of a distillation are out of range."""
    if not temperature > 0:
        raise InputError(f"distill: temperature={temperature}; it must be above 0, usually 2 to 4.")
    if not 0 <= weight <= 1:
        raise InputError(f"distill: weight={weight}; the teacher's share lies in [0, 1], usually 0.5 to 0.9.")
