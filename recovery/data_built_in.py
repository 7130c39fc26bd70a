"""Data that needs no download: digits that ship with scikit-learn, and images drawn by a formula."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from recovery.data_splits import Batch, DataError, Dataset, TensorSplit, short_hash
from recovery.generated import GRATING_CLASSES, PLAID_PAIRS, grating_images, plaid_images
from vit.errors import UnknownNameError


def _in_memory(name: str, train: TensorSplit, test: TensorSplit, num_classes: int) -> Dataset:
    tensors = (train.images, train.labels, test.images, test.labels)
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=num_classes,
        in_chans=train.images.shape[1],
        image_size=(train.images.shape[2], train.images.shape[3]),
        fingerprint=short_hash(b"".join(t.contiguous().numpy().tobytes() for t in tensors)),
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


def built_in(kind: str, options: str) -> Dataset:
    """One of BUILT_IN with its options, as "noise=1.2,seed=3".

    Raises:
        UnknownNameError, DataError: an option that there is not, or not so.
    """
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
