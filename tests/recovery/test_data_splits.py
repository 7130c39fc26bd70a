"""What holds for the splits of every kind of data: in memory, in folders, Hugging Face tables and tar files."""

import random

import numpy as np
import pytest
import torch

from recovery import data_files
from recovery.data import DataError, load_dataset
from tests.recovery.data_places import ARCH, FILES, PLACES, no_progress_bars_nor_cache, picture, shown, write_folder


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def load(kind, root, monkeypatch, **options):
    if kind == "hugging face":
        no_progress_bars_nor_cache(monkeypatch, root / "cache")
    return PLACES[kind](root / "pets", **options)


@pytest.fixture(params=PLACES)
def data(request, tmp_path, monkeypatch):
    return load(request.param, tmp_path, monkeypatch)


@pytest.fixture(params=FILES)
def file_data(request, tmp_path, monkeypatch):
    return load(request.param, tmp_path, monkeypatch, auto_augment="rand-m9-mstd0.5-inc1")


def test_in_order_every_image_comes_once_as_it_is_with_its_label(data):
    for split, pictures in ((data.train, range(15)), (data.test, range(15, 21))):
        batches = list(split.ordered(4))
        images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        assert len(split) == len(pictures)
        assert max(len(labels) for _, labels in batches) == 4
        assert sorted(shown(images)) == list(pictures)
        assert labels.tolist() == [index % 3 for index in shown(images)]
        assert images.shape[1:] == (3, *data.image_size)


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_shows_an_image_at_most_once_and_drops_a_last_incomplete_batch(data, augment):
    batches = list(data.train.shuffled(4, 0, augment=augment))
    assert [len(labels) for _, labels in batches] == [4, 4, 4]
    assert all(labels.tolist() == [index % 3 for index in shown(images)] for images, labels in batches)
    order = [index for images, _ in batches for index in shown(images)]
    assert len(set(order)) == 12
    assert order != sorted(order)
    ((images, _),) = data.train.shuffled(99, 0, augment=augment)
    assert sorted(shown(images)) == list(range(15))


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_depends_on_its_seed_alone(data, augment):
    first, again, other = (list(data.train.shuffled(4, seed, augment=augment)) for seed in (3, 3, 4))
    assert equal(first, again)
    assert not equal(first, other)


def test_augmentation_changes_images_and_not_their_order(data):
    plain, augmented = (list(data.train.shuffled(4, 0, augment=augment)) for augment in (False, True))
    assert [shown(images) for images, _ in plain] == [shown(images) for images, _ in augmented]
    assert not any(torch.equal(a, b) for (a, _), (b, _) in zip(plain, augmented, strict=True))


def test_no_two_images_of_two_epochs_are_augmented_alike(data):
    copies = data.train.subset(torch.zeros(12, dtype=torch.int64))
    images = torch.cat([images for seed in (1, 2) for images, _ in copies.shuffled(4, seed, augment=True)])
    assert len(images.flatten(1).unique(dim=0)) == 24


@pytest.mark.parametrize("start", [1, 3, 9])
def test_an_epoch_entered_at_a_batch_is_the_rest_of_one_that_never_stopped(data, start):
    whole = list(data.train.shuffled(4, 5, augment=True))
    assert equal(list(data.train.shuffled(4, 5, augment=True, start=start)), whole[start:])


