"""What labelled images are to everything that reads them: a data set of splits, and the laws of a split.

An epoch is a random order of the images, cut into batches. Both depend on the seed alone, and what augmentation does to
batch i on (seed, i) alone: an epoch entered at batch i is the rest of one that was never stopped, bit for bit, and the
shares of several processes put together are the batch that one process sees.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vit.architecture import Architecture
from vit.errors import VitfitError

Batch = tuple[Tensor, Tensor]


class DataError(VitfitError, ValueError):
    """Data that cannot be read, or that does not fit the model."""


class Split(Protocol):
    """Labelled images of one purpose. The caller's global random generators stay as they are."""

    def __len__(self) -> int: ...
    def shuffled(
        self, batch_size: int, seed: int, *, augment: bool, start: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """One epoch in random order, every image at most once; a last incomplete batch is dropped if there is another.

        Args:
            start: batches of the epoch to leave out at its beginning; they are neither loaded nor augmented.
            share: (rank, world) gives this process rows rank, rank + world, ... of every batch; none of a last batch
                that is smaller than the rank.
        """

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """Every image once, in order, as it is."""

    def subset(self, rows: Tensor, *, plain: bool = False) -> "Split":
        """These images alone, in this order; never augmented where `plain`."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """
    Attributes:
        train, test: the splits.
        num_classes, in_chans, image_size: what a model must take and give.
        fingerprint: changes with the data.
        validation: training images held out to choose by, see `hold_out`; never augmented.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    in_chans: int
    image_size: tuple[int, int]
    fingerprint: str
    validation: Split | None = None

    def check(self, arch: Architecture) -> None:
        """
        Raises:
            DataError: a model of this architecture cannot take these images or labels.
        """
        wants = {
            "num_classes": (arch.num_classes, self.num_classes),
            "in_chans": (arch.in_chans, self.in_chans),
            "image_size": (arch.image_size, self.image_size),
        }
        for field, (model, data) in wants.items():
            if model != data:
                option, size = _OPTION_OF[field], data[0] if isinstance(data, tuple) else data
                raise DataError(
                    f"the model has {field} {model}, the data {self.name!r} has {data}; choose other data, or bring a "
                    f"model in with `vitfit import TIMM_NAME {option} {size}`"
                )

    def hold_out(self, share: float, seed: int) -> "Dataset":
        """The same data with some of the training images as `validation`, drawn at random without regard to classes.

        Args:
            share: of the training images, in (0, 1); rounded to images, at least one.

        Raises:
            DataError: a share outside (0, 1), one that leaves nothing to train with, or validation images are there.
        """
        if not 0 < share < 1:
            raise DataError(f"the share of training images to hold out must lie between 0 and 1, got {share:g}")
        if self.validation is not None:
            raise DataError(f"{self.name!r} holds validation images out already; hold out once")
        images = len(self.train)
        held = max(1, round(share * images))
        if held >= images:
            raise DataError(f"holding out {held} of {images} training images leaves none to train with")
        order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
        chosen, rest = order[:held].sort().values, order[held:].sort().values
        return replace(
            self,
            train=self.train.subset(rest),
            validation=self.train.subset(chosen, plain=True),
            fingerprint=short_hash(f"{self.fingerprint}:{chosen.tolist()}".encode()),
        )


_OPTION_OF = {"num_classes": "--num-classes", "in_chans": "--in-chans", "image_size": "--img-size"}


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Images in memory. `augment` maps a batch of images and a generator to a batch of images."""

    images: Tensor
    labels: Tensor
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def shuffled(
        self, batch_size: int, seed: int, *, augment: bool, start: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        mine = rows_of(share)
        for index, rows in epoch(len(self), batch_size, seed, start):
            images = self.images[rows]
            if augment and self.augment is not None:  # of the whole batch, so that it is the same in every share
                images = self.augment(images, torch.Generator().manual_seed(seed_of(seed, index)))
            yield images[mine], self.labels[rows[mine]]

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        yield from zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)

    def subset(self, rows: Tensor, *, plain: bool = False) -> "TensorSplit":
        return TensorSplit(self.images[rows], self.labels[rows], None if plain else self.augment)


def epoch(images: int, batch_size: int, seed: int, start: int) -> Iterator[tuple[int, Tensor]]:
    """The batches of an epoch from number `start` on: (number, rows of its images).

    Raises:
        DataError: no batches of that size, or none to start at.
    """
    if batch_size < 1 or start < 0:
        raise DataError(f"batches hold at least 1 image and start at 0, got {batch_size} and {start}")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    for index in range(start, max(images // batch_size, 1)):
        yield index, order[index * batch_size : (index + 1) * batch_size]


def rows_of(share: tuple[int, int]) -> slice:
    """
    Raises:
        DataError: no such process.
    """
    rank, world = share
    if not 0 <= rank < world:
        raise DataError(f"a share is (rank, world) with 0 <= rank < world, got {share}")
    return slice(rank, None, world)


def seed_of(*parts: int) -> int:
    """A seed of 63 bits that no other parts share, for sums would: seed 1, batch 2 is not seed 2, batch 1."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


def short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
