"""Hugging Face data: what the library wrote is read, its names are ours, and nothing is fetched unasked."""

import socket
import sys
from pathlib import Path

import pytest
import torch

from recovery.data import DataError, load_dataset
from tests.cases import CLASS_TOKEN
from tests.recovery.data_places import (
    ARCH,
    CLASSES,
    SPLITS,
    hugging_face_table,
    no_progress_bars_nor_cache,
    png,
    shown,
    write_folder,
    write_hugging_face,
)
from vit.errors import UnknownNameError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    no_progress_bars_nor_cache(monkeypatch, tmp_path / "cache")


def saved(root, **tables):
    datasets.DatasetDict(tables).save_to_disk(str(root))
    return f"hfds:{root}"


def table(indices, **columns):
    """Pictures with other columns: plain numbers for labels, or whatever is given."""
    images = [{"bytes": png(index), "path": None} for index in indices]
    given = {"image": images, "label": [index % 3 for index in indices]} | columns
    return datasets.Dataset.from_dict(given).cast_column("image", datasets.Image())


def contents(data):
    return [(shown(images), labels.tolist()) for images, labels in data.test.ordered(99)]


def test_parquet_a_folder_of_images_and_saved_tables_are_the_same_data(tmp_path):
    (tmp_path / "images").mkdir()
    tables = {"train": hugging_face_table(SPLITS["train"]), "validation": hugging_face_table(SPLITS["val"])}
    names = [
        write_hugging_face(tmp_path / "parquet"),
        f"hfds:{write_folder(tmp_path / 'images')}",
        saved(tmp_path / "saved", **tables),
    ]
    first, second, third = (load_dataset(name, ARCH) for name in names)
    assert contents(first) == contents(third) == [(list(SPLITS["val"]), [index % 3 for index in SPLITS["val"]])]
    assert sorted(contents(second)[0][0]) == list(SPLITS["val"])
    assert first.fingerprint == third.fingerprint


def test_splits_and_columns_may_have_other_names(tmp_path):
    def renamed(indices):
        return hugging_face_table(indices).rename_columns({"image": "photo", "label": "breed"})

    name = saved(tmp_path / "saved", fit=renamed(range(9)), held=renamed(range(9, 15)))
    data = load_dataset(f"{name},train=fit,val=held,image=photo,label=breed", ARCH)
    assert (len(data.train), contents(data)) == (9, [(list(range(9, 15)), [0, 1, 2, 0, 1, 2])])


def test_rows_chosen_without_rewriting_the_table_are_those_rows(tmp_path):
    chosen = hugging_face_table(range(15)).select([11, 3, 8])
    data = load_dataset(saved(tmp_path / "saved", train=chosen, test=chosen), ARCH)
    assert contents(data) == [([11, 3, 8], [2, 0, 2])]


def test_numbers_are_classes_of_the_model(tmp_path):
    name = saved(tmp_path / "saved", train=table(range(9)), validation=table(range(9, 12)))
    assert load_dataset(name, CLASS_TOKEN.replace(num_classes=7)).num_classes == 7
    with pytest.raises(DataError, match=r"image 2 of train of .* has label 2, outside \[0, 2\); .* --num-classes N"):
        load_dataset(name, CLASS_TOKEN.replace(num_classes=2))


def test_named_classes_are_the_datas(tmp_path):
    with pytest.raises(DataError, match=r"the model has num_classes 5, the data 'hfds:.*' has 3; .* --num-classes 3"):
        load_dataset(write_hugging_face(tmp_path / "parquet"), CLASS_TOKEN.replace(num_classes=5))


