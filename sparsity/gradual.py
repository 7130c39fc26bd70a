"""Pruning and training in turn: phases, each of which changes the mask and is then trained, with one optimiser.

    sweep     oViT: to the next level by any method, earlier zeros kept; one run, many targets
    ac_dc     sparse by magnitude and dense, in turn
    rigl      a constant sparsity whose smallest weights make room for those with the largest gradients (SViTE)

What trains is the caller's. A phase depends on the model, the mask and its number alone, so a run that was stopped
goes on after any of them.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsity.errors import SparsityError
from sparsity.gradients import Loss, add_up, failing_together, gradients
from sparsity.layers import Selection, prunable
from sparsity.oneshot import Batches, Sparsify, sparsify
from sparsity.pattern import UNSTRUCTURED
from sparsity.schedule import regrown
from vit.masks import SparsityMask

Change = Callable[[nn.Module, SparsityMask | None], tuple[nn.Module, SparsityMask | None]]
"""A model and its mask -> a copy with other zeros, and its mask; None: no weight is removed."""


class Recover(Protocol):
    def __call__(self, model: nn.Module, mask: SparsityMask | None, phase: int) -> nn.Module:
        """Train on from these weights, with what the mask removes at zero; gives what came out."""


@dataclass(frozen=True, eq=False)
class Phase:
    """
    Attributes:
        index: from 0.
        model, mask: at its end, after training.
        sparsity: of the selected weights; 0 without a mask.
    """

    index: int
    model: nn.Module
    mask: SparsityMask | None

    @property
    def sparsity(self) -> float:
        return 0.0 if self.mask is None else self.mask.sparsity


def gradual(
    model: nn.Module, changes: Sequence[Change], recover: Recover, after: Phase | None = None
) -> Iterator[Phase]:
    """Phase by phase; yields each at its end. `after`: the last one of a run that goes on."""
    mask, first = (None, 0) if after is None else (after.mask, after.index + 1)
    if after is not None:
        model = after.model
    for index in range(first, len(changes)):
        model, mask = changes[index](model, mask)
        model = recover(model, mask, index)
        yield Phase(index, model, mask)


def sweep(levels: Sequence[float], request: Sparsify, batches: Batches | None, loss: Loss | None) -> list[Change]:
    """To each level in turn; `request` says how, but for its sparsity. Gradients are of other batches every time.

    Raises:
        SparsityError: the pattern has a sparsity of its own.
    """
    if request.pattern.sparsity is not None:
        raise SparsityError(f"a sweep goes through sparsities, the pattern {request.pattern} has one of its own")

    def to(phase: int, level: float) -> Change:
        def change(model: nn.Module, mask: SparsityMask | None) -> tuple[nn.Module, SparsityMask]:
            steps = request.recomputations
            own = None if batches is None else lambda step: batches(phase * steps + step)
            made = sparsify(model, own, loss, replace(request, sparsity=level), mask)
            return made.model, made.mask

        return change

    return [to(phase, level) for phase, level in enumerate(levels)]


def ac_dc(phases: int, sparsity: float, selection: Selection, scope: str = "global") -> list[Change]:
    """Dense and sparse in turn, a dense one first; in dense phases removed weights start again from zero."""
    request = Sparsify(sparsity=sparsity, method="magnitude", selection=selection, scope=scope)

    def dense(model: nn.Module, mask: SparsityMask | None) -> tuple[nn.Module, None]:
        del mask
        return copy.deepcopy(model), None

    def sparse(model: nn.Module, mask: SparsityMask | None) -> tuple[nn.Module, SparsityMask]:
        made = sparsify(model, None, None, request, mask)
        return made.model, made.mask

    if phases % 2:
        raise SparsityError(f"AC/DC ends with a sparse phase, so it has an even number of them, got {phases}")
    return [sparse if phase % 2 else dense for phase in range(phases)]


def rigl(
    phases: int, sparsity: float, selection: Selection, batches: Batches, loss: Loss, most: float = 0.3
) -> list[Change]:
    """At one sparsity from the first phase on, the same in every layer: in each later one the smallest weights go, and
    as many of the removed ones with the largest gradients come back, at zero (Evci et al. 2020; Chen et al. 2021)."""
    request = Sparsify(
        sparsity=sparsity, method="magnitude", selection=selection, scope="uniform", pattern=UNSTRUCTURED
    )

    def first(model: nn.Module, mask: SparsityMask | None) -> tuple[nn.Module, SparsityMask]:
        made = sparsify(model, None, None, request, mask)
        return made.model, made.mask

    def exchange(phase: int) -> Change:
        def change(model: nn.Module, mask: SparsityMask | None) -> tuple[nn.Module, SparsityMask]:
            assert mask is not None
            weights = prunable(model, selection)
            sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            with failing_together():
                for found in gradients(model, batches(phase), loss, weights):
                    for name, gradient in found.items():
                        sums[name] += gradient
            add_up(sums.values())
            share = regrown(phase, phases, most)
            keep = {name: _exchanged(weight, mask.keep[name], sums[name], share) for name, weight in weights.items()}
            made = SparsityMask(keep)
            return made.applied(model), made

        return change

    return [first, *(exchange(phase) for phase in range(1, phases))]


def _exchanged(weight: Tensor, keep: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Which weights stay after the smallest `share` of those that are there made room for removed ones."""
    flat, keep = weight.detach().abs().flatten().cpu(), keep.flatten()
    count = min(int(share * int(keep.sum())), int((~keep).sum()))
    goes = flat.masked_fill(~keep, float("inf")).topk(count, largest=False).indices
    comes = gradient.abs().flatten().cpu().masked_fill(keep, -1.0).topk(count).indices
    made = keep.clone()
    made[goes], made[comes] = False, True
    return made.view_as(weight)
