"""Image files as splits: read where they lie, one by one, through timm's transforms.

Where the files are is the business of `Pictures`: a folder, a Hugging Face data set or tar files.
"""

import io
import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from recovery.data_splits import Batch, DataError, epoch, rows_of, seed_of
from vit.architecture import Architecture
from vit.checkpoint import Normalisation

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
"""What is decoded, whatever a file is called. Others are refused, for Pillow starts Ghostscript for some of them."""

AUTO_AUGMENT = re.compile(
    r"rand(-(m|n|p|mstd|mmax|inc)\d[\d.]*|-t(weights|3a|3aw))*"
    r"|augmix(-(m|w|d|a|b|mstd)\d[\d.]*)*"
    r"|(original|originalr|v0|v0r|3a)(-mstd\d[\d.]*)?"
)
"""timm's strings for RandAugment, AugMix and AutoAugment, less the sections that timm would pass over in silence."""

_Wanted = tuple[int, int]
"""A picture and the seed of its augmentation."""


class Pictures(Protocol):
    """Files of images and what they show; each can be read by itself."""

    @property
    def labels(self) -> Tensor:
        """Classes, shape (images,), int64."""

    def read(self, index: int) -> bytes:
        """The file of an image, encoded."""

    def where(self, index: int) -> str:
        """How an error names the image."""


@dataclass(frozen=True)
class Preprocessing:
    """How files become the images of a model: timm's transforms, with random crops, flips and `auto_augment` to train.

    No colour jitter and no erasing: what batches of any data can go through belongs to training.

    Attributes:
        in_chans: 1 or 3.
        image_size: (height, width) in pixels.
        normalisation: mean and standard deviation of the pixels.
        auto_augment: a string of timm's, as "rand-m9-mstd0.5-inc1", "original" or "augmix-m5-w4-d2".

    Raises:
        DataError: other channels, or such a string that timm does not understand.
    """

    in_chans: int
    image_size: tuple[int, int]
    normalisation: Normalisation
    auto_augment: str | None = None

    def __post_init__(self) -> None:
        if self.in_chans not in (1, 3):
            raise DataError(f"image files give 1 or 3 channels, the model takes {self.in_chans}")
        check_auto_augment(self.auto_augment)

    @classmethod
    def of(cls, arch: Architecture, normalisation: Normalisation, auto_augment: str | None = None) -> "Preprocessing":
        return cls(arch.in_chans, arch.image_size, normalisation, auto_augment)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.in_chans, *self.image_size

    def transform(self, *, training: bool) -> Callable[[Image.Image], Tensor]:
        from timm.data import create_transform
        from torchvision.transforms import Compose, Grayscale

        # Grey images go through in three equal channels: timm's colours are of three.
        mean, std = (np.resize(values[: self.in_chans], 3).tolist() for values in self.normalisation)
        transform: Callable[[Image.Image], Tensor] = create_transform(
            (3, *self.image_size),
            is_training=training,
            mean=mean,
            std=std,
            color_jitter=None,
            auto_augment=self.auto_augment if training else None,
        )
        return Compose([Grayscale(3), transform, _first_channel]) if self.in_chans == 1 else transform


def check_auto_augment(text: str | None) -> None:
    """
    Raises:
        DataError: timm does not understand this string.
    """
    if text is None:
        return
    from timm.data import create_transform

    try:
        understood = AUTO_AUGMENT.fullmatch(text) is not None
        if understood:
            create_transform(8, is_training=True, auto_augment=text)
    except (AssertionError, ValueError):  # a number that is none of the kind that the section takes
        understood = False
    if not understood:
        raise DataError(
            f"auto_augment {text!r} is not known; allowed are rand (sections m, n, p, mstd, mmax, inc and tweights), "
            "augmix (m, w, d, a, b, mstd), original, originalr, v0, v0r and 3a (mstd), as in rand-m9-mstd0.5-inc1"
        )


def _first_channel(image: Tensor) -> Tensor:
    return image[:1]


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Files on disk, decoded when they are wanted.

    Args:
        rows: which of the pictures, in which order; None for all.
        plain: never augmented.
    """

    pictures: Pictures
    preprocessing: Preprocessing
    rows: Tensor | None = None
    plain: bool = False

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _rows(self) -> Tensor:
        return torch.arange(len(self.pictures.labels)) if self.rows is None else self.rows

    def shuffled(
        self, batch_size: int, seed: int, *, augment: bool, start: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        mine, rows = rows_of(share), self._rows

        def wanted() -> Iterator[list[_Wanted]]:
            for index, chosen in epoch(len(rows), batch_size, seed, start):
                files = rows[chosen].tolist()
                yield [(file, seed_of(seed, index, place)) for place, file in enumerate(files)][mine]

        return self._load(wanted(), training=augment and not self.plain)

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        wanted = ([(file, 0) for file in files.tolist()] for files in self._rows.split(batch_size))
        return self._load(wanted, training=False)

    def subset(self, rows: Tensor, *, plain: bool = False) -> "FileSplit":
        return replace(self, rows=self._rows[rows], plain=self.plain or plain)

    def _load(self, wanted: Iterable[list[_Wanted]], *, training: bool) -> Iterator[Batch]:
        reader = _Reader(self.pictures, self.preprocessing.transform(training=training), self.preprocessing.shape)
        loader: Any = torch.utils.data.DataLoader(
            reader,
            batch_size=None,  # a batch at a time
            sampler=wanted,
            num_workers=_workers(),
            generator=torch.Generator(),  # else it would draw from the caller's
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            yield images, labels


@dataclass(frozen=True, eq=False)
class _Reader(torch.utils.data.Dataset[Batch | DataError]):
    """Reads batches, in the workers of a loader. Errors are values here: raised, they would come with a traceback."""

    pictures: Pictures
    transform: Callable[[Image.Image], Tensor]
    shape: tuple[int, int, int]

    def __getitem__(self, wanted: list[_Wanted]) -> Batch | DataError:
        files = [file for file, _ in wanted]
        try:
            images = [self._image(file, seed) for file, seed in wanted]
        except DataError as error:
            return error
        return torch.stack(images) if images else torch.empty(0, *self.shape), self.pictures.labels[files]

    def _image(self, file: int, seed: int) -> Tensor:
        try:
            with Image.open(io.BytesIO(self.pictures.read(file)), formats=FORMATS) as image:
                picture = image.convert("RGB")
        except UnidentifiedImageError:
            raise DataError(
                f"{self.pictures.where(file)} is no image of a known format: {', '.join(FORMATS)}"
            ) from None
        except Exception as error:  # each decoder has its own for a damaged file
            raise DataError(f"{self.pictures.where(file)} cannot be read as an image: {error}") from None
        with _seeded(seed):
            return self.transform(picture)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators, which timm's transforms draw from, seeded; then as before."""
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(tensor)


def _workers() -> int:
    return min(8, torch.get_num_threads() - 1)


def check_labels(labels: Tensor, classes: int, where: Callable[[int], str]) -> None:
    """
    Raises:
        DataError: a label outside [0, classes); the message names the first such image.
    """
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        index = int(outside[0])
        raise DataError(
            f"{where(index)} has label {int(labels[index])}, outside [0, {classes}); "
            "correct the labels, or take a model of more classes (`vitfit import TIMM_NAME --num-classes N`)"
        )
