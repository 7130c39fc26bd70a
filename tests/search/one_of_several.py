"""One process of several that score together; run by test_processes as `python -m`, with a folder, rank and world.

Leaves `<rank>.json`: for every criterion and number of batches the saliency, and what errors said, in order.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from recovery.losses import cross_entropy
from search.criteria import CRITERIA, compute_saliency
from search.errors import SaliencyError
from search.gates import own_label_loss, own_labels
from tests.cases import UNEQUAL, build, generator, images

COUNTS = (1, 2, 5)
"""Batches: fewer than processes, as many, and an odd number."""


def batches_of(count, nan_in=None):
    for number in range(count):
        pictures = images(UNEQUAL, 3, number)
        if number == nan_in:
            pictures[0] = torch.nan
        yield pictures, torch.randint(0, 5, (3,), generator=generator(number))


def scored(criterion, count, own):
    given = batches_of(count)
    result = compute_saliency(
        build(UNEQUAL),
        own_labels(given, 7) if own else given,
        criterion,
        own_label_loss if own else cross_entropy,
        micro_batch=2,
    )
    return {str(group): vector.tolist() for group, vector in result.values.items()} | {"batches": result.num_batches}


def everything():
    return {f"{c} {n} {own}": scored(c, n, own) for c in CRITERIA for n in COUNTS for own in (False, True)}


def failures():
    def stops_on_purpose(model, pictures, labels):
        if dist.get_rank() == 0:
            raise ArithmeticError("on purpose")
        return cross_entropy(model, pictures, labels)

    said = []
    for batches, loss in (
        (batches_of(4, nan_in=1), cross_entropy),  # of the second process
        (batches_of(4, nan_in=2), cross_entropy),  # of the first one, its second batch
        (batches_of(4), stops_on_purpose),
        (batches_of(0), cross_entropy),
    ):
        try:
            compute_saliency(build(UNEQUAL), batches, "nvit", loss)
        except (SaliencyError, ArithmeticError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def main():
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    said = failures()  # first: what comes after an error is right all the same
    (folder / f"{rank}.json").write_text(json.dumps({"said": said, "scored": everything()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
