"""Hugging Face data sets, through the `datasets` library: folders of Parquet or images, what `save_to_disk` wrote, and,
where a download is asked for, data sets of the Hub.

No code of a data set runs: releases of `datasets` from 4 on cannot. Images that a table names by path are read from
this machine alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recovery.data_files import FileSplit, Preprocessing, check_labels
from recovery.data_splits import DataError, Dataset, short_hash
from vit.errors import UnknownNameError

OPTIONS = ("train", "val", "image", "label", "download")
HELD_OUT = ("validation", "val", "valid", "test")
"""Names of the split to test with, the first that is there."""


@dataclass(frozen=True, eq=False)
class HuggingFacePictures:
    """Rows of a table; `images` has one column, of encoded images or their paths."""

    images: Any
    column: str
    labels: Tensor
    name: str

    def read(self, index: int) -> bytes:
        cell = self.images[index][self.column]
        return bytes(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    def where(self, index: int) -> str:
        return f"image {index} of {self.name}"


def hugging_face(
    name: str, place: str, preprocessing: Preprocessing, num_classes: int, options: Mapping[str, str]
) -> Dataset:
    """A data set in the Hugging Face library's formats.

    Args:
        name: what to call it.
        place: a folder; or, with the option download=yes, a data set of the Hub.
        num_classes: of the model; taken for the data's where its labels are not named.
        options: `train` and `val`, names of splits; `image` and `label`, of columns.

    Raises:
        UnknownNameError: no such split or column.
        DataError: no such place, no library, no images, or labels that are no classes.
    """
    splits = _open(place, options)
    held_out = options.get("val") or next((split for split in HELD_OUT if split in splits), HELD_OUT[0])
    image, label = options.get("image", "image"), options.get("label", "label")
    parts = {
        purpose: _part(splits, split, image, label, f"{split} of {place}", num_classes)
        for purpose, split in (("train", options.get("train", "train")), ("test", held_out))
    }
    (train, classes, first), (test, others, second) = parts["train"], parts["test"]
    if classes != others:
        raise DataError(
            f"{place}: the labels of its splits are named differently, {classes!s:.100} and {others!s:.100}"
        )
    return Dataset(
        name=name,
        train=FileSplit(train, preprocessing),
        test=FileSplit(test, preprocessing, plain=True),
        num_classes=num_classes if classes is None else len(classes),
        in_chans=preprocessing.in_chans,
        image_size=preprocessing.image_size,
        fingerprint=short_hash(first + second),
    )


def _open(place: str, options: Mapping[str, str]) -> Mapping[str, Any]:
    """Splits by name."""
    folder, download = Path(place), options.get("download", "no")
    if download not in ("yes", "no"):
        raise DataError(f"hfds: download must be yes or no, got {download!r}")
    if not folder.is_dir() and download == "no":
        raise DataError(f"hfds: no folder {place}; to fetch {place} from the Hugging Face Hub, add ,download=yes")
    try:
        import datasets
    except ImportError:
        raise DataError("hfds: needs the datasets library: pip install 'vitfit[hf]'") from None
    try:
        if (folder / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(place))
        if (folder / "state.json").is_file():
            raise DataError(f"{place} is a single split; save a DatasetDict with train and validation")
        return dict(datasets.load_dataset(str(folder.resolve()) if folder.is_dir() else place))
    except DataError:
        raise
    except Exception as error:  # the library's, fsspec's, pyarrow's and the network's
        raise DataError(f"hfds: {place} cannot be read: {error!s:.300}") from None


def _part(
    splits: Mapping[str, Any], split: str, image: str, label: str, name: str, num_classes: int
) -> tuple[HuggingFacePictures, tuple[str, ...] | None, bytes]:
    """Pictures, the names of their classes if they have any, and what changes with them."""
    from datasets import Image

    if split not in splits:
        raise UnknownNameError("split of hfds", split, splits)
    table = splits[split]
    for column in (image, label):
        if column not in table.features:
            raise UnknownNameError("column of hfds", column, table.features)
    given = table[label][:]
    for index, value in enumerate(given):
        if not isinstance(value, int):
            raise DataError(f"image {index} of {name} has label {value!r}; labels must be numbers of classes")
    labels = torch.tensor(given, dtype=torch.int64)
    names = getattr(table.features[label], "names", None)
    try:
        images = table.select_columns([image]).cast_column(image, Image(decode=False))
    except Exception as error:  # pyarrow's, TypeError, ValueError: whatever the column holds instead
        raise DataError(f"the column {image!r} of {name} holds no images: {error!s:.200}") from None
    pictures = HuggingFacePictures(images, image, labels, name)
    check_labels(labels, num_classes if names is None else len(names), pictures.where)
    sizes = _sizes(images, image)
    return pictures, None if names is None else tuple(names), sizes.tobytes() + labels.numpy().tobytes()


def _sizes(images: Any, column: str) -> np.ndarray[Any, Any]:
    """Bytes of each image in the order of the storage, without reading one that is stored in the table."""
    from pyarrow import compute

    cells = images.data.column(column)
    sizes = compute.binary_length(compute.struct_field(cells, "bytes")).to_pylist()
    paths = compute.struct_field(cells, "path").to_pylist() if None in sizes else [None] * len(sizes)
    return np.array([_size(path) if size is None else size for size, path in zip(sizes, paths, strict=True)])


def _size(path: str | None) -> int:
    """-1 of what is not there; an error comes when it is wanted, and names it."""
    return Path(path).stat().st_size if path is not None and Path(path).is_file() else -1
