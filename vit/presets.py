"""Architectures by name, and published results with their source.

ViT: Dosovitskiy et al. 2021, arXiv 2010.11929. DeiT: Touvron et al. 2021, arXiv 2012.12877. DeiT-III: Touvron et al.
2022, arXiv 2204.07118; LayerScale, and positions for patches alone. ReViT and NViT: Yang et al., "Global Vision
Transformer Pruning with Hessian-Aware Saliency", CVPR 2023, poster THU-AM-198.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vit.architecture import Architecture, BlockShape
from vit.errors import UnknownNameError


def _deit(embed_dim: int, num_heads: int, *, distilled: bool = False) -> Architecture:
    block = BlockShape(num_heads, 64, 64, 4 * embed_dim)
    return _imagenet(embed_dim, [block] * 12, distilled=distilled)


def _imagenet(embed_dim: int, blocks: Sequence[BlockShape], *, distilled: bool = False) -> Architecture:
    """224 x 224 pixels in patches of 16, 1,000 classes."""
    return Architecture(
        image_size=(224, 224),
        patch_size=(16, 16),
        in_chans=3,
        num_classes=1000,
        embed_dim=embed_dim,
        blocks=tuple(blocks),
        dist_token=distilled,
    )


def _vit(embed_dim: int, depth: int, num_heads: int, patch: int = 16) -> Architecture:
    block = BlockShape(num_heads, embed_dim // num_heads, embed_dim // num_heads, 4 * embed_dim)
    return _imagenet(embed_dim, [block] * depth).replace(patch_size=(patch, patch))


def _deit3(embed_dim: int, depth: int, num_heads: int, patch: int = 16) -> Architecture:
    return _vit(embed_dim, depth, num_heads, patch).replace(layer_scale=True, pos_embed="patches")


def _revit(embed_dim: int, heads: Sequence[int], qk_dims: Sequence[int], mlp_dims: Sequence[int]) -> Architecture:
    """Distilled, like the models that the poster trains; V is 64 throughout."""
    blocks = [BlockShape(h, qk, 64, mlp) for h, qk, mlp in zip(heads, qk_dims, mlp_dims, strict=True)]
    return _imagenet(embed_dim, blocks, distilled=True)


PRESETS: dict[str, Architecture] = {
    "deit-t": _deit(192, 3),
    "deit-s": _deit(384, 6),
    "deit-b": _deit(768, 12),
    "deit-t-distilled": _deit(192, 3, distilled=True),
    "deit-s-distilled": _deit(384, 6, distilled=True),
    "deit-b-distilled": _deit(768, 12, distilled=True),
    "vit-b": _vit(768, 12, 12),
    "vit-b32": _vit(768, 12, 12, 32),
    "vit-l": _vit(1024, 24, 16),
    "vit-h": _vit(1280, 32, 16, 14),
    "deit3-s": _deit3(384, 12, 6),
    "deit3-m": _deit3(512, 12, 8),
    "deit3-b": _deit3(768, 12, 12),
    "deit3-l": _deit3(1024, 24, 16),
    "deit3-h": _deit3(1280, 32, 16, 14),
    "revit-t": _revit(
        176,
        [10, 2, 2] + [4] * 6 + [2, 2, 10],
        [16, 8, 8] + [16] * 6 + [8, 8, 16],
        [528] * 3 + [1056] * 6 + [528] * 3,
    ),
    "revit-s": _revit(
        384,
        [10, 4, 4] + [8] * 6 + [4, 4, 10],
        [32, 16, 16] + [32] * 6 + [16, 16, 32],
        [1152] * 3 + [2304] * 6 + [1152] * 3,
    ),
}
"""Shapes that can be built. The released ReViT code gives ReViT-T 5.34 M parameters and 1.14 G MACs where the poster
prints 5.9 M and 1.3 G; ReViT-S agrees with the poster."""


def preset(name: str) -> Architecture:
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """One row of a published table, as printed.

    Attributes:
        params_m: millions of parameters.  macs_g: billions of MACs (printed as FLOPs); None: not printed.
        top1: ImageNet-1K top-1 accuracy in percent.
        speedup: over DeiT-B, by device; empty: not printed.
        preset: the architecture's preset, where its dimensions are published.
    """

    name: str
    params_m: float
    macs_g: float | None
    top1: float
    speedup: dict[str, float]
    source: str
    preset: str | None = None


_POSTER = "NViT poster (CVPR 2023), comparison table"
_REVIT = "NViT poster (CVPR 2023), parameter redistribution table"
_DEIT = "facebookresearch/deit, README_deit.md, model zoo"
_DEIT3 = "facebookresearch/deit, README_revenge.md, ImageNet-1k pre-training, 224 pixels"
_DEIT3_21K = "facebookresearch/deit, README_revenge.md, ImageNet-21k pre-training, 224 pixels"


def _row(
    name: str,
    params_m: float,
    macs_g: float,
    v100: float,
    rtx3080: float | None,
    top1: float,
    preset: str | None = None,
) -> PublishedResult:
    speedup = {"v100": v100} | ({} if rtx3080 is None else {"rtx-3080": rtx3080})
    return PublishedResult(name, params_m, macs_g, top1, speedup, _POSTER, preset)


PUBLISHED: tuple[PublishedResult, ...] = (
    _row("DeiT-B", 86, 17.6, 1.00, 1.00, 83.36, "deit-b-distilled"),
    _row("Swin-B", 88, 15.4, 0.95, None, 83.30),
    _row("NViT-B", 34, 6.8, 1.86, 1.75, 83.29),
    _row("NViT-B + ASP", 17, 6.8, 1.86, 1.85, 83.29),
    _row("Swin-S", 50, 8.7, 1.49, None, 83.00),
    _row("NViT-H", 30, 6.2, 2.01, 1.89, 82.95),
    _row("NViT-H + ASP", 15, 6.2, 2.01, 1.99, 82.95),
    _row("DeiT-S", 22, 4.6, 2.44, 2.27, 81.20, "deit-s-distilled"),
    _row("Swin-T", 29, 4.5, 2.58, None, 81.30),
    _row("NViT-S", 21, 4.2, 2.52, 2.35, 82.19),
    _row("NViT-S + ASP", 10.5, 4.2, 2.52, 2.47, 82.19),
    _row("DeiT-T", 5.6, 1.2, 5.18, 4.66, 74.50, "deit-t-distilled"),
    _row("NViT-T", 6.9, 1.3, 4.97, 4.55, 76.21),
    _row("NViT-T + ASP", 3.5, 1.3, 4.97, 4.66, 76.21),
    PublishedResult("DeiT-S (retrained)", 22, 4.6, 81.01, {"v100": 2.29}, _REVIT, "deit-s"),
    PublishedResult("ReViT-S", 23, 4.7, 81.22, {"v100": 2.31}, _REVIT, "revit-s"),
    PublishedResult("DeiT-T (retrained)", 5.6, 1.2, 72.84, {"v100": 4.39}, _REVIT, "deit-t"),
    PublishedResult("ReViT-T", 5.9, 1.3, 74.20, {"v100": 4.75}, _REVIT, "revit-t"),
    PublishedResult("DeiT-tiny", 5, None, 72.2, {}, _DEIT, "deit-t"),
    PublishedResult("DeiT-small", 22, None, 79.9, {}, _DEIT, "deit-s"),
    PublishedResult("DeiT-base", 86, None, 81.8, {}, _DEIT, "deit-b"),
    PublishedResult("DeiT-tiny distilled", 6, None, 74.5, {}, _DEIT, "deit-t-distilled"),
    PublishedResult("DeiT-small distilled", 22, None, 81.2, {}, _DEIT, "deit-s-distilled"),
    PublishedResult("DeiT-base distilled", 87, None, 83.4, {}, _DEIT, "deit-b-distilled"),
    PublishedResult("DeiT-III ViT-S", 22.0, 4.6, 81.4, {}, _DEIT3, "deit3-s"),
    PublishedResult("DeiT-III ViT-B", 86.6, 17.5, 83.8, {}, _DEIT3, "deit3-b"),
    PublishedResult("DeiT-III ViT-L", 304.4, 61.6, 84.9, {}, _DEIT3, "deit3-l"),
    PublishedResult("DeiT-III ViT-H", 632.1, 167.4, 85.2, {}, _DEIT3, "deit3-h"),
    PublishedResult("DeiT-III ViT-S, ImageNet-21k", 22.0, 4.6, 83.1, {}, _DEIT3_21K, "deit3-s"),
    PublishedResult("DeiT-III ViT-B, ImageNet-21k", 86.6, 17.5, 85.7, {}, _DEIT3_21K, "deit3-b"),
    PublishedResult("DeiT-III ViT-L, ImageNet-21k", 304.4, 61.6, 87.0, {}, _DEIT3_21K, "deit3-l"),
    PublishedResult("DeiT-III ViT-H, ImageNet-21k", 632.1, 167.4, 87.2, {}, _DEIT3_21K, "deit3-h"),
)
"""NViT-B, H, S and T are here as figures alone: their dimensions were never published."""
