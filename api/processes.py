"""Joining the processes that `torchrun` started, for the time of one command."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def joined(device: str) -> Iterator[tuple[torch.device, bool]]:
    """(this process's device, whether it is the first process, which prints and writes).

    Inside, torch.distributed is initialised where torchrun started this; of several processes on one machine with GPUs
    each has its own.

    Args:
        device: cpu or cuda.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield torch.device(device), True
        return
    gpus = device == "cuda"
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        where = torch.device(device)
        if gpus:
            where = torch.device("cuda", dist.get_node_local_rank(0) % torch.cuda.device_count())
            torch.cuda.set_device(where)
        yield where, dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
