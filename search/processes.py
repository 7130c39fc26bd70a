"""Several processes that share the batches of one pass (`torchrun`), where torch.distributed was initialised."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from search.errors import SaliencyError


def summed(share: Callable[[int, int], Tensor]) -> Tensor:
    """The sum over processes of what `share(rank, world)` gives, the same in all of them; alone, `share(0, 1)`.

    Raises:
        SaliencyError: another process failed, and how. Nobody waits for one that did.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return share(0, 1)
    rank, world = dist.get_rank(), dist.get_world_size()
    failure: Exception | None = None
    ours = torch.zeros(())
    try:
        ours = share(rank, world)
    except Exception as error:
        failure = error
    failures: list[str | None] = [None] * world
    dist.all_gather_object(failures, None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for index, text in enumerate(failures):
        if text is not None:
            raise SaliencyError(f"process {index} of {world} failed: {text}")
    total = ours.to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
    dist.all_reduce(total)
    return total
