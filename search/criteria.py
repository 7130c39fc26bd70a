"""Saliency criteria, one function each, all under one signature.

A criterion turns one batch into one number per unit. Those that read weights and gradients sum over everything that
leaves with the unit: K as well as Q, fc2 as well as fc1, proj with V and H, norms and tokens with EMBED (`vit.groups`);
they never hold more than one parameter's terms. `gates` reads activations, image by image (`search.gates`).

S: the slices that leave with a unit.  w: their weights.  g: the gradient of the batch's mean loss.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from search.errors import SaliencyError
from search.gates import gate_derivatives
from search.gradients import visit_gradients
from search.passes import Pass, wide
from search.processes import summed
from search.protocols import Loss
from search.saliency import Saliency
from vit.architecture import Architecture
from vit.errors import UnknownNameError
from vit.groups import Group, Part, groups, parts, size
from vit.model import VisionTransformer

PerUnit = dict[Group, Tensor]


class UnitSums:
    """Sums over every slice that leaves with each unit, of numbers laid out like the parameters, one by one."""

    def __init__(self, arch: Architecture) -> None:
        self.totals: PerUnit = {}
        self._parts: defaultdict[str, list[Part]] = defaultdict(list)
        for part in parts(arch):
            self._parts[part.parameter].append(part)

    def add(self, parameter: str, values: Tensor) -> None:
        """Summed in the type of the values, along rows and columns first; what that leaves is small, in float64."""
        for part in self._parts[parameter]:
            lead, rest = part.shape[: part.lead], part.shape[part.lead :]
            matrix = values[part.start : part.stop].reshape(math.prod(lead), math.prod(rest))
            for shape, axes, along in ((lead, part.axes[: part.lead], 1), (rest, part.axes[part.lead :], 0)):
                if any(group is not None for group in axes):
                    self._add_axes(axes, matrix.sum(along).double().view(shape))

    def _add_axes(self, axes: tuple[Group | None, ...], block: Tensor) -> None:
        for axis, group in enumerate(axes):
            if group is not None:
                others = [other for other in range(block.ndim) if other != axis]
                total = block.sum(others) if others else block
                self.totals[group] = self.totals[group] + total if group in self.totals else total


# --- one batch -> one number per unit ----------------------------------------------------------------------------

Scores = Callable[[VisionTransformer, Tensor, Tensor, Loss, Pass], tuple[PerUnit, Tensor]]
"""(model, images, labels, loss, how) -> saliency per unit, and the mean loss of the batch."""
Elementwise = Callable[[Tensor], Tensor]


def _from_gradients(term: Elementwise, score: Elementwise) -> Scores:
    """score(Σ_S term(w·g)); `term` may overwrite what it gets."""

    def scores(
        model: VisionTransformer, images: Tensor, labels: Tensor, loss: Loss, how: Pass
    ) -> tuple[PerUnit, Tensor]:
        sums = UnitSums(model.arch)

        def add(name: str, weights: Tensor, gradient: Tensor) -> None:
            sums.add(name, term(gradient.to(wide(gradient.dtype)).mul_(weights)))

        value = visit_gradients(model, images, labels, loss, add, how)
        return {group: score(total) for group, total in sums.totals.items()}, value

    return scores


def _as_it_is(values: Tensor) -> Tensor:
    return values


nvit = _from_gradients(term=_as_it_is, score=torch.square)
"""(Σ_S w·g)², the signed sum squared: NViT's Hessian-aware criterion (Yang et al. 2023, poster)."""

taylor_abs = _from_gradients(term=_as_it_is, score=torch.abs)
"""|Σ_S w·g|: the loss's change to first order, its sign left out (Molchanov et al. 2017; of weights, 2019)."""

fisher = _from_gradients(term=Tensor.square_, score=_as_it_is)
"""Σ_S (w·g)²: the diagonal empirical Fisher's loss increase, up to the factor 1/2 (Theis et al. 2018)."""


def gates(model: VisionTransformer, images: Tensor, labels: Tensor, loss: Loss, how: Pass) -> tuple[PerUnit, Tensor]:
    """mean_n a_nu², a_nu the derivative of the loss of image n by the gate of unit u (`search.gates`)."""
    squares: PerUnit = {}
    total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    for some, theirs in how.pieces(model, images, labels):
        derivatives, value = gate_derivatives(model, some, theirs, loss, how)
        for group, by_image in derivatives.items():
            square = by_image.double().square().sum(dim=0) / len(images)
            squares[group] = squares[group] + square if group in squares else square
        total += value * (len(some) / max(len(images), 1))
    return squares, total


# --- no batch ----------------------------------------------------------------------------------------------------


def magnitude(model: VisionTransformer) -> PerUnit:
    """Σ_S w², without looking at the data."""
    sums = UnitSums(model.arch)
    for name, weight in model.named_parameters():
        sums.add(name, weight.detach().to(wide(weight.dtype)).square())
    return sums.totals


