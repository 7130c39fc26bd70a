"""Labelled images: built-in sets that need no download, folders of images, Hugging Face data sets and WebDatasets.

digits            1,797 handwritten digits that ship with scikit-learn, 8 x 8 enlarged to 16 x 16
gratings          16 classes of generated gratings (8 orientations x 2 wavelengths) in noise, 24 x 24
plaids            276 classes of two superposed gratings (of 12 orientations x 2 wavelengths) in noise, 32 x 32
gratings:noise=1.2,seed=3,train=8000,test=2000    with options, as plaids
PATH              a folder with train/ and val/ (or test/), each with one folder of images a class (ImageNet layout)
hfds:FOLDER       Parquet, images or `save_to_disk` of the Hugging Face library (extra `hf`)
hfds:NAME,download=yes    a data set of the Hugging Face Hub, fetched into that library's cache
hfds:FOLDER,train=train,val=validation,image=image,label=label    with the names of its splits and columns
wds:FOLDER        WebDataset: tar files with `train` in their paths, and such with `val`, `validation` or `test`
wds:FOLDER/flowers-*-{000..146}.tar,train=train,val=validation,image=jpg,label=cls    a pattern, words, extensions
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from recovery import data_hf, data_tar
from recovery.data_built_in import BUILT_IN, built_in, digits, gratings, plaids
from recovery.data_files import Preprocessing, check_auto_augment
from recovery.data_folder import image_folder
from recovery.data_splits import Batch, DataError, Dataset, Split, TensorSplit
from vit.architecture import Architecture
from vit.checkpoint import Normalisation
from vit.errors import UnknownNameError

__all__ = [
    "BUILT_IN",
    "HALVES",
    "Batch",
    "DataError",
    "Dataset",
    "Split",
    "TensorSplit",
    "digits",
    "gratings",
    "load_dataset",
    "plaids",
]

HALVES: Normalisation = ((0.5,), (0.5,))

Load = Callable[[str, str, Preprocessing, int, Mapping[str, str]], Dataset]
FORMATS: dict[str, tuple[Load, tuple[str, ...]]] = {
    "hfds": (data_hf.hugging_face, data_hf.OPTIONS),
    "wds": (data_tar.tar_files, data_tar.OPTIONS),
}
"""What reads data of a prefix, and the options that may follow the place."""


def load_dataset(
    name: str,
    arch: Architecture | None = None,
    normalisation: Normalisation = HALVES,
    *,
    auto_augment: str | None = None,
) -> Dataset:
    """A data set by name (see the top of this file).

    Args:
        arch: the model that shall read it: image files are resized for it, and a misfit is an error.
        normalisation: of the pixels of image files; built-in data is normalised already.
        auto_augment: for training with image files, a string of timm's (see `Preprocessing`). Built-in data has an
            augmentation of its own, or none, and goes by that, so that a recipe can be tried on it.

    Raises:
        UnknownNameError: neither a built-in name nor a place.
        DataError: unreadable, wrong options, or not for this model.
    """
    check_auto_augment(auto_augment)
    kind, _, rest = name.partition(":")
    if kind in BUILT_IN:
        dataset = built_in(kind, rest)
    elif kind in FORMATS or Path(name).is_dir():
        if arch is None:
            raise DataError("image files need the model that shall read them")
        preprocessing = Preprocessing.of(arch, normalisation, auto_augment)
        if kind in FORMATS:
            load, allowed = FORMATS[kind]
            place, options = _options(kind, rest, allowed)
            dataset = load(name, place, preprocessing, arch.num_classes, options)
        else:
            dataset = image_folder(Path(name), preprocessing)
    else:
        raise UnknownNameError(
            "data", name, (*BUILT_IN, "a folder with train/ and val/", "hfds:FOLDER", "wds:FOLDER_OR_PATTERN")
        )
    if arch is not None:
        dataset.check(arch)
    return dataset


def _options(kind: str, text: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """A place and what follows it, as in "images,train=all"."""
    place, *given = text.split(",")
    if not place:
        raise DataError(f"{kind}: needs a place, as in {kind}:path/to/images")
    options = {}
    for option in given:
        key, _, value = option.partition("=")
        if key not in allowed:
            raise UnknownNameError(f"option of {kind}", key, allowed)
        if not value:
            raise DataError(f"{kind}: {key} needs a value, as in {key}=...")
        options[key] = value
    return place, options
