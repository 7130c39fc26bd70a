"""timm's VisionTransformer family in: what is plain becomes ours with the same outputs, what is not is refused by name.

timm: Wightman, PyTorch Image Models. Parts have the same names and layouts on both sides, so weights are copied,
never transformed, and an uncut model loads back into timm.
"""

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit.architecture import Architecture, BlockShape
from vit.errors import CheckpointError, UnknownNameError, UnsupportedModelError
from vit.model import VisionTransformer
from vit.timm_weights import load_weights, one_line

_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
_FAMILY = ("vision_transformer", "deit")
"""timm's modules with models of the class VisionTransformer."""
SUPPORTED = (
    "supported are vit_*, deit_*, deit3_* models "
    "(class token or average pool, distilled, registers, layer scale, qk-norm)"
)
_NORMS = {"LayerNorm": "layer", "LayerNormFp32": "layer", "RmsNorm": "rms", "RMSNorm": "rms"}


def _kind(module: object) -> str:
    return type(module).__name__


def _require(part: str, module: object, allowed: str) -> None:
    if _kind(module) != allowed:
        raise UnsupportedModelError(
            f"no plain Vision Transformer: {part} is {_kind(module)}, only {allowed} is supported"
        )


def _norm_kind(norms: list[Any]) -> tuple[str, float]:
    kinds = {_NORMS.get(_kind(norm), "") for norm in norms}
    epsilons = {float(norm.eps) for norm in norms}
    if len(kinds) != 1 or "" in kinds:
        names = ", ".join(sorted({_kind(norm) for norm in norms}))
        raise UnsupportedModelError(
            f"no plain Vision Transformer: norms are {names}; supported are LayerNorm or RMSNorm throughout"
        )
    if len(epsilons) != 1:
        raise UnsupportedModelError(f"norms with different epsilons {sorted(epsilons)} are not supported")
    return kinds.pop(), epsilons.pop()


def architecture_of(model: Any) -> Architecture:
    """The Architecture of a timm VisionTransformer.

    Raises:
        UnsupportedModelError: it is not plain; the message names the part that differs.
    """
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    if not isinstance(model, TimmVisionTransformer):
        raise UnsupportedModelError(f"{_kind(model)} is no timm VisionTransformer; {SUPPORTED}")
    if _kind(model) not in ("VisionTransformer", "VisionTransformerDistilled"):
        raise UnsupportedModelError(f"{_kind(model)} overrides timm's VisionTransformer")
    _require("patch_embed", model.patch_embed, "PatchEmbed")
    _require("patch_embed.norm", model.patch_embed.norm, "Identity")
    if model.patch_embed.dynamic_img_pad:
        raise UnsupportedModelError("no plain Vision Transformer: patch_embed pads images (dynamic_img_pad)")
    if _kind(model) == "VisionTransformerDistilled" and model.num_reg_tokens:
        raise UnsupportedModelError("timm's distilled models leave register tokens out; set reg_tokens to 0")
    if model.global_pool not in ("token", "avg"):
        raise UnsupportedModelError(
            f"no plain Vision Transformer: pooling is {model.global_pool!r} "
            "(attention pooling and others), only 'token' and 'avg' are supported"
        )

    norms: list[Any] = []
    shapes: list[BlockShape] = []
    for index, block in enumerate(model.blocks):
        shapes.append(_block_shape(index, block))
        norms += [block.norm1, block.norm2]
        if _kind(block.attn.q_norm) != "Identity":
            norms += [block.attn.q_norm, block.attn.k_norm]
    final = [norm for norm in (model.norm, model.fc_norm) if not isinstance(norm, nn.Identity)]
    pre_norm = not isinstance(model.norm_pre, nn.Identity)
    norm, norm_eps = _norm_kind(norms + final + ([model.norm_pre] if pre_norm else []))

    distilled = _kind(model) == "VisionTransformerDistilled"
    first = model.blocks[0]
    pos_embed = "none" if model.pos_embed is None else "patches" if model.no_embed_class else "all"
    return Architecture(
        image_size=tuple(model.patch_embed.img_size),
        patch_size=tuple(model.patch_embed.patch_size),
        in_chans=model.patch_embed.proj.in_channels,
        num_classes=model.num_classes,
        embed_dim=model.embed_dim,
        blocks=tuple(shapes),
        class_token=model.cls_token is not None,
        dist_token=distilled,
        reg_tokens=model.num_reg_tokens,
        pool=model.global_pool,
        pool_include_prefix=bool(model.pool_include_prefix),
        pos_embed=pos_embed,
        norm=norm,
        norm_eps=norm_eps,
        pre_norm=pre_norm,
        final_norm="none" if not final else "after_pool" if final[0] is model.fc_norm else "before_pool",
        patch_bias=model.patch_embed.proj.bias is not None,
        qkv_bias=first.attn.qkv.bias is not None,
        proj_bias=first.attn.proj.bias is not None,
        qk_norm=_kind(first.attn.q_norm) != "Identity",
        layer_scale=_kind(first.ls1) != "Identity",
        activation=_ACTIVATIONS[_kind(first.mlp.act)],
        softmax_scale=tuple(float(block.attn.scale) for block in model.blocks),
    )


