"""From blocks to models: latency of a whole architecture = blocks + the part outside them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from latency.analytic import MacsModel
from latency.components import Components, differences
from latency.devices import DeviceModel, Traits, calibrations
from latency.errors import TargetError
from latency.table import Outside, Provenance
from latency.target import Target
from vit.architecture import Architecture
from vit.groups import Group, resize, size

Array = npt.NDArray[np.float64]

_PART = 1024
"""Models that `model_times` answers for at once: enough to hide the cost of a call, few enough for the cache."""


class Times(Protocol):
    """Milliseconds of blocks, and of the part outside them."""

    def block_times(self, points: npt.ArrayLike) -> Array:
        """ms of blocks; (..., 5) sizes in the order of `grid.AXES` -> (...,)."""

    def outside_times(self, embed_dims: npt.ArrayLike) -> Array:
        """ms outside the blocks."""


class LatencyModel(Times, Protocol):
    """Whatever can time blocks: a LatencyTable, a modelled device, or the analytic target `macs`. It never changes."""

    def __hash__(self) -> int: ...
    @property
    def target(self) -> Target: ...
    @property
    def kind(self) -> str: ...
    @property
    def norm(self) -> str: ...
    @property
    def outside(self) -> Outside: ...
    @property
    def provenance(self) -> Provenance: ...
    @property
    def bounds(self) -> Mapping[str, tuple[int, int]]: ...
    @property
    def fingerprint(self) -> str:
        """Changes with whatever a latency depends on."""

    @property
    def monotone(self) -> Times:
        """Times that never fall when a size grows, for differences between neighbours: those of a measured table are
        mostly noise (one in eleven of the shipped CPU table's steps in QK and V is negative)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Latency of one architecture on one target, with its evidence.

    Attributes:
        latency_ms: the whole model, per batch (millions of MACs on the target `macs`).
        block_ms: one entry per block.
        outside_ms: patch embedding, tokens, final norm and classifier.
        kind: of the table, one of `latency.table.KINDS`.
        interval_ms: what the latency may be, where the table is modelled (see Provenance.interval).
        notes: where the architecture differs from what was timed.
        components: of the blocks, where asked for and known.
    """

    target: Target
    latency_ms: float
    block_ms: tuple[float, ...]
    outside_ms: float
    kind: str
    interval_ms: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    components: Components | None = field(default=None, compare=False)


def points_of(arch: Architecture) -> Array:
    """Sizes of every block, shape (depth, 5), in the order of `grid.AXES`."""
    return np.array(
        [[arch.embed_dim, b.num_heads, b.qk_dim, b.v_dim, b.mlp_dim] for b in arch.blocks],
        dtype=np.float64,
    )


def check_tokens(latency: LatencyModel, arch: Architecture) -> None:
    target = latency.target
    if target.tokens == arch.tokens:
        return
    advice = f"profile a table for {arch.tokens} tokens"
    if latency.kind == "modelled" and target.setting in calibrations():
        advice = f"ask for {replace(target, tokens=arch.tokens).slug}"
    raise TargetError(
        f"{target.slug} was made for {target.tokens} tokens, the architecture has {arch.tokens}; {advice}"
    )


_TRAIT_NAMES = {"layer_scale": "LayerScale", "prefix": "prefix tokens", "pre_norm": "pre-norm"}


def _trait_notes(latency: LatencyModel, arch: Architecture) -> Iterator[str]:
    """Traits that what was modelled has not. (A profile times blocks with the architecture's own.)"""
    made_for, ours = latency.traits if isinstance(latency, DeviceModel) else Traits(), Traits.of(arch)
    for trait, name in _TRAIT_NAMES.items():
        if (has := getattr(ours, trait)) != getattr(made_for, trait):
            with_, no = ("without", "") if has else ("with", "no ")
            yield f"modelled for architectures {with_} {name}, this one has {no}{name}"
    if arch.qk_norm:
        yield "modelled for architectures without qk-norm, this one has qk-norm"


def _notes(latency: LatencyModel, arch: Architecture) -> tuple[str, ...]:
    notes = []
    if latency.kind != "analytic" and arch.norm != latency.norm:
        notes.append(f"the table timed {latency.norm} norm, the architecture has {arch.norm} norm")
    ours = Outside(arch.image_size, arch.patch_size, arch.in_chans, arch.num_classes)
    if ours != latency.outside:
        notes.append("the part outside the blocks was timed for another image, patch, channel or class count")
    if latency.kind == "modelled":
        notes += _trait_notes(latency, arch)
    return tuple(notes)


def estimate(latency: LatencyModel, arch: Architecture) -> Estimate:
    """
    Raises:
        TargetError: the table was made for another number of tokens.
        OutsideGridError: a size that the table does not cover.
    """
    check_tokens(latency, arch)
    blocks = latency.block_times(points_of(arch))
    return _estimate(latency, arch, blocks, float(latency.outside_times(arch.embed_dim)))


def components_of(latency: LatencyModel, points: npt.ArrayLike) -> Components | None:
    """What the parts of blocks take, shape (blocks, 5); None where a table knows none."""
    if isinstance(latency, MacsModel | DeviceModel):
        return latency.components(points)
    return differences(latency, points)


def _estimate(
    latency: LatencyModel,
    arch: Architecture,
    block_ms: Array,
    outside_ms: float,
    components: Components | None = None,
) -> Estimate:
    total = float(block_ms.sum()) + outside_ms
    return Estimate(
        target=latency.target,
        latency_ms=total,
        block_ms=tuple(block_ms.tolist()),
        outside_ms=outside_ms,
        kind=latency.kind,
        interval_ms=latency.provenance.interval_ms(total),
        notes=_notes(latency, arch),
        components=components,
    )


def saving_ms(latency: LatencyModel, arch: Architecture, group: Group, units: int = 1) -> float:
    """What the model saves when some units of one group leave: from the monotone fit, never negative."""
    times = latency.monotone
    small = resize(arch, {group: size(arch, group) - units})
    return max(_total(times, arch) - _total(times, small), 0.0)


def _total(times: Times, arch: Architecture) -> float:
    return float(times.block_times(points_of(arch)).sum() + times.outside_times(arch.embed_dim))


def model_times(latency: LatencyModel, points: npt.ArrayLike) -> Array:
    """Latency of many models of equal depth in one call, for search and exploration.

    Args:
        points: shape (models, depth, 5), sizes in the order of `grid.AXES`. A million models of 12 blocks are 120 MB
            of int16, and are never held as anything wider.

    Returns:
        Shape (models,), ms.

    Raises:
        OutsideGridError: as `estimate`, for the first model that has a size which the table does not cover.
    """
    sizes = np.asarray(points)
    times = np.empty(len(sizes))
    for start in range(0, len(sizes), _PART):
        part = sizes[start : start + _PART].astype(np.float64, copy=False)
        times[start : start + _PART] = latency.block_times(part).sum(axis=-1) + latency.outside_times(part[:, 0, 0])
    return times


def estimate_many(latency: LatencyModel, archs: Sequence[Architecture], *, components: bool = False) -> list[Estimate]:
    """Estimates of architectures of any depths in one call of the table; with the components of blocks in three.

    Raises:
        TargetError, OutsideGridError: as `estimate`, for the first architecture that cannot be timed.
    """
    if not archs:
        return []
    for arch in archs:
        check_tokens(latency, arch)
    points = np.concatenate([points_of(arch) for arch in archs])
    blocks = latency.block_times(points)
    outside = latency.outside_times([arch.embed_dim for arch in archs]).tolist()
    parts = components_of(latency, points) if components else None
    ends = np.cumsum([0, *(arch.depth for arch in archs)])
    own = [slice(start, end) for start, end in itertools.pairwise(ends)]
    return [
        _estimate(latency, arch, blocks[rows], outside_ms, parts.part(rows) if parts else None)
        for arch, rows, outside_ms in zip(archs, own, outside, strict=True)
    ]
