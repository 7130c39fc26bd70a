"""Several processes that train one model, each on its share of every batch: what they tell each other.

Without torch.distributed there is one process, and nothing happens here.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def share() -> tuple[int, int]:
    """(this process, number of processes)."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def add_up(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes, in place, its sum over all processes; all travel together."""
    if share()[1] == 1:
        return
    tensors = list(tensors)
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(together)
    for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


@torch.no_grad()
def same_everywhere(model: nn.Module) -> None:
    """All processes take the first one's weights."""
    if share()[1] > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def agree(number: int, device: torch.device) -> bool:
    """Whether all processes say the same number."""
    if share()[1] == 1:
        return True
    both = torch.tensor([number, -number], device=device)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return int(both[0]) == -int(both[1])


def wait() -> None:
    """Until all processes are here."""
    if share()[1] > 1:
        dist.barrier()
