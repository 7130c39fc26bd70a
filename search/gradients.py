"""Gradients of the loss over calibration batches, one batch at a time."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from search.errors import SaliencyError
from search.protocols import Loss
from vit.model import VisionTransformer


def gradients(
    model: VisionTransformer, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss
) -> Iterator[Mapping[str, Tensor]]:
    """For every batch the gradient of its mean loss by parameter name, in eval mode.

    Raises:
        SaliencyError: a loss or a gradient is not finite (the batch is named).
    """
    parameters = dict(model.named_parameters())
    device, dtype = next(iter(parameters.values())).device, next(iter(parameters.values())).dtype
    training = model.training
    model.eval()
    try:
        for count, (images, labels) in enumerate(batches, start=1):
            with torch.enable_grad():
                value = loss(model, images.to(device, dtype), labels.to(device))
                if not torch.isfinite(value):
                    raise SaliencyError(f"the loss of batch {count} is {value.item()}; check the images and labels")
                grads = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
            for name, gradient in grads.items():
                if not torch.isfinite(gradient).all():
                    raise SaliencyError(f"the gradient of {name} in batch {count} is not finite; check the images")
            yield grads
    finally:
        model.train(training)
