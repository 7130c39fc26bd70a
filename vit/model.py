"""Architecture -> nn.Module: a plain Vision Transformer whose head, QK, V and MLP sizes are free in every block.

Parts carry timm's names, and Q, K, V share one `qkv` layer with timm's row order (all of Q, then K, then V, each
by head), so the weights of an uncut timm model load without a single renaming.

Shapes: B batch, N tokens, E embed_dim, H heads, Q qk_dim, V v_dim.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.architecture import Architecture, BlockShape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def _norm(arch: Architecture, width: int) -> nn.Module:
    kind = nn.LayerNorm if arch.norm == "layer" else nn.RMSNorm
    return kind(width, eps=arch.norm_eps)


class PatchEmbed(nn.Module):
    """Non-overlapping patches -> tokens: (B, C, height, width) -> (B, patches, E)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.proj = nn.Conv2d(arch.in_chans, arch.embed_dim, arch.patch_size, arch.patch_size, bias=arch.patch_bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with qk_dim and v_dim of its own and a softmax scale that surgery never changes."""

    def __init__(self, arch: Architecture, shape: BlockShape, scale: float) -> None:
        super().__init__()
        self.shape, self.scale = shape, scale
        values = shape.num_heads * shape.v_dim
        self.qkv = nn.Linear(arch.embed_dim, 2 * shape.num_heads * shape.qk_dim + values, bias=arch.qkv_bias)
        self.q_norm = _norm(arch, shape.qk_dim) if arch.qk_norm else nn.Identity()
        self.k_norm = _norm(arch, shape.qk_dim) if arch.qk_norm else nn.Identity()
        self.proj = nn.Linear(values, arch.embed_dim, bias=arch.proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.mix(self.qkv(x)))

    def mix(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values (B, N, H·(2Q+V)) -> the values mixed by attention, (B, N, H·V)."""
        batch, tokens, _ = qkv.shape
        heads, qk_dim, v_dim = self.shape.num_heads, self.shape.qk_dim, self.shape.v_dim
        query, key, value = qkv.split((heads * qk_dim, heads * qk_dim, heads * v_dim), dim=-1)
        query = self.q_norm(query.view(batch, tokens, heads, qk_dim)).transpose(1, 2)  # B H N Q
        key = self.k_norm(key.view(batch, tokens, heads, qk_dim)).transpose(1, 2)
        value = value.view(batch, tokens, heads, v_dim).transpose(1, 2)  # B H N V
        # Fused kernels want one width for Q, K and V. Zeros added to Q and K leave q·k alone, zeros added to V are
        # sliced off; both cost less than falling back to PyTorch's unfused path (docs/decisions/0002).
        if qk_dim < v_dim:
            query, key = F.pad(query, (0, v_dim - qk_dim)), F.pad(key, (0, v_dim - qk_dim))
        elif v_dim < qk_dim:
            value = F.pad(value, (0, qk_dim - v_dim))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)[..., :v_dim]
        return mixed.transpose(1, 2).reshape(batch, tokens, heads * v_dim)


