"""Folders of images give the images and classes that are in them; what is missing is named."""

import pytest
import torch
from PIL import Image

from recovery.data import DataError, load_dataset
from tests.cases import CLASS_TOKEN

ARCH = CLASS_TOKEN.replace(num_classes=3)
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def folder(tmp_path):
    """Three classes of five (train) and two (val) images of one colour each."""
    for split, count in (("train", 5), ("val", 2)):
        for name, colour in COLOURS.items():
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (20 + index, 30), colour).save(place / f"{index}.png")
    return tmp_path / "images"


def test_a_folder_gives_its_images_at_the_models_size_with_the_class_of_their_folder(folder):
    data = load_dataset(str(folder), ARCH)
    assert (data.num_classes, data.in_chans, data.image_size) == (3, 3, (16, 16))
    assert (len(data.train), len(data.test)) == (15, 6)
    ((images, labels),) = data.test.ordered(10)
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    brightest = images.mean(dim=(2, 3)).argmax(dim=1)  # classes in the order of their names: blue, green, red
    assert brightest.tolist() == [2, 2, 1, 1, 0, 0]
    torch.testing.assert_close(images.amax(dim=(1, 2, 3)), torch.ones(6))


def test_a_folders_test_split_may_be_called_test(folder):
    (folder / "val").rename(folder / "test")
    assert len(load_dataset(str(folder), ARCH).test) == 6


def test_a_grey_model_gets_grey_images_of_a_folder(folder):
    data = load_dataset(str(folder), ARCH.replace(in_chans=1))
    for batches in (data.test.ordered(6), data.train.shuffled(5, 0, augment=True)):
        assert all(images.shape[1:] == (1, 16, 16) for images, _ in batches)


def test_a_folder_cannot_be_read_for_a_model_of_four_channels(folder):
    with pytest.raises(DataError, match="image files give 1 or 3 channels, the model takes 4"):
        load_dataset(str(folder), ARCH.replace(in_chans=4))


def test_a_folders_fingerprint_changes_with_its_files_and_not_with_its_place(folder, tmp_path):
    before = load_dataset(str(folder), ARCH).fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_dataset(str(moved), ARCH).fingerprint == before
    (moved / "train" / "red" / "0.png").unlink()
    assert load_dataset(str(moved), ARCH).fingerprint != before


def test_a_folder_needs_the_model_that_shall_read_it(folder):
    with pytest.raises(DataError, match="image files need the model that shall read them"):
        load_dataset(str(folder))


def test_a_folder_of_another_number_of_classes_than_the_models_is_refused(folder):
    with pytest.raises(DataError, match=r"the model has num_classes 5, the data .* has 3"):
        load_dataset(str(folder), CLASS_TOKEN)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_without_a_split_is_refused(folder, split):
    (folder / split).rename(folder / "other")
    missing = "train" if split == "train" else "test"
    with pytest.raises(DataError, match=rf"has no folder {missing}/; needed are train/ and val/ \(or test/\)"):
        load_dataset(str(folder), ARCH)


def test_a_split_without_classes_is_refused(folder):
    for place in (folder / "train").iterdir():
        place.rename(folder / place.name)
    with pytest.raises(DataError, match="train has no classes: it needs one folder of images per class"):
        load_dataset(str(folder), ARCH)


def test_a_class_without_images_is_refused_by_name(folder):
    (folder / "train" / "pink").mkdir()
    (folder / "train" / "pink" / "notes.txt").write_text("soon")
    with pytest.raises(DataError, match=r"pink holds no image \(\.jpg"):
        load_dataset(str(folder), ARCH)


def test_different_classes_to_train_and_to_test_are_refused_with_an_example(folder):
    (folder / "val" / "red").rename(folder / "val" / "rosso")
    with pytest.raises(DataError, match="train/ and val/ have different classes, for example 'red'"):
        load_dataset(str(folder), ARCH)
