"""Activations inside a model and the loss's gradients with respect to them: one backward pass, for no parameter."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from search.passes import WHOLE, Pass
from search.protocols import Loss
from vit.model import VisionTransformer

See = Callable[[str, Tensor, Tensor], None]
"""Gets a name, the activation and its gradient, as soon as there is one; whoever keeps none of them needs no memory."""


@contextmanager
def _watched(
    model: VisionTransformer, see: See, outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module]
) -> Iterator[list[Tensor]]:
    """While active, a backward pass shows the outputs (first inputs) of modules to `see`, and as `embed` the residual
    stream before the first block; it ends there, in the list, and at no parameter: half of a usual backward pass."""
    start: list[Tensor] = []
    handles = []

    def enter(_module: nn.Module, _inputs: tuple[Tensor, ...], stream: Tensor) -> Tensor:
        start[:] = [stream.detach().requires_grad_()]
        watch("embed", start[0])
        return start[0]

    def watch(name: str, activation: Tensor) -> None:
        value = activation.detach()
        activation.register_hook(lambda gradient: see(name, value, gradient))

    handles.append(model.norm_pre.register_forward_hook(enter))
    for name, module in outputs.items():
        handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: watch(name, out)))
    for name, module in inputs.items():
        handles.append(module.register_forward_pre_hook(lambda _m, given, name=name: watch(name, given[0])))
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    try:
        for parameter, _ in learning:
            parameter.requires_grad_(False)
        model.eval()
        yield start
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in learning:
            parameter.requires_grad_(before)
        model.train(training)


def visit_activations(
    model: VisionTransformer,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    see: See,
    *,
    outputs: Mapping[str, nn.Module],
    inputs: Mapping[str, nn.Module] | None = None,
    how: Pass = WHOLE,
) -> Tensor:
    """Mean loss of the images, which go through together; the model is left as it is.

    Row n of a gradient that `see` gets is of the loss of image n alone.

    Args:
        loss: a mean over the images of losses that each depend on one of them only.
        outputs, inputs: modules by the name under which their output (first input) is shown.
    """
    with _watched(model, see, outputs, inputs or {}) as start:
        value = how.loss(loss, model, images, labels)
        torch.autograd.grad(value, start, torch.full_like(value, len(images)))
    return value.detach()
