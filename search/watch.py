"""Activations inside a model and the loss's gradients with respect to them: one backward pass, for no parameter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from search.protocols import Loss
from vit.model import VisionTransformer


@contextmanager
def _watched(
    model: VisionTransformer, outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module]
) -> Iterator[dict[str, Tensor]]:
    """While active, a forward pass leaves the outputs (first inputs) of modules in the dictionary, and the residual
    stream before the first block under `embed`; gradients start there, which saves half of a usual backward pass."""
    seen: dict[str, Tensor] = {}
    handles = []

    def enter(_module: nn.Module, _inputs: tuple[Tensor, ...], stream: Tensor) -> Tensor:
        seen["embed"] = stream.detach().requires_grad_()
        return seen["embed"]

    handles.append(model.norm_pre.register_forward_hook(enter))
    for name, module in outputs.items():
        handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out)))
    for name, module in inputs.items():
        handles.append(module.register_forward_pre_hook(lambda _m, given, name=name: seen.__setitem__(name, given[0])))
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    try:
        for parameter, _ in learning:
            parameter.requires_grad_(False)
        model.eval()
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in learning:
            parameter.requires_grad_(before)
        model.train(training)


def activation_gradients(
    model: VisionTransformer,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    *,
    outputs: Mapping[str, nn.Module],
    inputs: Mapping[str, nn.Module] | None = None,
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """(activation and gradient by name, mean loss of the batch); the model is left as it is.

    Row n of a gradient is of the loss of image n alone.

    Args:
        loss: a mean over the batch of losses that each depend on one image only.
        outputs, inputs: modules by the name under which their output (first input) is given back.
    """
    with _watched(model, outputs, inputs or {}) as seen, torch.enable_grad():
        value = loss(model, images, labels)
        names = list(seen)
        gradients = torch.autograd.grad(value * len(images), [seen[name] for name in names])
    found = {name: (seen[name].detach(), gradient) for name, gradient in zip(names, gradients, strict=True)}
    return found, value.detach()