def _block_shape(index: int, block: Any) -> BlockShape:
    where = f"blocks.{index}"
    _require(where, block, "Block")
    _require(f"{where}.attn", block.attn, "Attention")
    _require(f"{where}.attn.norm", block.attn.norm, "Identity")
    _require(f"{where}.mlp", block.mlp, "Mlp")  # gated MLPs (SwiGLU, GluMlp) end here
    _require(f"{where}.mlp.norm", block.mlp.norm, "Identity")
    if getattr(block.attn, "gate", None) is not None:
        raise UnsupportedModelError(f"no plain Vision Transformer: {where}.attn is gated")
    if _kind(block.mlp.act) not in _ACTIVATIONS:
        raise UnsupportedModelError(f"{where}.mlp.act is {_kind(block.mlp.act)}; supported: {', '.join(_ACTIVATIONS)}")
    heads, head_dim = int(block.attn.num_heads), int(block.attn.head_dim)
    return BlockShape(heads, head_dim, head_dim, int(block.mlp.fc1.out_features))


@torch.no_grad()
def from_timm(model: nn.Module) -> VisionTransformer:
    """Our model with the same weights and outputs (eval mode); the timm model is left as it is."""
    ours = VisionTransformer(architecture_of(model)).to(next(model.parameters()))  # device, dtype
    ours.load_state_dict(model.state_dict())
    return ours.eval()


def _check_name(name: str) -> None:
    """
    Raises:
        UnknownNameError: timm has no such model, or no such weights of it (what follows the dot).
        UnsupportedModelError: it is none of timm's VisionTransformers; told before it is built, which would need to
            know its options.
    """
    import timm

    model, _, tag = name.partition(".")
    family = [known for module in _FAMILY for known in timm.list_models(module=module)]
    if model not in timm.list_models():
        raise UnknownNameError("timm model", name, difflib.get_close_matches(model, family, 12, cutoff=0.0))
    if model not in family:
        raise UnsupportedModelError(f"{name} is no timm VisionTransformer; {SUPPORTED}")
    if tag and name not in (known := timm.list_pretrained(model)):
        raise UnknownNameError(f"weights of {model}", tag, [weights.partition(".")[2] for weights in known])


def create(name: str, *, weights: Path | None = None, pretrained: bool = False, **options: Any) -> VisionTransformer:
    """A timm model by name, converted.

    Args:
        weights: a user's own (see `load_weights`).
        pretrained: fetch its published weights, where the network allows.
        options: of timm, as num_classes, img_size or in_chans.

    Raises:
        UnknownNameError, UnsupportedModelError: no such model, or one that is not plain.
        CheckpointError: the weights do not fit, or cannot be fetched.
    """
    import timm

    _check_name(name)
    try:
        model = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # whatever the network, the hub's client and its cache may say
        if not pretrained:
            raise
        raise CheckpointError(
            f"the published weights of {name} cannot be fetched ({one_line(error)}); "
            f"fetch them where there is a network, then `vitfit import {name} --weights FILE`"
        ) from None
    architecture_of(model)  # what is not supported is said before anything about its weights
    if weights is not None:
        load_weights(model, name, weights)
    return from_timm(model)


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels that a timm model was trained with."""
    import timm

    config = timm.get_pretrained_cfg(name)
    return [float(v) for v in config.mean], [float(v) for v in config.std]


def architecture(name: str) -> Architecture:
    """The Architecture of a timm model by name, without its weights."""
    import timm

    _check_name(name)
    return architecture_of(timm.create_model(name, device="meta"))