@pytest.mark.parametrize("world", [2, 5])
def test_the_shares_of_all_processes_are_the_batch(data, world):
    whole = list(data.train.shuffled(4, 5, augment=True, start=1))
    shares = [list(data.train.shuffled(4, 5, augment=True, start=1, share=(rank, world))) for rank in range(world)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        together = torch.empty_like(batch[0]), torch.empty_like(batch[1])
        for rank, (images, labels) in enumerate(parts):  # the fifth gets nothing of four, in the right shape
            together[0][rank::world], together[1][rank::world] = images, labels
        assert equal([together], [batch])


def test_epochs_leave_the_callers_random_state_as_it_was(data):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    for _ in data.train.shuffled(4, 0, augment=True):
        assert states() == before  # between batches too, where the caller draws
    list(data.test.ordered(4))
    assert states() == before


@pytest.mark.parametrize(
    ("batch_size", "how", "message"),
    [
        (0, {}, "batches hold at least 1 image and start at 0, got 0 and 0"),
        (4, {"start": -1}, "got 4 and -1"),
        (4, {"share": (2, 2)}, r"\(rank, world\) with 0 <= rank < world, got \(2, 2\)"),
    ],
)
def test_batches_that_cannot_be_are_refused(data, batch_size, how, message):
    with pytest.raises(DataError, match=message):
        list(data.train.shuffled(batch_size, 0, augment=False, **how))


def test_a_subset_is_those_images_in_that_order(data):
    images, labels = next(iter(data.train.ordered(15)))
    rows = torch.tensor([7, 2, 11])
    assert equal(list(data.train.subset(rows).ordered(9)), [(images[rows], labels[rows])])
    again = data.train.subset(rows).subset(torch.tensor([2, 0]))
    assert equal(list(again.ordered(9)), [(images[[11, 7]], labels[[11, 7]])])


def test_held_out_images_and_the_rest_are_the_training_images(data):
    held = data.hold_out(0.2, seed=0)
    parts = [shown(next(iter(split.ordered(99)))[0]) for split in (held.train, held.validation)]
    assert [len(part) for part in parts] == [12, 3] == [len(held.train), len(held.validation)]
    assert sorted(parts[0] + parts[1]) == list(range(15))
    assert held.test is data.test
    assert len({data.fingerprint, held.fingerprint, data.hold_out(0.2, seed=1).fingerprint}) == 3
    assert held.fingerprint == data.hold_out(0.2, seed=0).fingerprint


def test_held_out_images_are_never_augmented(data):
    validation = data.hold_out(0.4, seed=0).validation
    assert equal(*(list(validation.shuffled(2, 0, augment=augment)) for augment in (False, True)))


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.0, "between 0 and 1, got 0"),
        (1.0, "between 0 and 1, got 1"),
        (float("nan"), "between 0 and 1, got nan"),
        (0.99, "holding out 15 of 15 training images leaves none to train with"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused(data, share, message):
    with pytest.raises(DataError, match=message):
        data.hold_out(share, seed=0)


def test_even_a_tiny_share_holds_one_image_out_and_only_once(data):
    held = data.hold_out(0.001, seed=0)
    assert len(held.validation) == 1
    with pytest.raises(DataError, match="holds validation images out already"):
        held.hold_out(0.5, seed=0)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_read_the_same_epoch(file_data, monkeypatch):
    epochs = []
    for workers in (0, 2):
        monkeypatch.setattr(data_files, "_workers", lambda workers=workers: workers)
        epochs.append(list(file_data.train.shuffled(4, 5, augment=True, start=1)))
    assert equal(*epochs)


def test_only_the_files_of_a_share_are_read(file_data, monkeypatch):
    pictures, read = type(file_data.train.pictures), []
    honest = pictures.read
    monkeypatch.setattr(pictures, "read", lambda self, index: (read.append(index), honest(self, index))[1])
    labels = [labels for _, labels in file_data.train.shuffled(4, 0, augment=True, start=2, share=(1, 2))]
    assert len(read) == 2
    assert file_data.train.pictures.labels[read].tolist() == labels[0].tolist()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", None])
def test_a_damaged_file_is_named(tmp_path, monkeypatch, content, workers):
    monkeypatch.setattr(data_files, "_workers", lambda: workers)
    data = load_dataset(write_folder(tmp_path), ARCH)
    file = tmp_path / "train" / "green" / "4.png"
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    says = "cannot be read as an image: .*truncated" if content is None else "is no image of a known format: JPEG"
    with pytest.raises(DataError, match=rf"green/4\.png {says}") as caught:
        list(data.train.ordered(4))
    assert "\n" not in str(caught.value)


# --- augmentation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "text", ["rand-m9-mstd0.5-inc1", "rand-m7-n3-tweights", "augmix-m5-w4-d2", "original-mstd0.5", "3a"]
)
def test_timms_augmentations_are_added_to_crops_and_flips(tmp_path, text, channels):
    place, arch = write_folder(tmp_path), ARCH.replace(in_chans=channels)
    plain, more = (load_dataset(place, arch, auto_augment=given).train for given in (None, text))
    first, second = (next(iter(split.shuffled(15, 0, augment=True)))[0] for split in (plain, more))
    assert first.shape == second.shape == (15, channels, 16, 16)
    assert not torch.equal(first, second)
    assert equal(*(list(split.shuffled(15, 0, augment=False)) for split in (plain, more)))


@pytest.mark.parametrize(
    "text", ["", "rand-m", "rand-m9-x3", "rand-m9.5", "rand-tfoo", "random", "v1", "augmix-n2", "original-m3", "m9"]
)
def test_an_augmentation_that_timm_does_not_know_is_refused_with_what_it_knows(text):
    with pytest.raises(DataError, match=rf"auto_augment '{text}' is not known; allowed are rand .* as in rand-m9"):
        load_dataset("digits", auto_augment=text)


def test_colours_are_not_jittered(tmp_path):
    data = load_dataset(write_folder(tmp_path), ARCH)
    for images, _ in data.train.shuffled(5, 0, augment=True):
        red = torch.tensor([float(np.asarray(picture(index))[0, 0, 0]) for index in shown(images)])
        torch.testing.assert_close(images[:, 0].amax(dim=(1, 2)), red / 127.5 - 1)


def test_built_in_data_goes_by_its_own_augmentation():
    plain, recipe = (load_dataset("digits", auto_augment=text).train for text in (None, "rand-m9-mstd0.5-inc1"))
    assert equal(*(list(split.shuffled(500, 0, augment=True)) for split in (plain, recipe)))
