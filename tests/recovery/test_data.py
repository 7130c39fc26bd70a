"""Built-in data is the same everywhere and labelled rightly; names and options are checked."""

import numpy as np
import pytest
import torch

from recovery.data import DataError, Dataset, digits, gratings, load_dataset, plaids
from recovery.generated import PLAID_PAIRS, grating_images, plaid_images
from tests.cases import CLASS_TOKEN
from vit.errors import UnknownNameError, VitfitError

SMALL = "gratings:train=40,test=20"
SMALL_PLAIDS = "plaids:train=40,test=20"


def frozen_batches(split, **how):
    return [(images.clone(), labels.clone()) for images, labels in split.shuffled(7, **how)]


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("name", ["digits", SMALL, SMALL_PLAIDS])
def test_built_in_data_has_the_same_fingerprint_every_time(name):
    first, second = load_dataset(name), load_dataset(name)
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.train.images, second.train.images)


@pytest.mark.parametrize("kind", ["gratings", "plaids"])
def test_every_option_that_changes_the_images_changes_the_fingerprint(kind):
    small = f"{kind}:train=40,test=20"
    names = [small, f"{small},noise=1.1", f"{small},seed=1", f"{kind}:train=41,test=20", f"{kind}:train=40,test=21"]
    assert len({load_dataset(name).fingerprint for name in names}) == len(names)


def test_digits_are_scikit_learns_with_their_labels():
    from sklearn.datasets import load_digits

    data, bunch = digits(), load_digits()
    assert (data.num_classes, data.in_chans, data.image_size) == (10, 1, (16, 16))
    assert (len(data.train), len(data.test)) == (1297, 500)
    originals = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    enlarged = (torch.nn.functional.interpolate(originals, size=16, mode="bilinear") - 0.3) / 0.35
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(enlarged, bunch.target, strict=True)}
    assert len(label_of) == 1797
    for split in (data.train, data.test):
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            assert label_of.pop(image.numpy().tobytes()) == label  # every image once, in one split only


