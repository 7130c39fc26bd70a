"""Labelled images: three built-in sets that need no download, and folders of images.

digits            1,797 handwritten digits that ship with scikit-learn, 8 x 8 enlarged to 16 x 16
gratings          16 classes of generated gratings (8 orientations x 2 wavelengths) in noise, 24 x 24
plaids            276 classes of two superposed gratings (of 12 orientations x 2 wavelengths) in noise, 32 x 32
gratings:noise=1.2,seed=3,train=8000,test=2000    with options, as plaids
PATH              a folder with train/ and val/ (or test/), each with one folder of images a class (ImageNet layout)
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recovery.generated import GRATING_CLASSES, PLAID_PAIRS, grating_images, plaid_images
from vit.architecture import Architecture
from vit.checkpoint import Normalisation
from vit.errors import UnknownNameError, VitfitError

Batch = tuple[Tensor, Tensor]
HALVES: Normalisation = ((0.5,), (0.5,))


class DataError(VitfitError, ValueError):
    """Data that cannot be read, or that does not fit the model."""


class Split(Protocol):
    """Labelled images of one purpose."""

    def __len__(self) -> int: ...
    def shuffled(self, batch_size: int, seed: int, *, augment: bool) -> Iterator[Batch]:
        """One epoch in random order; the last incomplete batch is dropped if there is another."""

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """Every image once, in order, as it is."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """
    Attributes:
        train, test: the splits.
        num_classes, in_chans, image_size: what a model must take and give.
        fingerprint: changes with the data.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    in_chans: int
    image_size: tuple[int, int]
    fingerprint: str

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
        for name, (model, data) in wants.items():
            if model != data:
                raise DataError(f"the model has {name} {model}, the data {self.name!r} has {data}")


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Images in memory. `augment` maps a batch of images and a generator to a batch of images."""

    images: Tensor
    labels: Tensor
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def shuffled(self, batch_size: int, seed: int, *, augment: bool) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        count = max(len(self) // batch_size, 1)
        for index in range(count):
            chosen = order[index * batch_size : (index + 1) * batch_size]
            images = self.images[chosen]
            if augment and self.augment is not None:
                images = self.augment(images, generator)
            yield images, self.labels[chosen]

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        yield from zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


def _fingerprint(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _in_memory(name: str, train: TensorSplit, test: TensorSplit, num_classes: int) -> Dataset:
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=num_classes,
        in_chans=train.images.shape[1],
        image_size=(train.images.shape[2], train.images.shape[3]),
        fingerprint=_fingerprint(train.images, train.labels, test.images, test.labels),
    )


def _shift_and_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts of up to two pixels and a little noise: enough for handwriting."""
    down, right = (int(s) for s in torch.randint(-2, 3, (2,), generator=generator))
    noise = torch.randn(images.shape, generator=generator)
    return torch.roll(images, (down, right), (2, 3)) + 0.15 * noise


def digits() -> Dataset:
    """scikit-learn's handwritten digits (Alpaydin & Kaynak 1998): 1,297 to train, 500 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    images = (F.interpolate(images, size=16, mode="bilinear") - 0.3) / 0.35
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
    images, labels = images[order], labels[order]
    train = TensorSplit(images[:1297], labels[:1297], _shift_and_noise)
    return _in_memory("digits", train, TensorSplit(images[1297:], labels[1297:]), 10)


def _generated(
    name: str,
    draw: Callable[[int, float, int], Batch],
    num_classes: int,
    noise: float,
    seed: int,
    train: int,
    test: int,
) -> Dataset:
    if not 0 <= noise <= 100:
        raise DataError(f"{name}: noise must be from 0 to 100, got {noise}")
    if not 0 <= seed < 8000:
        raise DataError(f"{name}: seed must be from 0 to 7999, got {seed} (8000 draws the test images)")
    if not (1 <= train <= 200_000 and 1 <= test <= 200_000):
        raise DataError(f"{name}: train and test must be from 1 to 200000, got {train} and {test}")
    return _in_memory(
        name,
        TensorSplit(*draw(train, noise, 1000 + seed)),
        TensorSplit(*draw(test, noise, 9000)),
        num_classes,
    )


def gratings(noise: float = 1.2, seed: int = 0, train: int = 8000, test: int = 2000) -> Dataset:
    """Gratings; `seed` draws the training images, the test images are always the same."""
    return _generated("gratings", grating_images, GRATING_CLASSES, noise, seed, train, test)


def plaids(noise: float = 0.6, seed: int = 0, train: int = 20_000, test: int = 2000) -> Dataset:
    """Sums of two gratings; `seed` draws the training images, the test images are always the same."""
    return _generated("plaids", plaid_images, len(PLAID_PAIRS), noise, seed, train, test)


BUILT_IN: dict[str, Callable[..., Dataset]] = {"digits": digits, "gratings": gratings, "plaids": plaids}
OPTIONS = {"noise": float, "seed": int, "train": int, "test": int}
"""What can be said about generated data; digits are as they are."""


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images on disk through timm's transforms and loader."""

    root: Path
    arch: Architecture
    normalisation: Normalisation

    def _dataset(self, *, training: bool) -> torch.utils.data.Dataset[Batch]:
        from timm.data import create_transform
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import Compose, Grayscale

        size = (self.arch.in_chans, *self.arch.image_size)
        mean, std = (np.resize(values, self.arch.in_chans).tolist() for values in self.normalisation)
        transform = create_transform(size, is_training=training, mean=mean, std=std)
        if self.arch.in_chans == 1:
            transform = Compose([Grayscale(), transform])
        return ImageFolder(str(self.root), transform)

    def __len__(self) -> int:
        return len(self._dataset(training=False))  # type: ignore[arg-type]

    def shuffled(self, batch_size: int, seed: int, *, augment: bool) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        dataset = self._dataset(training=augment)
        yield from self._batches(
            dataset, batch_size, shuffle=True, generator=generator, drop_last=len(self) >= batch_size
        )

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        dataset = self._dataset(training=False)
        yield from self._batches(dataset, batch_size)

    def _batches(self, dataset: torch.utils.data.Dataset[Batch], batch_size: int, **options: Any) -> Iterator[Batch]:
        try:
            yield from torch.utils.data.DataLoader(dataset, batch_size, num_workers=_workers(), **options)
        except OSError as error:  # Pillow's errors are OSErrors and name the file
            raise DataError(f"an image below {self.root} cannot be read: {error}") from None


