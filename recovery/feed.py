"""The batches of a training run, by number: batch s is the same however often a run was stopped before it."""

import inspect
from collections.abc import Iterator
from itertools import islice

from recovery.data import Batch, Dataset, Split
from recovery.errors import TrainingError


def epoch_of(split: Split, batch_size: int) -> int:
    """Batches of an epoch; the last incomplete one is left out if there is another."""
    return max(len(split) // batch_size, 1)


def batches(split: Split, batch_size: int, seed: int, start: int, share: tuple[int, int]) -> Iterator[Batch]:
    """Without end, from batch number `start` on; of each the rows of this process.

    Raises:
        TrainingError: the split gives fewer batches than its length says.
    """
    length = epoch_of(split, batch_size)
    while True:
        epoch, skipped = divmod(start, length)
        found = 0
        for batch in islice(_shuffled(split, batch_size, seed * 100_003 + epoch, skipped, share), length - skipped):
            found += 1
            yield batch
        if found < length - skipped:
            raise TrainingError(
                f"{len(split)} training images give {skipped + found} batches of {batch_size}, not {length}"
            )
        start += found


def _shuffled(split: Split, batch_size: int, seed: int, start: int, share: tuple[int, int]) -> Iterator[Batch]:
    """One epoch from a batch on. A split that cannot skip or share has its batches drawn and cut here."""
    if "start" in inspect.signature(split.shuffled).parameters:
        yield from split.shuffled(batch_size, seed, augment=True, start=start, share=share)  # type: ignore[call-arg]
        return
    rank, world = share
    for images, labels in islice(split.shuffled(batch_size, seed, augment=True), start, None):
        yield images[rank::world], labels[rank::world]


def held_out(data: Dataset, share: float, seed: int) -> Dataset:
    """With images that are held out of training to judge by, where a share is asked for and there are none yet."""
    if share == 0 or validation_of(data) is not None:
        return data
    return data.hold_out(share, seed)  # type: ignore[attr-defined]


def validation_of(data: Dataset) -> Split | None:
    return getattr(data, "validation", None)
