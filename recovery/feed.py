"""The batches of a training run, by number: batch s is the same however often a run was stopped before it."""

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
        shuffled = split.shuffled(batch_size, seed * 100_003 + epoch, augment=True, start=skipped, share=share)
        for batch in islice(shuffled, length - skipped):
            found += 1
            yield batch
        if found < length - skipped:
            raise TrainingError(
                f"{len(split)} training images give {skipped + found} batches of {batch_size}, not {length}"
            )
        start += found


def held_out(data: Dataset, share: float, seed: int) -> Dataset:
    """With images that are held out of training to judge by, where a share is asked for and there are none yet."""
    return data if share == 0 or data.validation is not None else data.hold_out(share, seed)
