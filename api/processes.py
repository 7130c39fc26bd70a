"""Joining the processes that `torchrun` started, for the time of one command."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """(rank, world); (0, 1) without torchrun. Inside, torch.distributed is initialised; of several processes on one
    machine with GPUs, each has its own."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield 0, 1
        return
    gpus = torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        if gpus:
            torch.cuda.set_device(dist.get_node_local_rank(0) % torch.cuda.device_count())
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()