def _workers() -> int:
    return min(8, torch.get_num_threads() - 1)


def image_folder(root: Path, arch: Architecture, normalisation: Normalisation = HALVES) -> Dataset:
    """A folder in ImageNet's layout, resized to what `arch` takes.

    Args:
        normalisation: mean and standard deviation of the pixels that the model was trained with.

    Raises:
        DataError: a split, its classes or its images are missing, train and test have different classes, or the
            model takes neither 1 nor 3 channels.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if arch.in_chans not in (1, 3):
        raise DataError(f"a folder of images gives 1 or 3 channels, the model takes {arch.in_chans}")
    held_out = "val" if (root / "val").is_dir() else "test"
    listing = hashlib.sha256()
    classes: dict[str, list[str]] = {}
    for split in ("train", held_out):
        folder = root / split
        if not folder.is_dir():
            raise DataError(f"{root} has no folder {split}/; needed are train/ and val/ (or test/)")
        classes[split] = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if not classes[split]:
            raise DataError(f"{folder} has no classes: it needs one folder of images per class")
        for name in classes[split]:
            files = [f for f in sorted((folder / name).rglob("*")) if f.suffix.lower() in IMG_EXTENSIONS]
            if not files:
                raise DataError(f"{folder / name} holds no image ({', '.join(IMG_EXTENSIONS)})")
            for file in files:
                listing.update(f"{file.relative_to(root)}:{file.stat().st_size}\n".encode())
    if classes["train"] != classes[held_out]:
        odd = sorted(set(classes["train"]) ^ set(classes[held_out]))
        raise DataError(f"train/ and {held_out}/ have different classes, for example {odd[0]!r}")
    return Dataset(
        name=str(root),
        train=FolderSplit(root / "train", arch, normalisation),
        test=FolderSplit(root / held_out, arch, normalisation),
        num_classes=len(classes["train"]),
        in_chans=arch.in_chans,
        image_size=arch.image_size,
        fingerprint=listing.hexdigest()[:16],
    )


def load_dataset(name: str, arch: Architecture | None = None, normalisation: Normalisation = HALVES) -> Dataset:
    """A data set by name (see the top of this file).

    Args:
        arch: the model that shall read it: folders are resized for it, and a misfit is an error.
        normalisation: of the images of a folder; built-in data is normalised already.

    Raises:
        UnknownNameError: neither a built-in name nor a folder.
        DataError: unreadable, wrong options, or not for this model.
    """
    kind, _, options = name.partition(":")
    if kind in BUILT_IN:
        dataset = _built_in(kind, options)
    elif Path(name).is_dir():
        if arch is None:
            raise DataError("a folder of images needs the model that shall read it")
        dataset = image_folder(Path(name), arch, normalisation)
    else:
        raise UnknownNameError("data", name, (*BUILT_IN, "a folder with train/ and val/"))
    if arch is not None:
        dataset.check(arch)
    return dataset


def _built_in(kind: str, options: str) -> Dataset:
    allowed = {} if kind == "digits" else OPTIONS
    chosen: dict[str, float] = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key not in allowed:
            raise UnknownNameError(f"option of {kind}", key, allowed)
        try:
            chosen[key] = allowed[key](value)
        except ValueError:
            raise DataError(f"{kind}: {key} must be a number, got {value!r}") from None
    return BUILT_IN[kind](**chosen)
