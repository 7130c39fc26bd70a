"""Which slice of which parameter belongs to which removable unit: the one map that saliency, masks and cutting share.

Every parameter is a block of numbers whose axes mean something: `blocks.3.attn.qkv.weight` is three parts, Q of
shape (heads, qk, embed), K alike, V of shape (heads, v, embed). A unit is one index on one kind of axis, and what
leaves with it is every slice at that index. So one list of parts says all there is to say:

    saliency   reduce each part over its other axes
    mask       zero each part at the dropped indices
    cut        select the kept indices along every axis

Head alignment (NViT poster) is in the map: QK and V indices are shared by all heads of a block.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vit.architecture import BLOCK_UNITS, SIZE_FIELD, Architecture, Unit
from vit.errors import ArchitectureError


class Group(NamedTuple):
    """All units of one kind that are removed independently of others: EMBED of the model, or H of one block."""

    unit: Unit
    block: int | None = None

    def __str__(self) -> str:
        return self.unit.value if self.block is None else f"blocks.{self.block}.{self.unit}"


EMBED = Group(Unit.EMBED)


@dataclass(frozen=True, slots=True)
class Part:
    """A run of rows of one parameter, seen as an array with named axes.

    Attributes:
        parameter: its name in the state dict.
        start: first row of the parameter that belongs to this part.
        shape: the part reshaped, one entry an axis.
        axes: what each axis counts; None for an axis from which nothing is ever removed.
        lead: how many leading axes make up the parameter's rows.
    """

    parameter: str
    start: int
    shape: tuple[int, ...]
    axes: tuple[Group | None, ...]
    lead: int = 1

    @property
    def stop(self) -> int:
        """One past the last row of the parameter that belongs to this part."""
        return self.start + math.prod(self.shape[: self.lead])


def is_stream_norm(parameter: str) -> bool:
    """Whether a parameter belongs to a norm over the channels of the residual stream."""
    return "." in parameter and parameter.split(".")[-2] in ("norm_pre", "norm1", "norm2", "norm", "fc_norm")


def groups(arch: Architecture) -> list[Group]:
    """EMBED, then HEAD, QK, V and MLP of every block in order."""
    return [EMBED] + [Group(unit, block) for block in range(arch.depth) for unit in BLOCK_UNITS]


def size(arch: Architecture, group: Group) -> int:
    """Number of units in a group."""
    if group.block is None:
        return arch.embed_dim
    return arch.blocks[group.block].size(group.unit)


def resize(arch: Architecture, sizes: Mapping[Group, int]) -> Architecture:
    """The architecture with other sizes; groups that are not named keep theirs, and so does the softmax scale.

    An RMS norm over fewer channels gets an epsilon larger in proportion: with `surgery.shrink` that makes its
    denominator the one of the original width, in which the dropped channels are zero. (Not under qk-norm, which shares
    the epsilon.)
    """
    blocks = list(arch.blocks)
    for group, count in sizes.items():
        if group.block is not None:
            blocks[group.block] = replace(blocks[group.block], **{SIZE_FIELD[group.unit]: count})
    embed_dim = sizes.get(EMBED, arch.embed_dim)
    eps = arch.norm_eps
    if arch.norm == "rms" and not arch.qk_norm and embed_dim:
        eps = min(eps * arch.embed_dim / embed_dim, 0.5)
    return arch.replace(
        embed_dim=embed_dim,
        norm_eps=eps,
        blocks=tuple(blocks),
        softmax_scale=arch.scales,
    )


@dataclass(frozen=True, eq=False)
class Keep:
    """Which units stay: for every group a sorted array of indices."""

    indices: Mapping[Group, npt.NDArray[np.int64]]

    @classmethod
    def of(cls, arch: Architecture, indices: Mapping[Group, npt.ArrayLike]) -> "Keep":
        """Checked against `arch`; groups that are not named stay whole."""
        kept: dict[Group, npt.NDArray[np.int64]] = {}
        known = groups(arch)
        if unknown := [group for group in indices if group not in known]:
            raise ArchitectureError(f"{unknown[0]} is no group of this architecture ({arch.depth} blocks)")
        for group in known:
            count = size(arch, group)
            given = np.asarray(indices.get(group, np.arange(count)))
            chosen = given.astype(np.int64)
            if (
                given.dtype.kind not in "iu"  # a boolean mask would pass for the indices 0 and 1
                or chosen.ndim != 1
                or chosen.size == 0
                or chosen[0] < 0
                or chosen[-1] >= count
                or (np.diff(chosen) <= 0).any()
            ):
                raise ArchitectureError(
                    f"{group}: kept indices must be sorted, distinct, at least one and below {count}"
                )
            chosen.setflags(write=False)
            kept[group] = chosen
        return cls(kept)

    def architecture(self, arch: Architecture) -> Architecture:
        """What is left of `arch`."""
        return resize(arch, {group: len(chosen) for group, chosen in self.indices.items()})


def parts(arch: Architecture) -> Iterator[Part]:
    """Every parameter of the model, part by part."""
    embed = arch.embed_dim

    def rows(name: str, *axes: tuple[Group | None, int], start: int = 0, lead: int = 1) -> Part:
        kinds, shape = zip(*axes, strict=True)
        return Part(name, start, shape, kinds, lead)

    stream = (EMBED, embed)
    plain = (None, 1)

    def norm(name: str, axis: tuple[Group | None, int]) -> Iterator[Part]:
        yield rows(f"{name}.weight", axis)
        if arch.norm == "layer":
            yield rows(f"{name}.bias", axis)

    patch_h, patch_w = arch.patch_size
    yield rows("patch_embed.proj.weight", stream, (None, arch.in_chans * patch_h * patch_w))
    if arch.patch_bias:
        yield rows("patch_embed.proj.bias", stream)
    if arch.class_token:
        yield rows("cls_token", plain, plain, stream)
    if arch.dist_token:
        yield rows("dist_token", plain, plain, stream)
    if arch.reg_tokens:
        yield rows("reg_token", plain, (None, arch.reg_tokens), stream)
    if arch.pos_embed != "none":
        positions = arch.tokens if arch.pos_embed == "all" else arch.patches
        yield rows("pos_embed", plain, (None, positions), stream)
    if arch.pre_norm:
        yield from norm("norm_pre", stream)

    for index, shape in enumerate(arch.blocks):
        prefix = f"blocks.{index}"
        heads = (Group(Unit.HEAD, index), shape.num_heads)
        qk = (Group(Unit.QK, index), shape.qk_dim)
        value = (Group(Unit.V, index), shape.v_dim)
        hidden = (Group(Unit.MLP, index), shape.mlp_dim)
        yield from norm(f"{prefix}.norm1", stream)
        start = 0
        for channels in (qk, qk, value):
            name = f"{prefix}.attn.qkv"
            yield rows(f"{name}.weight", heads, channels, stream, start=start, lead=2)
            if arch.qkv_bias:
                yield rows(f"{name}.bias", heads, channels, start=start, lead=2)
            start += heads[1] * channels[1]
        if arch.qk_norm:
            yield from norm(f"{prefix}.attn.q_norm", qk)
            yield from norm(f"{prefix}.attn.k_norm", qk)
        yield rows(f"{prefix}.attn.proj.weight", stream, heads, value)
        yield from norm(f"{prefix}.norm2", stream)
        yield rows(f"{prefix}.mlp.fc1.weight", hidden, stream)
        yield rows(f"{prefix}.mlp.fc2.weight", stream, hidden)
        if arch.proj_bias:
            yield rows(f"{prefix}.attn.proj.bias", stream)
            yield rows(f"{prefix}.mlp.fc1.bias", hidden)
            yield rows(f"{prefix}.mlp.fc2.bias", stream)
        if arch.layer_scale:
            yield rows(f"{prefix}.ls1.gamma", stream)
            yield rows(f"{prefix}.ls2.gamma", stream)

    if arch.final_norm != "none":
        yield from norm("norm" if arch.final_norm == "before_pool" else "fc_norm", stream)
    if arch.num_classes:
        for head in ("head", "head_dist") if arch.dist_token else ("head",):
            yield rows(f"{head}.weight", (None, arch.num_classes), stream)
            yield rows(f"{head}.bias", (None, arch.num_classes))
