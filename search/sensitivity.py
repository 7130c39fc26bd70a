"""How much the loss feels an error at each token: what a change of basis and a refit should weigh tokens by.

The mean over images of |∂loss/∂y_t|², y_t the output of a module at token t. To second order with the Fisher in the
Hessian's place, an error in y_t that knows nothing of the loss costs in proportion to it. Where a class token is read,
it takes nearly all of the weight in the last blocks, all of it after the last attention: channels that serve patches
alone are not kept for them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from search.errors import SaliencyError
from search.protocols import Loss
from search.watch import visit_activations
from vit.model import VisionTransformer
from vit.moments import Sensitivity


def token_sensitivity(model: VisionTransformer, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> Sensitivity:
    """
    Returns:
        By module (and `blocks.0.attn.q`, `.k`, `.v` for the parts of qkv) one number a token, (N,), float64; a norm
        after pooling has one row.

    Raises:
        SaliencyError: no batch, or gradients that are not finite.
    """
    totals: dict[str, Tensor] = {}
    count = 0
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype

    def add(name: str, _activation: Tensor, gradient: Tensor) -> None:
        for part, piece in _parts(model, name, gradient):
            rows = piece.double().square().sum(dim=-1)  # B N
            totals[part] = totals.get(part, 0.0) + (rows.sum(dim=0) if rows.ndim > 1 else rows.sum()[None])

    for images, labels in batches:
        visit_activations(model, images.to(device, dtype), labels.to(device), loss, add, outputs=_places(model))
        count += len(images)
    if count == 0:
        raise SaliencyError("no calibration batch; give at least one image per batch")
    for name, total in totals.items():
        if not torch.isfinite(total).all():
            raise SaliencyError(f"the gradient at {name} is not finite; check the images")
    return {name: total / count for name, total in totals.items()}


def _places(model: VisionTransformer) -> dict[str, nn.Module]:
    places: dict[str, nn.Module] = {}
    for index, block in enumerate(model.each_block()):
        name = f"blocks.{index}"
        places |= {f"{name}.norm1": block.norm1, f"{name}.attn.qkv": block.attn.qkv, f"{name}.attn.proj": block.ls1}
        places |= {f"{name}.norm2": block.norm2, f"{name}.mlp.fc1": block.mlp.fc1, f"{name}.mlp.fc2": block.ls2}
    last: dict[str, nn.Module] = {"norm": model.norm, "fc_norm": model.fc_norm}
    return places | {name: norm for name, norm in last.items() if not isinstance(norm, nn.Identity)}


def _parts(model: VisionTransformer, name: str, gradient: Tensor) -> list[tuple[str, Tensor]]:
    if not name.endswith(".qkv"):
        return [(name, gradient)]
    shape = model.arch.blocks[int(name.split(".")[1])]
    width = shape.num_heads * shape.qk_dim
    pieces = torch.split(gradient, [width, width, shape.num_heads * shape.v_dim], dim=-1)
    return [(name.removesuffix("qkv") + part, piece) for part, piece in zip("qkv", pieces, strict=True)]
