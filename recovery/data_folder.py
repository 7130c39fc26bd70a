"""Folders of images in ImageNet's layout: one folder a class."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recovery.data_files import FileSplit, Preprocessing
from recovery.data_splits import DataError, Dataset, short_hash


@dataclass(frozen=True, eq=False)
class FolderPictures:
    """Files by their paths."""

    files: tuple[str, ...]
    labels: Tensor

    def read(self, index: int) -> bytes:
        return Path(self.files[index]).read_bytes()

    def where(self, index: int) -> str:
        return self.files[index]


def image_folder(root: Path, preprocessing: Preprocessing) -> Dataset:
    """A folder with train/ and val/ (or test/).

    Raises:
        DataError: a split, its classes or its images are missing, or train and test have different classes.
    """
    held_out = "val" if (root / "val").is_dir() else "test"
    classes = {split: _classes(root, split) for split in ("train", held_out)}
    train, test = (_pictures(root / split, classes[split]) for split in ("train", held_out))
    if classes["train"] != classes[held_out]:
        odd = sorted(set(classes["train"]) ^ set(classes[held_out]))
        raise DataError(f"train/ and {held_out}/ have different classes, for example {odd[0]!r}")
    listing = [
        f"{Path(file).relative_to(root)}:{Path(file).stat().st_size}\n"
        for pictures in (train, test)
        for file in pictures.files
    ]
    return Dataset(
        name=str(root),
        train=FileSplit(train, preprocessing),
        test=FileSplit(test, preprocessing, plain=True),
        num_classes=len(classes["train"]),
        in_chans=preprocessing.in_chans,
        image_size=preprocessing.image_size,
        fingerprint=short_hash("".join(listing).encode()),
    )


def _classes(root: Path, split: str) -> list[str]:
    if not (root / split).is_dir():
        raise DataError(f"{root} has no folder {split}/; needed are train/ and val/ (or test/)")
    classes = sorted(entry.name for entry in (root / split).iterdir() if entry.is_dir())
    if not classes:
        raise DataError(f"{root / split} has no classes: it needs one folder of images per class")
    return classes


def _pictures(folder: Path, classes: list[str]) -> FolderPictures:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    for name in sorted(set(classes) - {classes[number] for _, number in found}):
        raise DataError(f"{folder / name} holds no image ({', '.join(IMG_EXTENSIONS)})")
    files, labels = zip(*found, strict=True)
    return FolderPictures(files, torch.tensor(labels))