class Mlp(nn.Module):
    """fc1, activation, fc2."""

    def __init__(self, arch: Architecture, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(arch.embed_dim, mlp_dim, bias=arch.proj_bias)
        self.fc2 = nn.Linear(mlp_dim, arch.embed_dim, bias=arch.proj_bias)
        self.act = ACTIVATIONS[arch.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, embed_dim: int, init: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: (B, N, E) -> (B, N, E)."""

    def __init__(self, arch: Architecture, index: int) -> None:
        super().__init__()
        self.arch, shape = arch, arch.blocks[index]
        self.norm1 = _norm(arch, arch.embed_dim)
        self.attn = Attention(arch, shape, arch.scales[index])
        self.ls1 = LayerScale(arch.embed_dim) if arch.layer_scale else nn.Identity()
        self.norm2 = _norm(arch, arch.embed_dim)
        self.mlp = Mlp(arch, shape.mlp_dim)
        self.ls2 = LayerScale(arch.embed_dim) if arch.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """The model of an Architecture: images (B, C, height, width) -> logits (B, num_classes).

    With num_classes 0 the pooled features (B, E) come out. A distilled model gives the mean of its two heads, as
    timm's does at inference.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        embed = arch.embed_dim
        self.patch_embed = PatchEmbed(arch)
        self.cls_token = _token(embed) if arch.class_token else None
        self.dist_token = _token(embed) if arch.dist_token else None
        self.reg_token = _token(embed, arch.reg_tokens) if arch.reg_tokens else None
        positions = {"all": arch.tokens, "patches": arch.patches, "none": 0}[arch.pos_embed]
        self.pos_embed = _token(embed, positions) if positions else None
        self.norm_pre = _norm(arch, embed) if arch.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(arch, index) for index in range(arch.depth)))
        self.norm = _norm(arch, embed) if arch.final_norm == "before_pool" else nn.Identity()
        self.fc_norm = _norm(arch, embed) if arch.final_norm == "after_pool" else nn.Identity()
        self.head = nn.Linear(embed, arch.num_classes) if arch.num_classes else nn.Identity()
        if arch.dist_token:
            self.head_dist = nn.Linear(embed, arch.num_classes) if arch.num_classes else nn.Identity()

    def each_block(self) -> list[Block]:
        """The blocks, first to last."""
        return cast("list[Block]", list(self.blocks))

    def embed(self, images: Tensor) -> Tensor:
        """Images -> the residual stream before the first block, (B, N, E)."""
        x = self.patch_embed(images)
        if self.pos_embed is not None and self.arch.pos_embed == "patches":
            x = x + self.pos_embed
        prefix = [
            token.expand(x.shape[0], -1, -1)
            for token in (self.cls_token, self.dist_token, self.reg_token)
            if token is not None
        ]
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        if self.pos_embed is not None and self.arch.pos_embed == "all":
            x = x + self.pos_embed
        return self.norm_pre(x)

    def read(self, stream: Tensor) -> tuple[Tensor, ...]:
        """The residual stream after the last block (B, N, E) -> what each classifier reads, (B, E)."""
        x = self.norm(stream)
        if self.arch.dist_token:
            return x[:, 0], x[:, 1]
        if self.arch.pool == "token":
            x = x[:, 0]
        else:
            skip = 0 if self.arch.pool_include_prefix else self.arch.prefix_tokens
            x = x[:, skip:].mean(dim=1)
        return (self.fc_norm(x),)

    def classify(self, stream: Tensor) -> Tensor:
        """The residual stream after the last block (B, N, E) -> logits."""
        heads = self._heads(stream)
        return heads[0] if len(heads) == 1 else (heads[0] + heads[1]) / 2

    def heads(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> logits of each classifier: a distilled model's two, class token first, or the only one."""
        return self._heads(self.blocks(self.embed(images)))

    def _heads(self, stream: Tensor) -> tuple[Tensor, ...]:
        return self._logits(self.read(stream))

    def _logits(self, read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.arch.dist_token:
            first, second = read
            return self.head(first), self.head_dist(second)
        return (self.head(*read),)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.blocks(self.embed(images)))

    # What timm's optimiser factory asks a model.

    def no_weight_decay(self) -> set[str]:
        """Parameters that are no matrices for all their axes."""
        return {"cls_token", "dist_token", "reg_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers from stem to classifier; the final norm (99999) counts to the last block."""
        stem = r"^cls_token|^dist_token|^reg_token|^pos_embed|^patch_embed|^norm_pre"
        return {"stem": stem, "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.|^fc_norm\.", (99999,))]}


def _token(embed_dim: int, count: int = 1) -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, count, embed_dim))


def initialise(model: VisionTransformer, generator: torch.Generator) -> VisionTransformer:
    """Fresh weights to train from, in place: normal of width 0.02, biases zero (Touvron et al., DeiT)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" not in name and "gamma" not in name:
                parameter.normal_(0.0, 0.02, generator=generator).clamp_(-0.04, 0.04)
    return model
