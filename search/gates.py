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

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.errors import SaliencyError
from search.protocols import Loss
from search.watch import activation_gradients
from vit.architecture import Unit
from vit.groups import EMBED, Group
from vit.model import VisionTransformer

Gates = dict[Group, Tensor]
"""Derivatives by gate, group -> (B, units)."""


def gate_derivatives(model: VisionTransformer, images: Tensor, labels: Tensor, loss: Loss) -> tuple[Gates, Tensor]:
    """(derivatives by gate, mean loss of the batch); the model is left as it is.

    Args:
        loss: a mean over the batch of losses that each depend on one image only.
    """
    outputs: dict[str, nn.Module] = {}
    inputs: dict[str, nn.Module] = {}
    for index, block in enumerate(model.each_block()):
        outputs |= {f"{index}.qkv": block.attn.qkv, f"{index}.query": block.attn.q_norm}
        outputs |= {f"{index}.attn": block.ls1, f"{index}.mlp": block.ls2}
        inputs[f"{index}.hidden"] = block.mlp.fc2
    found, value = activation_gradients(model, images, labels, loss, outputs=outputs, inputs=inputs)
    summed = {  # over tokens, (B, channels), those of queries (B, H, Q)
        name: (activation * gradient).sum(dim=1) for name, (activation, gradient) in found.items()
    }
    return _by_unit(model, summed), value


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


def own_label_loss(seed: int) -> Loss:
    """Cross-entropy with labels drawn from the model's own predictions, in place of those given.

    Its squared gradient has the true Fisher as its mean, where that with the data's labels has the empirical one
    (Kunstner et al. 2019). The draws depend on the seed and on the batches before.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(model: VisionTransformer, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        odds = logits.detach().float().softmax(dim=-1).cpu()
        if not torch.isfinite(odds).all():
            raise SaliencyError("the model's predictions are not finite; check the images")
        drawn = torch.multinomial(odds, 1, generator=generator)[:, 0]
        return F.cross_entropy(logits, drawn.to(logits.device))

    return loss
