"""The gradient of a batch's mean loss, handed over parameter by parameter, as the backward pass completes it.

Whoever reads it that way never holds all of it: without `micro_batch` one parameter's gradient is gone before the next
one is there; with it there is one copy, in which the pieces of the batch are summed, as in training.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from search.passes import WHOLE, Pass
from search.protocols import Loss
from vit.model import VisionTransformer

Visit = Callable[[str, Tensor, Tensor], None]
"""Gets a parameter's name, its weights and their gradient; it may overwrite the gradient, and must not keep it."""


def visit_gradients(
    model: VisionTransformer, images: Tensor, labels: Tensor, loss: Loss, visit: Visit, how: Pass = WHOLE
) -> Tensor:
    """Mean loss of the batch in eval mode; `visit` gets every parameter's gradient of it. The model is left as it is.

    Args:
        loss: a mean over the batch of losses that each depend on one image only.
    """
    total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    done = 0
    with _own_gradients(model) as handles:
        for some, theirs in how.pieces(model, images, labels):
            value = how.loss(loss, model, some, theirs)
            share = len(some) / max(len(images), 1)
            done += len(some)
            if done == len(images):
                handles += [
                    parameter.register_post_accumulate_grad_hook(_hand_over(name, visit))
                    for name, parameter in model.named_parameters()
                ]
            value.backward(torch.full_like(value, share))
            total += share * value.detach()
    return total


def _hand_over(name: str, visit: Visit) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        visit(name, parameter.detach(), gradient)

    return hook


@contextmanager
def _own_gradients(model: VisionTransformer) -> Iterator[list[torch.utils.hooks.RemovableHandle]]:
    """While active, every parameter learns and has no gradient but ours; hooks in the list are removed at the end."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    training = model.training
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(True)
            parameter.grad = None
        model.eval()
        yield handles
    finally:
        for handle in handles:
            handle.remove()
        for parameter, learns, gradient in before:
            parameter.grad = gradient
            parameter.requires_grad_(learns)
        model.train(training)