def test_labels_that_are_no_classes_are_named(tmp_path):
    good = table(range(3))
    for number, (labels, message) in enumerate(
        [
            ([0, -1, 2], r"image 1 of train of .* has label -1, outside \[0, 3\)"),
            ([0, 1, None], "image 2 of train of .* has label None; labels must be numbers"),
            (["cat", "dog", "cat"], "image 0 of train of .* has label 'cat'; labels must be numbers"),
        ]
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(saved(tmp_path / f"{number}", train=table(range(3), label=labels), validation=good), ARCH)


def test_splits_whose_classes_have_other_names_are_refused(tmp_path):
    other = hugging_face_table(range(3)).cast_column("label", datasets.ClassLabel(names=list(CLASSES[::-1])))
    with pytest.raises(DataError, match="the labels of its splits are named differently"):
        load_dataset(saved(tmp_path / "saved", train=hugging_face_table(range(3)), validation=other), ARCH)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train=fit", "unknown split of hfds 'fit'; known: train, validation"),
        ("val=test", "unknown split of hfds 'test'; known: train, validation"),
        ("image=photo", "unknown column of hfds 'photo'; known: image, label"),
        ("label=breed", "unknown column of hfds 'breed'; known: image, label"),
    ],
)
def test_names_that_there_are_not_are_refused_with_those_there_are(tmp_path, option, message):
    name = write_hugging_face(tmp_path / "parquet")
    with pytest.raises(UnknownNameError, match=message):
        load_dataset(f"{name},{option}", ARCH)


def test_a_column_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the column 'label' of train of .* holds no images"):
        load_dataset(f"{write_hugging_face(tmp_path / 'parquet')},image=label", ARCH)


def test_a_damaged_or_missing_image_is_named(tmp_path):
    images = [{"bytes": png(0), "path": None}, {"bytes": b"nothing", "path": None}, None]
    broken = table(range(3), image=images)
    data = load_dataset(saved(tmp_path / "saved", train=broken, validation=broken), ARCH)
    with pytest.raises(DataError, match=r"image 1 of train of .*saved is no image of a known format"):
        list(data.train.ordered(3))
    with pytest.raises(DataError, match=r"image 2 of train of .*saved cannot be read as an image"):
        list(data.train.subset(torch.tensor([2])).ordered(3))


def test_the_fingerprint_changes_with_images_and_labels_and_not_with_the_place(tmp_path):
    def fingerprint(place, **columns):
        rows = table(range(3), **columns)
        return load_dataset(saved(tmp_path / place, train=rows, validation=rows), ARCH).fingerprint

    longer = [{"bytes": png(index) + b" ", "path": None} for index in range(3)]
    assert fingerprint("one") == fingerprint("two")
    assert len({fingerprint("three"), fingerprint("four", label=[0, 1, 1]), fingerprint("five", image=longer)}) == 3


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*address):
        raise AssertionError(f"asked for {address[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
def test_nothing_is_fetched_unasked(tmp_path):
    with pytest.raises(DataError, match=r"no folder someone/pets; to fetch .* add ,download=yes"):
        load_dataset("hfds:someone/pets", ARCH)
    with pytest.raises(DataError, match="download must be yes or no, got 'maybe'"):
        load_dataset("hfds:someone/pets,download=maybe", ARCH)
    load_dataset(write_hugging_face(tmp_path / "parquet"), ARCH)


@pytest.mark.usefixtures("_no_network")
def test_images_that_a_table_names_by_address_are_not_fetched(tmp_path):
    away = datasets.Dataset.from_dict({"image": ["https://example.org/a.png"] * 2, "label": [0, 1]})
    data = load_dataset(saved(tmp_path / "saved", train=away, validation=away), ARCH)
    with pytest.raises(DataError, match=r"image 0 of train of .* cannot be read as an image: .*No such file"):
        list(data.train.ordered(2))


def test_without_the_library_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the datasets library: pip install 'vitfit\[hf\]'"):
        load_dataset(f"hfds:{tmp_path}", ARCH)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"hfds: .* cannot be read"):
        load_dataset(f"hfds:{tmp_path}", ARCH)
    hugging_face_table(range(3)).save_to_disk(str(tmp_path / "single"))
    with pytest.raises(DataError, match="is a single split; save a DatasetDict"):
        load_dataset(f"hfds:{Path(tmp_path, 'single')}", ARCH)
