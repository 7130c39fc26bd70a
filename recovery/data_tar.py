"""WebDataset: tar files of samples, the files of a sample being neighbours of one name (`0001.jpg`, `0001.cls`).

They are read with Python's own tarfile, by an index of where each image lies: headers are read once, images when they
are wanted, nothing is extracted or unpickled. So an epoch is a uniformly random order of all images, not a stream
through a buffer, and starts and shares hold exactly. The price is some 0.1 ms a sample to make the index (two minutes
for a million), and reads at random places: fine on local disks, slow on network file systems.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from recovery.data_files import FileSplit, Preprocessing, check_labels
from recovery.data_splits import DataError, Dataset

OPTIONS = ("train", "val", "image", "label")
HELD_OUT = ("validation", "val", "valid", "test")
"""Words for the shards to test with, the first that is there."""
IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "tif", "tiff")
LONGEST_LABEL = 32
"""Bytes; a longer one is no number."""

NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
"""What WebDataset takes for the sample and the extension: all before and after the first dot of a file's name."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, eq=False)
class TarPictures:
    """Images by where they lie: `places` is (images, 3), the shard, the first byte and the bytes of each."""

    shards: tuple[Path, ...]
    places: Tensor
    keys: tuple[str, ...]
    labels: Tensor

    def read(self, index: int) -> bytes:
        shard, offset, size = self.places[index].tolist()
        with self.shards[shard].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def where(self, index: int) -> str:
        return f"sample {self.keys[index]!r} of {self.shards[int(self.places[index, 0])]}"


def tar_files(
    name: str, place: str, preprocessing: Preprocessing, num_classes: int, options: Mapping[str, str]
) -> Dataset:
    """Local shards; a word in their path says which split they belong to, as in `flowers-train-0003.tar`.

    Args:
        name: what to call it.
        place: a folder, or a pattern of paths (`*`, `?`, `**`, `{0000..0146}`).
        num_classes: of the model, and taken for the data's, for shards do not say.
        options: `train` and `val`, those words; `image` and `label`, extensions of a sample's files.

    Raises:
        DataError: no shards, shards that cannot be read, or samples without an image or a number of a class.
    """
    found = _shards(place)
    train = [path for path in found if _has(found[path], options.get("train", "train"))]
    words = [options["val"]] if "val" in options else HELD_OUT
    test: list[Path] = next(filter(None, ([p for p in found if _has(found[p], word)] for word in words)), [])
    for shards, word in ((train, options.get("train", "train")), (test, " or ".join(words))):
        if not shards:
            raise DataError(f"wds: no shard of {place} is called {word}; there are {', '.join(found.values()):.200}")
    if both := sorted(set(train) & set(test)):
        raise DataError(
            f"wds: {found[both[0]]} is called both {options.get('train', 'train')} and {' or '.join(words)}"
        )
    image = (options["image"],) if "image" in options else IMAGES
    digest = hashlib.sha256()
    splits = []
    for shards in (train, test):
        pictures = _index(shards, image, options.get("label", "cls"))
        check_labels(pictures.labels, num_classes, pictures.where)
        listing = zip(pictures.keys, pictures.places[:, 2].tolist(), pictures.labels.tolist(), strict=True)
        digest.update("".join(f"{key}:{size}:{label}\n" for key, size, label in listing).encode())
        splits.append(pictures)
    return Dataset(
        name=name,
        train=FileSplit(splits[0], preprocessing),
        test=FileSplit(splits[1], preprocessing, plain=True),
        num_classes=num_classes,
        in_chans=preprocessing.in_chans,
        image_size=preprocessing.image_size,
        fingerprint=digest.hexdigest()[:16],
    )


def _shards(place: str) -> dict[Path, str]:
    """Shards in order, with what their names say: the path below the folder, or below the first wildcard's."""
    root, patterns = Path(place), iter(["**/*.tar"])
    if not root.is_dir():
        fixed = re.split(r"[*?\[{]", place)[0]
        head = fixed[: fixed.rfind("/") + 1]
        root, patterns = Path(head), _expanded(place.removeprefix(head))
    found: dict[Path, str] = {}
    for pattern in patterns:
        paths = sorted(root.glob(pattern))
        if not paths:
            raise DataError(
                f"wds: no shard {root / pattern}; needed is a folder with .tar files, or a pattern of paths"
            )
        found |= {path: str(path.relative_to(root)) for path in paths}
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """{0000..0146} written out; the zeros of the first number count."""
    part = RANGE.search(pattern)
    if part is None:
        yield pattern
        return
    first, last = part.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: part.start()]}{number:0{len(first)}d}{pattern[part.end() :]}")


def _has(name: str, word: str) -> bool:
    return re.search(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])", name.lower()) is not None


def _index(shards: list[Path], image: tuple[str, ...], label: str) -> TarPictures:
    places, keys, labels = [], [], []
    for number, shard in enumerate(shards):
        try:
            for key, files, given in _samples(shard, label):
                found = next((files[extension] for extension in image if extension in files), None)
                where = f"sample {key!r} of {shard}"
                if found is None:
                    raise DataError(f"{where} has no image ({', '.join(image)}), but {', '.join(files)}; say image=...")
                if not re.fullmatch(rb"\s*-?\d{1,18}\s*", given):
                    raise DataError(f"{where} has no class in its .{label}, but {given.decode(errors='replace')!r}")
                places.append((number, *found))
                keys.append(key)
                labels.append(int(given))
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{shard} cannot be read as a tar file (uncompressed): {error}") from None
    if not places:
        raise DataError(f"{shards[0]} holds no samples")
    return TarPictures(tuple(shards), torch.tensor(places), tuple(keys), torch.tensor(labels))


def _samples(shard: Path, label: str) -> Iterator[tuple[str, dict[str, tuple[int, int]], bytes]]:
    """Name of each sample, (offset, size) of its files by extension, and what the file `label` says."""

    def files(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it would keep the header of every file
            match = NAME.fullmatch(member.name)
            if match and member.isreg() and not member.issparse():
                yield match[1], match[2].lower(), member

    with shard.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
        for key, members in groupby(files(tar), key=lambda found: found[0]):
            by_extension: dict[str, tuple[int, int]] = {}
            given = b""
            for _, extension, member in members:
                by_extension[extension] = (member.offset_data, member.size)
                if extension == label and (file := tar.extractfile(member)):
                    given = file.read(LONGEST_LABEL)
            yield key, by_extension, given
