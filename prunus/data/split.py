"""A part of a data set in memory, and the batches made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.core import InputError
from prunus.core.checks import Kind, a_count, a_flag, a_positive_int, anything, check_arguments, optional, shown
from prunus.core.words import a_preprocess
from prunus.data.augment import Augment
from prunus.data.order import ORDER, shuffled
from prunus.data.preprocess import Preprocess

SOME_ROWS = Kind(
    "an int64 tensor of numbers of samples", lambda v: isinstance(v, Tensor) and v.dtype is torch.int64 and v.dim() == 1
)


@dataclass(frozen=True, eq=False)
class Split:
    """Decoded images (N, C, H, W) uint8 with their labels (N,) int64, and the augmentation that suits them.

    Attributes:
        augment: what training does to images; nothing by default.
    """

    images: Tensor
    labels: Tensor
    augment: Augment = field(default_factory=Augment)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Split:
        """The part with only these rows (int64), in this order.

        Raises: `InputError` for rows that it does not have.
        """
        check_arguments(locals(), rows=SOME_ROWS)
        if len(rows) and not -len(self.labels) <= int(rows.min()) <= int(rows.max()) < len(self.labels):
            raise InputError(f"take(rows={shown(rows)}): this part has {len(self.labels)} samples.")
        return Split(self.images[rows], self.labels[rows], self.augment)

    def batches(
        self,
        size: int,
        preprocess: Preprocess | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        train: bool = False,
        augment: str | Augment | None = None,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> Batches:
        """Batches of `size` samples on every one of `world` ranks; this is the share of `rank`, from batch `start` on.

        In training the samples are shuffled and augmented, both pure functions of (seed, epoch, sample), and samples
        that do not fill a batch on every rank are left out of this epoch.  Otherwise every sample comes once, in
        order, as it is.

        Args:
            preprocess: makes inputs of bytes; None: `Preprocess` as it is by default.
            train: whether the batches are for training.
            augment: in training, instead of the split's own: an `Augment` or its name; None: the split's own.

        Raises: `InputError` for a size below 1, a start below 0 or a rank that is not of this world.
        """
        check_arguments(
            locals(),
            size=a_positive_int,
            preprocess=optional(a_preprocess),
            epoch=a_count,
            train=a_flag,
            augment=anything,  # `Augment.of` says what it takes
            rank=a_count,
            world=a_positive_int,
            start=a_count,
        )
        if rank >= world:
            raise InputError(f"batches(rank={rank}): expected a rank below world={world}.")
        chosen = Augment.of(augment, self.augment)
        order = shuffled(len(self), seed, epoch, ORDER) if train else torch.arange(len(self))
        count = len(self) // world * world if train else len(self)
        mine = order[:count][rank::world]
        if train and len(mine) > size:
            mine = mine[: len(mine) // size * size]
        return Batches(
            self, preprocess or Preprocess(), mine.split(size)[start:], chosen if train else Augment(), seed, epoch
        )


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches that can be gone through again and again, always the same: (x float32 (B, C, H, W), y int64 (B,)).

    Attributes:
        split: where samples are taken from.
        preprocess: makes inputs of image bytes, after augmentation.
        rows: the samples of every batch, int64 numbers of the split.
        augment: changes image bytes at random, as a function of `seed`, `epoch` and sample alone.
        seed: of the order and of the augmentation, 0 or more.
        epoch: counted from 0.
    """

    split: Split
    preprocess: Preprocess
    rows: tuple[Tensor, ...]
    augment: Augment
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.rows:
            images = self.augment(self.split.images[rows], rows, self.seed, self.epoch)
            yield self.preprocess(images), self.split.labels[rows]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in its three parts: `decide` is held out of the training part for every decision on the way.

    Attributes:
        train: what networks are trained on.
        test: what no decision sees.
        classes: their names, in the order of their numbers.
        name: what the set is called in reports.
    """

    train: Split
    decide: Split
    test: Split
    classes: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        shape = "x".join(str(n) for n in self.train.images.shape[1:])
        sizes = f"{len(self.train):,} train, {len(self.decide):,} decide, {len(self.test):,} test"
        return f"{self.name}: {sizes}; {len(self.classes)} classes, images {shape}"
