"""One process of several that prune together; run by test_processes as `python -m`, with a folder, rank and world.

Leaves `<rank>.pt`: masks and weights by method and number of batches, and what errors said, in order.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from sparsity.errors import SparsityError
from sparsity.gradual import rigl
from sparsity.layers import Selection
from sparsity.methods import METHODS
from sparsity.oneshot import Sparsify, sparsify
from tests.sparsity.toys import batches, loss, net

COUNTS = (1, 2, 5)
"""Batches: fewer than processes, as many, and an odd number."""


def pruned(method, count, memory_gb=None):
    request = Sparsify(
        sparsity=0.5, method=method, selection=Selection(), block_size=24, damp=1e-3, memory_gb=memory_gb
    )
    made = sparsify(net(), batches(count), loss, request)
    return {"mask": made.mask.fingerprint, "gradients": made.gradients, "weights": made.model.state_dict()}


def exchanged():
    first, second = rigl(2, 0.5, Selection(), batches(5), loss)
    model, mask = second(*first(net(), None))
    return {"mask": mask.fingerprint, "weights": model.state_dict()}


def everything():
    five = 528 * METHODS["mfac"].floats(24, 5) * 8 / 2**30  # five gradients of the largest layer, not one more
    every = {f"{m} {n}": pruned(m, n) for m in METHODS for n in COUNTS}
    return every | {"mfac in turns": pruned("mfac", 5, five), "rigl": exchanged()}


def broken(count, nan_in=None):
    def of(step):
        for number, (x, y) in enumerate(batches(count)(step)):
            if number == nan_in:
                x[:] = torch.nan
            yield x, y

    return of


def failures():
    request = Sparsify(sparsity=0.5, selection=Selection(), block_size=24)
    said = []

    def stops_on_purpose(model, x, y):
        if dist.get_rank() == 0:
            raise ArithmeticError("on purpose")
        return loss(model, x, y)

    for given, what in (
        (broken(4, 1), loss),  # of the second process
        (broken(4, 2), loss),  # of the first one, its second batch
        (broken(4), stops_on_purpose),
        (broken(0), loss),
    ):
        try:
            sparsify(net(), given, what, request)
        except (SparsityError, ArithmeticError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def main():
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    said = failures()  # first: what comes after an error is right all the same
    torch.save({"said": said, "made": everything()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