def random(model: VisionTransformer) -> PerUnit:
    """Uniform numbers in [0, 1), from a seed that depends on the weights alone: the control of every comparison."""
    seed = int(sum(float(weight.detach().double().abs().sum()) for weight in model.parameters()) * 1e6) % 2**31
    generator = torch.Generator().manual_seed(seed)
    return {
        group: torch.rand(size(model.arch, group), generator=generator, dtype=torch.float64)
        for group in groups(model.arch)
    }


@dataclass(frozen=True, slots=True)
class OfBatches:
    """A criterion that is averaged over batches."""

    scores: Scores


@dataclass(frozen=True, slots=True)
class OfWeights:
    """A criterion that no batch is read for."""

    scores: Callable[[VisionTransformer], PerUnit]


Criterion = OfBatches | OfWeights

CRITERIA: dict[str, Criterion] = {
    "gates": OfBatches(gates),
    "nvit": OfBatches(nvit),
    "fisher": OfBatches(fisher),
    "taylor-abs": OfBatches(taylor_abs),
    "magnitude": OfWeights(magnitude),
    "random": OfWeights(random),
}


def criterion_named(name: str) -> Criterion:
    if name not in CRITERIA:
        raise UnknownNameError("criterion", name, CRITERIA)
    return CRITERIA[name]


# --- all batches -------------------------------------------------------------------------------------------------


def compute_saliency(
    model: VisionTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    criterion: str,
    loss: Loss,
    *,
    model_id: str = "",
    data_id: str = "",
    autocast: torch.dtype | None = None,
    micro_batch: int | None = None,
) -> Saliency:
    """Saliency of every unit, averaged over batches of (images, labels); the model is left as it is.

    Where torch.distributed was initialised, the batches are those of all processes, given to each: it scores every
    world-th of them, and the average over all comes out in each.

    Args:
        loss: a mean over the batch of losses that each depend on one image only.
        autocast: torch.bfloat16 for mixed precision; sums over slices and batches stay in float32 and float64.
        micro_batch: images at a time, where a batch does not fit into memory; the saliency is the same.

    Raises:
        UnknownNameError: no such criterion.
        SaliencyError: no batch, a loss or gradient that is not finite, or not enough memory.
    """
    chosen, how = criterion_named(criterion), Pass(autocast, micro_batch)
    of_all = groups(model.arch)
    if isinstance(chosen, OfWeights):
        flat, count = _flat(chosen.scores(model), of_all), 0
    else:
        flat, count = _mean(chosen.scores, model, batches, loss, how)
    vectors = flat.cpu().split([size(model.arch, group) for group in of_all])
    values = {group: vector.numpy() for group, vector in zip(of_all, vectors, strict=True)}
    return Saliency(model.arch, values, criterion, model_id, data_id, count)


def _flat(scores: PerUnit, order: Iterable[Group]) -> Tensor:
    """(units of all groups,)"""
    return torch.cat([scores[group] for group in order])


def _mean(
    scores: Scores, model: VisionTransformer, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss, how: Pass
) -> tuple[Tensor, int]:
    """(mean over the batches of all processes, their number)"""

    def share(rank: int, world: int) -> Tensor:
        units = sum(size(model.arch, group) for group in groups(model.arch))
        total = torch.zeros(units + 1, dtype=torch.float64, device=next(model.parameters()).device)
        for number, (images, labels) in islice(enumerate(batches, start=1), rank, None, world):
            total[:-1] += _checked(scores, model, images, labels, loss, how, number)
            total[-1] += 1
        return total

    total = summed(share)
    count = int(total[-1])
    if count == 0:
        raise SaliencyError("no calibration batch; give at least one image per batch")
    return total[:-1] / count, count


def _checked(
    scores: Scores, model: VisionTransformer, images: Tensor, labels: Tensor, loss: Loss, how: Pass, number: int
) -> Tensor:
    """Saliency from one batch, (units of all groups,), all of it finite."""
    try:
        found, value = scores(model, images, labels, loss, how)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        found = None
    if found is None:  # raised out here, where the error and the tensors that its frames hold are gone
        raise SaliencyError(_advice(how.at_once(images), number))
    if not torch.isfinite(value):
        raise SaliencyError(f"the loss of batch {number} is {value.item()}; check the images and labels")
    flat = _flat(found, groups(model.arch))
    if not torch.isfinite(flat).all():
        group = next(group for group, vector in found.items() if not torch.isfinite(vector).all())
        raise SaliencyError(f"the gradient of {group} in batch {number} is not finite; check the images")
    return flat


def _out_of_memory(error: Exception) -> bool:
    """PyTorch has an error of its own for a GPU's memory, and words alone for a CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "you tried to allocate" in str(error)


def _advice(tried: int, number: int) -> str:
    asked = f"not enough memory for {tried} {'image' if tried == 1 else 'images'} at a time (batch {number})"
    if tried == 1:
        return f"{asked}; take a smaller model or a device with more memory"
    return f"{asked}; try micro_batch={tried // 2}, which gives the same saliency"
