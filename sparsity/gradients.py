"""Gradients of batches' mean losses, one batch after the other; nothing of them is kept here.

Processes of torch.distributed share the batches: each takes every so manieth one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsity.errors import GradientError, SparsityError

Batch = tuple[Any, ...]
Loss = Callable[..., Tensor]
"""A model and what a batch holds -> the mean loss of the batch."""


def gradients(
    model: nn.Module, batches: Iterable[Batch], loss: Loss, weights: Mapping[str, nn.Parameter]
) -> Iterator[dict[str, Tensor]]:
    """Per batch of this process: parameter name -> gradient of the mean loss, in eval mode, at the weights as they are.

    The model is left as it is, its own gradients included.

    Raises:
        GradientError: a gradient is not finite; names layer and batch.
        SparsityError: no batch, or one whose loss is not finite.
    """
    rank, world = share()
    parameters, some = list(weights.values()), False
    with _evaluating(model, parameters):
        for index, batch in enumerate(batches):
            some = True
            if index % world != rank:
                continue
            with torch.enable_grad():
                value = loss(model, *batch)
                found = torch.autograd.grad(value, parameters, allow_unused=True)
            made = {
                name: torch.zeros_like(parameter) if gradient is None else gradient.detach()
                for (name, parameter), gradient in zip(weights.items(), found, strict=True)
            }
            _check(made, float(value.detach()), index)
            yield made
    if not some:
        raise SparsityError("no calibration batch; give at least one")


def _check(made: Mapping[str, Tensor], loss: float, index: int) -> None:
    sums = torch.stack([gradient.sum() for gradient in made.values()]).tolist()
    for name, total in zip(made, sums, strict=True):
        if not abs(total) < float("inf"):
            raise GradientError(
                f"the gradient of {name} is not finite in batch {index + 1} (loss {loss:g}); check the images, "
                "or exclude the layer",
                name,
            )
    if not abs(loss) < float("inf"):
        raise SparsityError(f"the loss of batch {index + 1} is {loss:g}; check the images and labels")


@contextmanager
def _evaluating(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    required = [parameter.requires_grad for parameter in parameters]
    model.eval()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for module, was in training:
            module.training = was
        for parameter, was in zip(parameters, required, strict=True):
            parameter.requires_grad_(was)


def share() -> tuple[int, int]:
    """(this process, number of processes)."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def failing_together() -> Iterator[None]:
    """Around what each process does by itself: where one fails all do, and nobody waits for it.

    Raises:
        SparsityError: another process failed, and how.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    rank, world = share()
    failures: list[str | None] = [None if failure is None else str(failure)]
    if world > 1:
        failures *= world
        dist.all_gather_object(failures, failures[rank])
    if failure is not None:
        raise failure
    for index, text in enumerate(failures):
        if text is not None:
            raise SparsityError(f"process {index} of {world} failed: {text}")


def add_up(tensors: Iterable[Tensor]) -> None:
    """Each becomes, in place, its sum over all processes."""
    if share()[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def gathered(rows: list[Tensor], like: Tensor) -> list[Tensor]:
    """Those of all processes, of which each may have another number."""
    _, world = share()
    if world == 1:
        return rows
    counts = torch.zeros(world, dtype=torch.int64, device=like.device)
    counts[share()[0]] = len(rows)
    dist.all_reduce(counts)
    most = int(counts.max())
    ours = torch.stack([*rows, *[torch.zeros_like(like)] * (most - len(rows))])
    theirs = [torch.empty_like(ours) for _ in range(world)]
    dist.all_gather(theirs, ours)
    return [row for their, count in zip(theirs, counts.tolist(), strict=True) for row in their[:count]]
