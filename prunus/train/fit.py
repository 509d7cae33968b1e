"""Training a stage of a recipe: the one function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.core.checks import (
    a_flag,
    a_folder,
    a_mapping,
    a_module,
    a_positive_int,
    a_word,
    above_zero,
    anything,
    check_arguments,
    not_negative,
    one_of,
    optional,
)
from prunus.core.errors import InputError
from prunus.core.groups import Groups
from prunus.core.words import a_dataset, a_preprocess, a_rate, some_groups
from prunus.data.split import Split
from prunus.train.history import History
from prunus.train.loop import Loop
from prunus.train.settings import Settings


def fit(
    model: nn.Module,
    data: Any,
    *,
    preprocess: Any,
    epochs: int,
    lr: float,
    schedule: Any = "cosine",
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    decay: str = "all",
    batch: int = 128,
    regularizer: Any = None,
    groups: Groups | None = None,
    teacher: nn.Module | None = None,
    distill: Mapping[str, float] | None = None,
    precision: str = "auto",
    clip: float | None = None,
    augment: Any = "auto",
    channels_last: bool = True,
    seed: int = 0,
    folder: str | Path | None = None,
    stage: str = "train",
    resume: bool = False,
    every: float = 30.0,
    sparse: Mapping[str, Any] | None = None,
    periods: int | None = None,
    quiet: bool = False,
) -> History:
    """Train `model` in place on ``data.train``; after every epoch its top-1 is measured on ``data.decide``.

    The order of a step is forward, backward, clip, penalty gradient, optimizer, proximal map.  The order of the
    samples, augmentation and dropout are functions of (seed, stage, epoch, step), and a checkpoint at every epoch's end
    and every `every` seconds holds the rest, so that a run killed at any moment and resumed ends with the same weights,
    to the bit on a CPU with the same threads.  Under torchrun each process takes its share of every batch.

    Args:
        model: any classifier; it ends on the device it came from, its convolutions in channels-last format if asked.
        data: the splits, as of `prunus.data.load`.
        preprocess: makes inputs of bytes, a `prunus.data.Preprocess`; None: the batches of `data` are inputs already.
        epochs, lr: how many passes over ``data.train``, and the learning rate that `schedule` begins with.
        schedule: learning rate: a function of the step, a name, or a name with options
            (`prunus.train.rates.learning_rate`).
        optimizer, momentum, weight_decay: its name (``"sgd"``, say), and what it is made with; bases of filters and
            gates do not decay, learned thresholds as their method says.
        decay: ``"all"`` or ``"weights"`` (none on biases and normalisations).
        batch: samples a step, over all processes together.
        regularizer: a `Regularizer`, a name, or ``{"name": ..., **arguments}``; needs `groups` of this model.
        teacher: a network to learn from, in eval mode; `distill` holds ``temperature`` and ``weight``.
        precision: ``"auto"``, ``"32"`` or ``"bf16-mixed"`` (`choose_precision`).
        clip: largest norm of the gradient.
        augment: passed on to ``data.train.batches``.
        channels_last: whether convolutions run in channels-last format.
        folder: the run folder, for ``metrics.csv``, ``checkpoints/`` and ``tensorboard/``; None writes nothing.
        sparse: train under masks that move: ``{"method": ..., "density": ..., "options": {...}}`` as of
            `prunus.masks.MaskPruner`, and ``"groups"`` where it is not every weight (`prunus.tensors`).
        periods: for a network with gates (`prunus.dynamic`), which learns by the loss of its method, without decay of
            the gates: how often they close a step further; None: after every epoch.
        resume: continue from the checkpoint of `stage` in `folder` when there is one.
        quiet: show no progress.

    Raises:
        InputError: a setting is out of range.
        FileError: the checkpoint is damaged or of another run.
        TrainingError: the loss or a weight became infinite or NaN; the last good checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C, when the step is over and the checkpoint written.
    """
    check_arguments(
        locals(), data=a_dataset, preprocess=optional(a_preprocess), epochs=a_positive_int, lr=above_zero,
        schedule=a_rate, optimizer=a_word, momentum=not_negative, weight_decay=not_negative,
        decay=one_of("all", "weights"), groups=optional(some_groups), teacher=optional(a_module),
        distill=optional(a_mapping), precision=a_word, clip=optional(above_zero), augment=anything,
        channels_last=a_flag, folder=optional(a_folder), stage=a_word, every=above_zero, sparse=optional(a_mapping),
        periods=optional(a_positive_int),
    )  # fmt: skip
    settings = Settings(
        stage, epochs, float(lr), schedule, optimizer, momentum, weight_decay, decay, batch, regularizer,
        distill, precision, clip, augment, channels_last, seed, every, sparse, periods,
    )  # fmt: skip
    if preprocess is None and isinstance(data.train, Split):
        raise InputError(
            "fit(preprocess=None): images of prunus.data need a prunus.data.Preprocess, e.g. that of the zoo's "
            "model; None is for data of your own, whose batches are ready."
        )
    if distill is not None and teacher is None:
        raise InputError("distill is given but no teacher; pass teacher= the unpruned network.")
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"{type(model).__name__} has no parameter to train: all are frozen, or there is none.")
    networks = [network for network in (model, teacher) if network is not None]
    homes = [next((p.device for p in network.parameters()), torch.device("cpu")) for network in networks]
    training = {module: module.training for network in networks for module in network.modules()}
    where = Path(folder) if folder is not None else None
    if where is not None and where.exists() and not where.is_dir():
        raise InputError(f"folder={str(where)!r} is a file; give the path of a folder.")
    loop = None
    try:
        loop = Loop(model, data, preprocess, settings, groups=groups, teacher=teacher, folder=where, resume=resume)
        return loop.run(quiet)
    finally:
        if loop is not None:
            loop.engine.close()
        for network, home in zip(networks, homes, strict=True):
            network.to(home)
        for module, flag in training.items():
            module.training = flag