def dominant_wave(image):
    """(orientation in [0, π), wavelength in pixels) of the strongest frequency, by a zero-padded FFT."""
    size = 256
    rows, columns = np.mgrid[:24, :24] - 11.5
    plane = np.stack([np.ones(576), rows.ravel(), columns.ravel()], axis=1)
    flat = image.ravel() - plane @ np.linalg.lstsq(plane, image.ravel(), rcond=None)[0]
    window = np.outer(np.hanning(24), np.hanning(24))
    spectrum = np.abs(np.fft.fft2(flat.reshape(24, 24) * window, (size, size)))
    row, column = np.unravel_index(spectrum[:, : size // 2 + 1].argmax(), (size, size // 2 + 1))
    down, right = np.fft.fftfreq(size)[[row, column]]
    return np.arctan2(down, right) % np.pi, 1 / np.hypot(down, right)


def test_without_noise_a_gratings_label_is_its_orientation_and_wavelength():
    images, labels = grating_images(200, noise=0.0, seed=5)
    tilts = []
    for image, label in zip(images.double().numpy(), labels.tolist(), strict=True):
        angle, wavelength = dominant_wave(image[0])
        difference = (angle - (label // 2) * np.pi / 8 + np.pi / 2) % np.pi - np.pi / 2
        tilts.append(abs(difference))
        assert (wavelength > 6) == (label % 2 == 1)
    # Images are tilted by 0.06 radians (normal); orientations are 0.39 apart.
    assert np.median(tilts) < 0.06
    assert np.mean(np.array(tilts) < np.pi / 16) > 0.97


def unexplained(images, waves):
    """Energy of each image that no sum of these waves, each in any phase and contrast, explains."""
    basis, _ = np.linalg.qr(np.stack([part(wave).ravel() for wave in waves for part in (np.sin, np.cos)], axis=1))
    return ((images - images @ basis @ basis.T) ** 2).sum(1)


def test_without_noise_a_plaids_label_is_the_pair_of_gratings_that_explains_it_best():
    images, labels = plaid_images(200, noise=0.0, seed=5)
    flat = images.double().numpy().reshape(200, 1024)
    rows, columns = np.mgrid[:32, :32]
    waves = [
        2 * np.pi / wavelength * (np.cos(angle) * columns + np.sin(angle) * rows)
        for wavelength in (4.0, 6.5)
        for angle in np.arange(12) * np.pi / 12
    ]
    pairs = [(first, second) for second in range(24) for first in range(second)]
    errors = np.stack([unexplained(flat, (waves[first], waves[second])) for first, second in pairs])
    found = [pairs[best] for best in errors.argmin(0)]
    assert len(PLAID_PAIRS) == len(pairs) == 276
    assert np.mean([tuple(PLAID_PAIRS[label].tolist()) == pair for label, pair in zip(labels, found, strict=True)]) == 1


def test_every_pair_of_gratings_is_a_class():
    labels = plaid_images(20_000, noise=0.0, seed=0)[1]
    assert sorted(set(labels.tolist())) == list(range(plaids(train=1, test=1).num_classes))


@pytest.mark.parametrize("draw", [grating_images, plaid_images])
def test_noise_is_added_to_the_same_images(draw):
    (clean, labels), (noisy, same) = (draw(50, noise, seed=1) for noise in (0.0, 2.0))
    assert torch.equal(labels, same)
    assert (noisy - clean).std() == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(("made", "classes", "size"), [(gratings, 16, (24, 24)), (plaids, 276, (32, 32))])
def test_test_images_are_the_same_for_every_training_seed(made, classes, size):
    first, second = made(train=30, test=20, seed=0), made(train=30, test=20, seed=1)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.train.images, second.train.images)
    assert (first.num_classes, first.in_chans, first.image_size) == (classes, 1, size)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("name", ["digits", SMALL, SMALL_PLAIDS])
def test_an_epoch_depends_on_its_seed_alone(name, augment):
    split = load_dataset(name).train
    first = frozen_batches(split, seed=3, augment=augment)
    assert equal(first, frozen_batches(split, seed=3, augment=augment))
    assert not equal(first, frozen_batches(split, seed=4, augment=augment))


def test_in_order_every_image_comes_once_as_it_is():
    split = load_dataset("digits").train
    images, labels = (torch.cat(column) for column in zip(*split.ordered(100), strict=True))
    assert torch.equal(images, split.images)
    assert torch.equal(labels, split.labels)


def test_augmentation_changes_images_and_leaves_the_originals():
    split = load_dataset("digits").train
    before = split.images.clone()
    plain = frozen_batches(split, seed=0, augment=False)
    changed = frozen_batches(split, seed=0, augment=True)
    assert torch.equal(plain[0][1], changed[0][1])
    assert not torch.equal(plain[0][0], changed[0][0])
    assert torch.equal(split.images, before)


@pytest.mark.parametrize("kind", ["gratings", "plaids"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("noise=-1", "noise must be from 0 to 100, got -1.0"),
        ("noise=nan", "noise must be from 0 to 100, got nan"),
        ("noise=loud", "noise must be a number, got 'loud'"),
        ("noise", "noise must be a number, got ''"),
        ("seed=1.5", "seed must be a number, got '1.5'"),
        ("seed=8000", "seed must be from 0 to 7999, got 8000"),
        ("seed=-1", "seed must be from 0 to 7999, got -1"),
        ("train=0", "train and test must be from 1 to 200000, got 0 and 2000"),
        ("train=1,test=-5", "train and test must be from 1 to 200000, got 1 and -5"),
        ("train=1000000000", "train and test must be from 1 to 200000"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(kind, options, message):
    with pytest.raises(DataError, match=f"{kind}: ") as caught:
        load_dataset(f"{kind}:{options}")
    assert message in str(caught.value)


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="unknown option of gratings 'colour'; known: noise, seed, train, test"):
        load_dataset("gratings:colour=1")
    with pytest.raises(UnknownNameError, match="unknown option of plaids 'colour'; known: noise, seed, train, test"):
        load_dataset("plaids:colour=1")
    with pytest.raises(UnknownNameError, match="unknown option of digits 'noise'; known: none yet"):
        load_dataset("digits:noise=1")


def test_unknown_data_is_refused_with_what_there_is():
    with pytest.raises(
        UnknownNameError, match="unknown data 'imagenet'; known: digits, gratings, plaids, a folder with train/"
    ):
        load_dataset("imagenet")


@pytest.mark.parametrize(
    ("field", "value"), [("num_classes", 11), ("in_chans", 3), ("image_size", (24, 24)), ("image_size", (16, 8))]
)
def test_a_model_that_does_not_fit_the_data_is_refused_by_field(field, value):
    fits = CLASS_TOKEN.replace(num_classes=10, in_chans=1, image_size=(16, 16))
    assert isinstance(load_dataset("digits", fits), Dataset)
    option = {"num_classes": "--num-classes 10", "in_chans": "--in-chans 1", "image_size": "--img-size 16"}[field]
    message = f"the model has {field} .*, the data 'digits' has .*; .* `vitfit import TIMM_NAME {option}`"
    with pytest.raises(DataError, match=message):
        load_dataset("digits", fits.replace(**{field: value}))


@pytest.mark.parametrize("name", ["hfds:somewhere", "wds:somewhere"])
def test_image_files_need_the_model_that_shall_read_them(name):
    with pytest.raises(DataError, match="image files need the model that shall read them"):
        load_dataset(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hfds:", "hfds: needs a place, as in hfds:path/to/images"),
        ("wds:,train=all", "wds: needs a place"),
        ("hfds:here,split=all", "unknown option of hfds 'split'; known: train, val, image, label, download"),
        ("wds:here,download=yes", "unknown option of wds 'download'; known: train, val, image, label"),
        ("wds:here,train", "wds: train needs a value, as in train=..."),
    ],
)
def test_what_follows_a_place_is_checked(name, message):
    with pytest.raises(VitfitError, match=message):
        load_dataset(name, CLASS_TOKEN)
