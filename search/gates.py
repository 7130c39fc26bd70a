"""Per-example saliency: the derivative of every image's loss by one gate a unit, for all units in one backward pass.

A gate of 1 multiplies all that a unit puts out; closing it removes the unit. The derivative of the loss of image n by
the gate of unit u, a_nu, is a sum of activation · gradient over the places where the unit puts something out:

    EMBED   what is written to the channel: embedding, attention and MLP of every block
    HEAD    the head's values          V     the channel's values, all heads together
    QK      the channel's queries      MLP   the hidden unit after the activation

Queries are gated where they meet the keys, after their norm if they have one (qk-norm): only there is a gate on the
query the same as one on the key. A gate before that norm would mostly be undone by it, which scales what remains up.

To second order, with the empirical Fisher in the Hessian's place, closing the gates of a set R costs
½ mean_n (Σ_{u∈R} a_nu)². With labels drawn from the model's own predictions that is the true Fisher (Kunstner et al.
2019), and no labels are needed. The diagonal, mean_n a_nu², is Theis et al. 2018; |a_nu| is Molchanov et al. 2017.

B batch, N tokens, E embed_dim, H heads, Q qk_dim, V v_dim, M mlp_dim.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from search.errors import SaliencyError
from search.protocols import Loss
from vit.architecture import Unit
from vit.groups import EMBED, Group
from vit.model import VisionTransformer

Gates = dict[Group, Tensor]
"""Derivatives by gate, group -> (B, units)."""


@contextmanager
def _watched(model: VisionTransformer) -> Iterator[dict[str, Tensor]]:
    """While active, a forward pass leaves the tensors that carry gates in the dictionary.

    Gradients are taken from the stream before the first block on, and for no parameter: half of a usual backward pass.
    """
    seen: dict[str, Tensor] = {}
    handles = []

    def output(name: str, module: nn.Module) -> None:
        handles.append(module.register_forward_hook(lambda _module, _inputs, out: seen.__setitem__(name, out)))

    def enter(_module: nn.Module, _inputs: tuple[Tensor, ...], stream: Tensor) -> Tensor:
        seen["embed"] = stream.detach().requires_grad_()
        return seen["embed"]

    handles.append(model.norm_pre.register_forward_hook(enter))
    for index, block in enumerate(model.each_block()):
        output(f"{index}.qkv", block.attn.qkv)
        output(f"{index}.query", block.attn.q_norm)
        output(f"{index}.attn", block.ls1)
        handles.append(
            block.mlp.fc2.register_forward_pre_hook(
                lambda _module, inputs, name=f"{index}.hidden": seen.__setitem__(name, inputs[0])
            )
        )
        output(f"{index}.mlp", block.ls2)
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


def gate_derivatives(model: VisionTransformer, images: Tensor, labels: Tensor, loss: Loss) -> tuple[Gates, Tensor]:
    """(derivatives by gate, mean loss of the batch); the model is left as it is.

    Args:
        loss: a mean over the batch of losses that each depend on one image only.
    """
    with _watched(model) as seen, torch.enable_grad():
        value = loss(model, images, labels)
        names = list(seen)
        gradients = torch.autograd.grad(value * len(images), [seen[name] for name in names])
    summed = {  # over tokens, (B, channels), those of queries (B, H, Q)
        name: (seen[name].detach() * gradient).sum(dim=1) for name, gradient in zip(names, gradients, strict=True)
    }
    return _by_unit(model, summed), value.detach()


def _by_unit(model: VisionTransformer, summed: Mapping[str, Tensor]) -> Gates:
    gates: Gates = {EMBED: summed["embed"].clone()}
    for index, shape in enumerate(model.arch.blocks):
        gates[EMBED] += summed[f"{index}.attn"] + summed[f"{index}.mlp"]
        width = shape.num_heads * shape.qk_dim
        value = summed[f"{index}.qkv"][:, 2 * width :].unflatten(-1, (shape.num_heads, shape.v_dim))  # B H V
        gates[Group(Unit.HEAD, index)] = value.sum(dim=2)
        gates[Group(Unit.QK, index)] = summed[f"{index}.query"].sum(dim=1)
        gates[Group(Unit.V, index)] = value.sum(dim=1)
        gates[Group(Unit.MLP, index)] = summed[f"{index}.hidden"]
    return gates


def own_labels(
    model: VisionTransformer, batches: Iterable[Tensor], generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images with labels drawn from the model's own predictions.

    Raises:
        SaliencyError: predictions that are not finite.
    """
    device = next(model.parameters()).device
    for images in batches:
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                odds = model(images.to(device)).float().softmax(dim=-1).cpu()
        finally:
            model.train(training)
        if not torch.isfinite(odds).all():
            raise SaliencyError("the model's predictions are not finite; check the images")
        yield images, torch.multinomial(odds, 1, generator=generator)[:, 0]
