"""Parameters and MACs in closed form.

One multiply-add is one MAC. Papers, and the poster's tables, call the same thing one FLOP. Counted are the
matrix products and the patch convolution; norms, softmax, activations and biases are left out, as usual.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vit.architecture import Architecture, BlockShape

N = TypeVar("N", int, npt.NDArray[np.float64])


def block_macs(tokens: int, embed_dim: N, num_heads: N, qk_dim: N, v_dim: N, mlp_dim: N) -> N:
    """MACs of one block for one image; sizes are numbers or arrays of one shape.

    q, k: 2·N·E·H·QK    v, proj: 2·N·E·H·V    q·k: H·N²·QK    attention·v: H·N²·V    fc1, fc2: 2·N·E·M
    """
    projections = 2 * tokens * embed_dim * num_heads * (qk_dim + v_dim)
    attention = tokens * tokens * num_heads * (qk_dim + v_dim)
    return projections + attention + 2 * tokens * embed_dim * mlp_dim


def stem_macs(arch: Architecture) -> int:
    """MACs of the patch embedding for one image."""
    patch_h, patch_w = arch.patch_size
    return arch.patches * arch.in_chans * patch_h * patch_w * arch.embed_dim


def head_macs(arch: Architecture) -> int:
    """MACs of the classifier (both classifiers of a distilled model) for one image."""
    return arch.embed_dim * arch.num_classes * (2 if arch.dist_token else 1)


def _shape_macs(arch: Architecture, shape: BlockShape) -> int:
    return block_macs(
        arch.tokens,
        arch.embed_dim,
        shape.num_heads,
        shape.qk_dim,
        shape.v_dim,
        shape.mlp_dim,
    )


def macs(arch: Architecture) -> int:
    """MACs of the whole model for one image."""
    return stem_macs(arch) + sum(_shape_macs(arch, shape) for shape in arch.blocks) + head_macs(arch)


def params(arch: Architecture) -> int:
    """Number of learned parameters, equal to the built model's and to timm's."""
    embed, norm = arch.embed_dim, _norm_params(arch, arch.embed_dim)
    patch_h, patch_w = arch.patch_size
    total = embed * (arch.in_chans * patch_h * patch_w + int(arch.patch_bias))
    total += embed * arch.prefix_tokens
    positions = {"all": arch.tokens, "patches": arch.patches, "none": 0}[arch.pos_embed]
    total += embed * positions
    total += norm * (int(arch.pre_norm) + int(arch.final_norm != "none"))
    total += sum(_block_params(arch, shape) for shape in arch.blocks)
    total += arch.num_classes * (embed + 1) * (2 if arch.dist_token else 1)
    return total


def _norm_params(arch: Architecture, width: int) -> int:
    return 2 * width if arch.norm == "layer" else width


def _block_params(arch: Architecture, shape: BlockShape) -> int:
    embed, values = arch.embed_dim, shape.num_heads * shape.v_dim
    qkv = 2 * shape.num_heads * shape.qk_dim + values
    total = qkv * (embed + int(arch.qkv_bias))
    total += embed * (values + int(arch.proj_bias))
    total += 2 * embed * shape.mlp_dim + int(arch.proj_bias) * (shape.mlp_dim + embed)
    total += 2 * _norm_params(arch, embed)
    total += 2 * _norm_params(arch, shape.qk_dim) * int(arch.qk_norm)
    total += 2 * embed * int(arch.layer_scale)
    return total
