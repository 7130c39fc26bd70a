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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.errors import SaliencyError
from search.passes import WHOLE, Pass, wide
from search.protocols import Loss
from search.watch import visit_activations
from vit.architecture import Unit
from vit.groups import EMBED, Group
from vit.model import VisionTransformer

Gates = dict[Group, Tensor]
"""Derivatives by gate, group -> (B, units)."""


def gate_derivatives(
    model: VisionTransformer, images: Tensor, labels: Tensor, loss: Loss, how: Pass = WHOLE
) -> tuple[Gates, Tensor]:
    """(derivatives by gate, mean loss of the images), all images at a time; the model is left as it is.

    Args:
        loss: a mean over the batch of losses that each depend on one image only.
    """
    outputs: dict[str, nn.Module] = {}
    inputs: dict[str, nn.Module] = {}
    for index, block in enumerate(model.each_block()):
        outputs |= {f"{index}.qkv": block.attn.qkv, f"{index}.query": block.attn.q_norm}
        outputs |= {f"{index}.attn": block.ls1, f"{index}.mlp": block.ls2}
        inputs[f"{index}.hidden"] = block.mlp.fc2
    summed: dict[str, Tensor] = {}

    def add(name: str, activation: Tensor, gradient: Tensor) -> None:
        if name.endswith("qkv"):
            activation, gradient = (_values(model, name, tensor) for tensor in (activation, gradient))
        product = activation.to(wide(activation.dtype)) * gradient
        summed[name] = product.sum(dim=1)  # over tokens: (B, channels), those of queries (B, H, Q)

    value = visit_activations(model, images, labels, loss, add, outputs=outputs, inputs=inputs, how=how)
    return _by_unit(model, summed), value


def _values(model: VisionTransformer, name: str, qkv: Tensor) -> Tensor:
    """V of what a `qkv` puts out."""
    shape = model.arch.blocks[int(name.split(".")[0])]
    return qkv[..., 2 * shape.num_heads * shape.qk_dim :]


def _by_unit(model: VisionTransformer, summed: Mapping[str, Tensor]) -> Gates:
    gates: Gates = {EMBED: summed["embed"].clone()}
    for index, shape in enumerate(model.arch.blocks):
        gates[EMBED] += summed[f"{index}.attn"] + summed[f"{index}.mlp"]
        value = summed[f"{index}.qkv"].unflatten(-1, (shape.num_heads, shape.v_dim))  # B H V
        gates[Group(Unit.HEAD, index)] = value.sum(dim=2)
        gates[Group(Unit.QK, index)] = summed[f"{index}.query"].sum(dim=1)
        gates[Group(Unit.V, index)] = value.sum(dim=1)
        gates[Group(Unit.MLP, index)] = summed[f"{index}.hidden"]
    return gates


def own_labels(batches: Iterable[tuple[Tensor, Tensor]], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches with a uniform draw from [0, 1) an image in the place of its label, for `own_label_loss`.

    A draw depends on the seed, the batch's number and the image's place in it, on nothing else: whoever skips batches,
    or takes them in pieces, reads the same labels.
    """
    for number, (images, _) in enumerate(batches):
        yield images, torch.from_numpy(np.random.default_rng((seed, number)).random(len(images)))


def own_label_loss(model: VisionTransformer, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with labels of the model's own: the class on which a draw falls, with predictions end to end.

    Its squared gradient has the true Fisher as its mean, where that with the data's labels has the empirical one
    (Kunstner et al. 2019).

    Args:
        labels: the draws of `own_labels`, (B,).

    Raises:
        SaliencyError: predictions that are not finite, or labels in the place of draws.
    """
    if not labels.is_floating_point():
        raise SaliencyError(
            "own_label_loss reads draws, not labels; give the batches through own_labels(batches, seed)"
        )
    logits = model(images)
    ends = logits.detach().double().softmax(dim=-1).cumsum(dim=-1)  # B C
    if not torch.isfinite(ends).all():
        raise SaliencyError("the model's predictions are not finite; check the images")
    places = labels[:, None] * ends[:, -1:]  # the last end is 1 up to rounding
    drawn = torch.searchsorted(ends, places, right=True).clamp(max=ends.shape[1] - 1)
    return F.cross_entropy(logits, drawn[:, 0])
