"""Saliency criteria, one function each, all under one signature.

A criterion turns one batch into one number per unit. Those that read weights and gradients sum over everything that
leaves with the unit: K as well as Q, fc2 as well as fc1, proj with V and H, norms and tokens with EMBED (`vit.groups`).
`gates` reads activations, image by image (`search.gates`).

S: the slices that leave with a unit.  w: their weights.  g: the gradient of the batch's mean loss.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from search.errors import SaliencyError
from search.gates import gate_derivatives
from search.gradients import gradients
from search.protocols import Loss
from search.saliency import Saliency
from vit.architecture import Architecture
from vit.errors import UnknownNameError
from vit.groups import Group, groups, parts, size
from vit.model import VisionTransformer
from vit.surgery import view

Tensors = Mapping[str, Tensor]
PerUnit = dict[Group, Tensor]


def sum_over_units(arch: Architecture, values: Tensors) -> PerUnit:
    """Sums over every slice that leaves with each unit, of numbers laid out like the parameters."""
    totals: PerUnit = {}
    for part in parts(arch):
        block = view(part, values)
        for axis, group in enumerate(part.axes):
            if group is not None:
                others = [other for other in range(block.ndim) if other != axis]
                contribution = block.sum(others, dtype=torch.float64) if others else block.double()
                totals[group] = totals[group] + contribution if group in totals else contribution
    return totals


def nvit(arch: Architecture, weights: Tensors, grads: Tensors) -> PerUnit:
    """(Σ_S w·g)², the signed sum squared: NViT's Hessian-aware criterion (Yang et al. 2023, poster)."""
    products = {name: weights[name] * grads[name] for name in weights}
    return {group: total**2 for group, total in sum_over_units(arch, products).items()}


def fisher(arch: Architecture, weights: Tensors, grads: Tensors) -> PerUnit:
    """Σ_S (w·g)²: the diagonal empirical Fisher's loss increase, up to the factor 1/2 (Theis et al. 2018)."""
    products = {name: (weights[name] * grads[name]) ** 2 for name in weights}
    return sum_over_units(arch, products)


def magnitude(arch: Architecture, weights: Tensors, grads: Tensors) -> PerUnit:
    """Σ_S w², without looking at the data."""
    return sum_over_units(arch, {name: weight**2 for name, weight in weights.items()})


def random(arch: Architecture, weights: Tensors, grads: Tensors) -> PerUnit:
    """Uniform numbers in [0, 1), from a seed that depends on the weights alone: the control of every comparison."""
    seed = int(sum(float(weight.double().abs().sum()) for weight in weights.values()) * 1e6) % 2**31
    generator = torch.Generator().manual_seed(seed)
    return {group: torch.rand(size(arch, group), generator=generator, dtype=torch.float64) for group in groups(arch)}


Batches = Iterable[tuple[Tensor, Tensor]]
BySlices = Callable[[Architecture, Tensors, Tensors], PerUnit]


@dataclass(frozen=True, slots=True)
class Criterion:
    """Attributes:
    scores: model, batches of (images, labels) and loss -> saliency per unit, once a batch; batches are averaged.
    needs_data: whether batches are read; if not, there is one score.
    """

    scores: Callable[[VisionTransformer, Batches, Loss], Iterator[PerUnit]]
    needs_data: bool


def _weights(model: VisionTransformer) -> Tensors:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _from_gradients(score: BySlices) -> Criterion:
    def scores(model: VisionTransformer, batches: Batches, loss: Loss) -> Iterator[PerUnit]:
        for grads in gradients(model, batches, loss):
            yield score(model.arch, _weights(model), grads)

    return Criterion(scores, needs_data=True)


def _from_weights(score: BySlices) -> Criterion:
    def scores(model: VisionTransformer, batches: Batches, loss: Loss) -> Iterator[PerUnit]:
        yield score(model.arch, _weights(model), {})

    return Criterion(scores, needs_data=False)


def gates(model: VisionTransformer, batches: Batches, loss: Loss) -> Iterator[PerUnit]:
    """mean_n a_nu², a_nu the derivative of the loss of image n by the gate of unit u (`search.gates`)."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    for count, (images, labels) in enumerate(batches, start=1):
        derivatives, value = gate_derivatives(model, images.to(device, dtype), labels.to(device), loss)
        if not torch.isfinite(value):
            raise SaliencyError(f"the loss of batch {count} is {value.item()}; check the images and labels")
        squares = {group: by_image.double().square().mean(dim=0) for group, by_image in derivatives.items()}
        for group, vector in squares.items():
            if not torch.isfinite(vector).all():
                raise SaliencyError(f"the gradient of {group} in batch {count} is not finite; check the images")
        yield squares


CRITERIA: dict[str, Criterion] = {
    "gates": Criterion(gates, needs_data=True),
    "nvit": _from_gradients(nvit),
    "fisher": _from_gradients(fisher),
    "magnitude": _from_weights(magnitude),
    "random": _from_weights(random),
}


def criterion_named(name: str) -> Criterion:
    if name not in CRITERIA:
        raise UnknownNameError("criterion", name, CRITERIA)
    return CRITERIA[name]


def compute_saliency(
    model: VisionTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    criterion: str,
    loss: Loss,
    *,
    model_id: str = "",
    data_id: str = "",
) -> Saliency:
    """Saliency of every unit, averaged over batches of (images, labels); the model is left as it is.

    Raises:
        UnknownNameError: no such criterion.
        SaliencyError: no batch, or a loss or gradient that is not finite.
    """
    chosen = criterion_named(criterion)
    totals: PerUnit = {}
    count = 0
    for scores in chosen.scores(model, batches, loss):
        for group, vector in scores.items():
            totals[group] = totals[group] + vector if group in totals else vector
        count += 1
    if count == 0:
        raise SaliencyError("no calibration batch; give at least one image per batch")
    mean = {group: (vector / count).cpu().numpy() for group, vector in totals.items()}
    return Saliency(model.arch, mean, criterion, model_id, data_id, count if chosen.needs_data else 0)
