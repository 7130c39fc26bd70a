"""Small architectures, weights and slow truths that the tests share. Nothing here is imported by the packages.

Shapes: B batch, N tokens, E embed_dim, H heads, Q qk_dim, V v_dim.
"""

import copy
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.architecture import Architecture, BlockShape, Unit
from vit.groups import Group, Keep, groups, parts, size
from vit.model import VisionTransformer
from vit.surgery import view

CLASS_TOKEN = Architecture(
    image_size=(16, 16),
    patch_size=(8, 8),
    in_chans=3,
    num_classes=5,
    embed_dim=12,
    blocks=(BlockShape(3, 4, 4, 16), BlockShape(3, 4, 4, 16)),
)
"""The plainest: what every other case differs from in what its name says."""

UNEQUAL = CLASS_TOKEN.replace(
    blocks=(
        BlockShape(num_heads=3, qk_dim=2, v_dim=5, mlp_dim=7),
        BlockShape(num_heads=1, qk_dim=6, v_dim=3, mlp_dim=18),
        BlockShape(num_heads=2, qk_dim=4, v_dim=4, mlp_dim=11),
    )
)
"""Heads, QK, V and MLP differ in every block; QK is below, above and equal to V."""

POOLED = CLASS_TOKEN.replace(class_token=False, pool="avg", final_norm="after_pool")

CASES: dict[str, Architecture] = {
    "class_token": CLASS_TOKEN,
    "distilled": CLASS_TOKEN.replace(dist_token=True),
    "registers": CLASS_TOKEN.replace(reg_tokens=2),
    "pooled": POOLED,
    "pooled_without_prefix": POOLED.replace(class_token=True, reg_tokens=1),
    "pooled_with_prefix": POOLED.replace(class_token=True, reg_tokens=1, pool_include_prefix=True),
    "pooled_before_norm": POOLED.replace(final_norm="none"),
    "layer_scale": CLASS_TOKEN.replace(layer_scale=True),
    "qk_norm": CLASS_TOKEN.replace(qk_norm=True),
    "rms_norm": CLASS_TOKEN.replace(norm="rms", norm_eps=1e-5),
    "rms_qk_norm": CLASS_TOKEN.replace(norm="rms", qk_norm=True),
    "non_square": CLASS_TOKEN.replace(image_size=(24, 16), patch_size=(8, 4)),
    "incomplete_patch": CLASS_TOKEN.replace(image_size=(19, 25)),
    "grey": CLASS_TOKEN.replace(in_chans=1),
    "pre_norm": CLASS_TOKEN.replace(pre_norm=True, patch_bias=False),
    "patches": CLASS_TOKEN.replace(pos_embed="patches", reg_tokens=1),
    "no_positions": CLASS_TOKEN.replace(pos_embed="none"),
    "gelu_tanh": CLASS_TOKEN.replace(activation="gelu_tanh"),
    "quick_gelu": CLASS_TOKEN.replace(activation="quick_gelu"),
    "no_biases": CLASS_TOKEN.replace(patch_bias=False, qkv_bias=False, proj_bias=False),
    "features": CLASS_TOKEN.replace(num_classes=0),
    "unequal": UNEQUAL,
    "unequal_scale": UNEQUAL.replace(softmax_scale=(0.5, 0.25, 0.7)),
}
"""One small architecture per feature, by the name of the feature."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, in place, so that none is zero, one or unused by accident."""
    draw = generator(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.3 * values
        elif parameter.ndim > 1 and name.endswith("weight"):
            values /= math.sqrt(parameter[0].numel())
        else:
            values *= 0.3
        parameter.copy_(values)
    return model


def build(arch: Architecture, seed: int = 0, dtype: torch.dtype = torch.float64) -> VisionTransformer:
    """A model with random weights, in eval mode."""
    model = VisionTransformer(arch).to(dtype).eval()
    randomise(model, seed)
    return model


def images(arch: Architecture, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise of shape (count, in_chans, height, width)."""
    shape = (count, arch.in_chans, *arch.image_size)
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def some_units(arch: Architecture, units: Iterable[Unit], seed: int = 0) -> Keep:
    """Keep a random proper subset of every group of these units (a group of one unit stays whole)."""
    draw = np.random.default_rng(seed)
    chosen: dict[Group, np.ndarray] = {}
    wanted = set(units)
    for group in groups(arch):
        if group.unit in wanted and (count := size(arch, group)) > 1:
            left = int(draw.integers(1, count))
            chosen[group] = np.sort(draw.choice(count, left, replace=False))
    return Keep.of(arch, chosen)


def assert_same_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit-equal tensors of equal types under equal names."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def slow_attention(model: VisionTransformer, index: int, x: Tensor) -> Tensor:
    """softmax(scale · q kᵀ) v head by head, straight from the rows of `qkv`: (B, N, E) -> (B, N, E)."""
    attention, shape = model.blocks[index].attn, model.arch.blocks[index]
    scale = model.arch.scales[index]
    weight, bias, mixed = attention.qkv.weight, attention.qkv.bias, []
    heads, qk_dim, v_dim = shape.num_heads, shape.qk_dim, shape.v_dim
    for head in range(heads):
        starts = (head * qk_dim, (heads + head) * qk_dim, 2 * heads * qk_dim + head * v_dim)
        query, key, value = (
            F.linear(x, weight[s : s + n], None if bias is None else bias[s : s + n])
            for s, n in zip(starts, (qk_dim, qk_dim, v_dim), strict=True)
        )
        query, key = attention.q_norm(query), attention.k_norm(key)
        logits = scale * query @ key.transpose(1, 2)  # B N N
        mixed.append(logits.softmax(dim=-1) @ value)  # B N V
    return attention.proj(torch.cat(mixed, dim=-1))


def slow_forward(model: VisionTransformer, batch: Tensor) -> Tensor:
    """The model with its attention written out, `slow_attention` in the place of the fused kernel."""
    x = model.embed(batch)
    for index, block in enumerate(model.blocks):
        x = x + block.ls1(slow_attention(model, index, block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.classify(x)


@torch.no_grad()
def mask(model: VisionTransformer, keep: Keep) -> VisionTransformer:
    """A copy of the model in which every slice of every dropped unit is zero: what cutting must be equal to."""
    masked = copy.deepcopy(model)
    state = masked.state_dict()
    for part in parts(model.arch):
        piece = view(part, state)
        for axis, group in enumerate(part.axes):
            if group is not None:
                kept = set(keep.indices[group].tolist())
                dropped = [index for index in range(part.shape[axis]) if index not in kept]
                piece.index_fill_(axis, torch.tensor(dropped, dtype=torch.long), 0.0)
    return masked
