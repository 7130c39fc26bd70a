"""The same small pictures in every kind of place that images are read from.

Picture i is 12 i in its red channel, everywhere, which no crop or flip changes, noise in the others, and of class
i modulo 3. The first 15 are to train with, six to test.
"""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from recovery.data import Dataset, TensorSplit, load_dataset
from tests.cases import CLASS_TOKEN

ARCH = CLASS_TOKEN.replace(num_classes=3)
SPLITS = {"train": range(15), "val": range(15, 21)}
CLASSES = ("blue", "green", "red")


def picture(index):
    pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    pixels[..., 0] = 12 * index
    return Image.fromarray(pixels)


def shown(images):
    """Which pictures these are, by their red channels."""
    return ((images[:, 0].mean(dim=(1, 2)) * 0.5 + 0.5) * 255 / 12).round().int().tolist()


def png(index):
    file = io.BytesIO()
    picture(index).save(file, "png")
    return file.getvalue()


def in_memory(root):
    def images(indices):
        pixels = np.stack([np.asarray(picture(index).resize((16, 16))) for index in indices])
        return torch.tensor(pixels).permute(0, 3, 1, 2) / 127.5 - 1

    def with_noise(images, generator):
        noise = torch.randn(images.shape, generator=generator)
        noise[:, 0] = 0
        return images + noise

    train, test = (TensorSplit(images(rows), torch.tensor(rows) % 3) for rows in SPLITS.values())
    return Dataset("memory", TensorSplit(train.images, train.labels, with_noise), test, 3, 3, (16, 16), "0")


def write_folder(root):
    for split, indices in SPLITS.items():
        for index in indices:
            place = root / split / CLASSES[index % 3]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index}.png").write_bytes(png(index))
    return str(root)


def hugging_face_table(indices):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    columns = {"image": [{"bytes": png(i), "path": None} for i in indices], "label": [i % 3 for i in indices]}
    return datasets.Dataset.from_dict(columns, features=features)


def write_hugging_face(root):
    """Parquet files."""
    root.mkdir(exist_ok=True)
    for split, indices in (("train", SPLITS["train"]), ("validation", SPLITS["val"])):
        hugging_face_table(indices).to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return f"hfds:{root}"


def write_shard(path, samples):
    """A tar file of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(indices):
    for index in indices:
        yield f"some.where/{index:04d}.png", png(index)
        yield f"some.where/{index:04d}.cls", str(index % 3).encode()


def write_shards(root):
    write_shard(root / "pets-train-000.tar", samples(range(9)))
    write_shard(root / "pets-train-001.tar", samples(range(9, 15)))
    write_shard(root / "pets-val-000.tar", samples(SPLITS["val"]))
    return f"wds:{root}"


def on_disk(write):
    def load(root, **options):
        return load_dataset(write(root), ARCH, **options)

    return load


PLACES = {
    "memory": in_memory,
    "folder": on_disk(write_folder),
    "hugging face": on_disk(write_hugging_face),
    "webdataset": on_disk(write_shards),
}
FILES = [name for name in PLACES if name != "memory"]


def no_progress_bars_nor_cache(monkeypatch, folder):
    """The Hugging Face library writes below the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
