"""LatencyTable: milliseconds per block on a grid, the part outside the blocks, and how all of it came about."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from latency.errors import OutsideGridError, TableError
from latency.grid import AXES, Grid
from latency.target import Target
from vit.architecture import NORMS
from vit.fingerprint import fingerprint

if TYPE_CHECKING:
    from latency.interpolate import Interpolator
    from latency.physics import MonotoneTimes

Array = npt.NDArray[np.float64]

KINDS = ("measured", "partly-modelled", "imported", "modelled", "analytic")
"""From the best evidence of a device to the poorest; `analytic` is the target `macs` alone."""

MODELLED = ("partly-modelled", "modelled")
"""Kinds whose numbers come with an interval."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_finite(value: object) -> bool:
    """JSON has neither NaN nor infinity, and what does not fit a double is no figure."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a table's numbers come from.

    Attributes:
        kind: `measured` on the device at every point; `partly-modelled`, a physical model fitted to points that were
            measured on the device; `imported`; `modelled`, from published figures of the device; or `analytic` (the
            target `macs` alone).
        created_at: UTC, ISO 8601.
        method: how a number was made, in a sentence.
        device: the device's own name; for CPUs with its threads.
        driver, clocks: as reported by the device, "" where it reports none.
        versions: of the libraries that were timed.
        created_by: host or person.
        source, license: of imported figures.
        quality: figures on the quality of the numbers: contention, drift, spread, fit errors.
        interval: latencies that were held out lay between these two multiples of the table's, nine in ten of them.
            Whatever is modelled has one, and it is shown wherever its numbers are.
    """

    kind: str
    created_at: str
    method: str
    device: str = ""
    driver: str = ""
    clocks: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    created_by: str = ""
    source: str = ""
    license: str = ""
    quality: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TableError(f"provenance kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("created_at", "method", "device", "driver", "clocks", "created_by", "source", "license"):
            if not isinstance(getattr(self, name), str):
                raise TableError(f"provenance {name} must be text, got {getattr(self, name)!r:.100}")
        for name, valid, what in (("versions", _is_text, "text"), ("quality", _is_finite, "finite numbers")):
            entries = getattr(self, name)
            if not isinstance(entries, Mapping) or not all(
                isinstance(key, str) and valid(value) for key, value in entries.items()
            ):
                raise TableError(f"provenance {name} must hold {what} by name, got {entries!r:.100}")
        self._check_interval()

    def _check_interval(self) -> None:
        if self.interval is None:
            if self.kind in MODELLED:
                raise TableError(f"a {self.kind} table says how far it may be off; give its provenance an interval")
            return
        if len(self.interval) != 2 or not all(isinstance(end, int | float) for end in self.interval):
            raise TableError(f"provenance interval must be two multiples, got {self.interval!r:.100}")
        low, high = self.interval
        if not 0 < low <= high < float("inf"):
            raise TableError(f"provenance interval must be two increasing positive multiples, got {low}, {high}")

    def interval_ms(self, latency_ms: float) -> tuple[float, float] | None:
        """What a latency of the table may be, in ms; None where it was not modelled."""
        return None if self.interval is None else (self.interval[0] * latency_ms, self.interval[1] * latency_ms)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        known = {f.name for f in fields(cls)}
        if not isinstance(document, dict) or not set(document) <= known:
            raise TableError(f"provenance has the fields {', '.join(sorted(known))}")
        if isinstance(interval := document.get("interval"), list):
            document = document | {"interval": tuple(interval)}
        try:
            return cls(**document)
        except TypeError as error:
            raise TableError(f"provenance is incomplete: {error}") from None


@dataclass(frozen=True, slots=True)
class Outside:
    """What was timed outside the blocks: patch embedding, tokens, final norm and classifier of this geometry."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_classes: int

    def __post_init__(self) -> None:
        for size in (*self.image_size, *self.patch_size, self.in_chans, self.num_classes):
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= 1_000_000:
                raise TableError(f"outside: sizes are whole numbers from 0 to 1,000,000, got {size!r:.40}")

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        try:
            height, width = document["image_size"]
            patch_h, patch_w = document["patch_size"]
            in_chans, num_classes = document["in_chans"], document["num_classes"]
        except (KeyError, TypeError, ValueError):
            raise TableError(f"table metadata: outside is {document!r:.200}") from None
        return cls((height, width), (patch_h, patch_w), in_chans, num_classes)


def _frozen(array: npt.ArrayLike) -> Array:
    copy = np.array(array, dtype=np.float64, order="C")
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Median milliseconds of one block, and of the rest of the model, on one target.

    Attributes:
        target: what the latencies belong to.
        grid: the block shapes.
        block_ms: shape `grid.shape`, ms per batch for one block.
        block_iqr_ms: spread of each point (interquartile range), same shape.
        outside: geometry of the part outside the blocks.
        outside_ms, outside_iqr_ms: shape (len(grid.embed_dim),).
        norm: which norm the blocks had, `layer` or `rms`.
        provenance: how the numbers came about.
    """

    target: Target
    grid: Grid
    block_ms: Array
    block_iqr_ms: Array
    outside: Outside
    outside_ms: Array
    outside_iqr_ms: Array
    norm: str
    provenance: Provenance

    def __post_init__(self) -> None:
        for name in ("block_ms", "block_iqr_ms", "outside_ms", "outside_iqr_ms"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        for name in ("block_ms", "block_iqr_ms"):
            if getattr(self, name).shape != self.grid.shape:
                raise TableError(f"{name} has shape {getattr(self, name).shape}, the grid {self.grid.shape}")
        for name in ("outside_ms", "outside_iqr_ms"):
            if getattr(self, name).shape != (len(self.grid.embed_dim),):
                raise TableError(f"{name} must have one entry per embed_dim, got {getattr(self, name).shape}")
        if self.target.is_analytic:
            raise TableError("macs is the analytic target, which has no table; name a device")
        if self.kind == "analytic":
            raise TableError("provenance kind analytic is of the target macs alone, which has no table")
        if self.norm not in NORMS:
            raise TableError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        _check_times(self.grid, self.block_ms)
        for name in ("block_iqr_ms", "outside_iqr_ms"):
            spread = getattr(self, name)
            bad = np.flatnonzero(~(np.isfinite(spread) & (spread >= 0)).ravel())
            if len(bad):
                first = int(bad[0])
                where = f"embed_dim={self.grid.embed_dim[first]}" if spread.ndim == 1 else _place(self.grid, first)
                raise TableError(
                    f"{name} holds NaN, infinite or negative spreads, first {spread.flat[first]} at {where}; "
                    "write 0 where none was measured"
                )
        for embed, ms in zip(self.grid.embed_dim, self.outside_ms, strict=True):
            if not (np.isfinite(ms) and ms >= 0):
                raise TableError(f"outside_ms at embed_dim {embed} is {ms}; times are finite and not negative")

    @property
    def kind(self) -> str:
        return self.provenance.kind

    def block_times(self, points: npt.ArrayLike) -> Array:
        """Milliseconds of blocks by multilinear interpolation.

        Args:
            points: shape (..., 5), sizes in the order of `grid.AXES`.

        Returns:
            Shape (...,), ms.

        Raises:
            OutsideGridError: a size that was not profiled.
        """
        return self._blocks(np.asarray(points, dtype=np.float64))

    @cached_property
    def _blocks(self) -> "Interpolator":
        from latency.interpolate import Interpolator  # loads numba, which only estimates should wait for

        return Interpolator(self.grid, self.block_ms, self.target.slug)

    def outside_times(self, embed_dims: npt.ArrayLike) -> Array:
        """Milliseconds outside the blocks, shape of `embed_dims`.

        Raises:
            OutsideGridError: a size that was not profiled.
        """
        sizes = np.asarray(embed_dims, dtype=np.float64)
        axis = self.grid.embed_dim
        outside = ~((sizes >= axis[0]) & (sizes <= axis[-1]))
        if outside.any():
            first = float(sizes[outside].flat[0])
            raise OutsideGridError.of("embed_dim", first, axis[0], axis[-1], self.target.slug)
        return np.interp(sizes, self.grid.embed_dim, self.outside_ms)

    @cached_property
    def monotone(self) -> "MonotoneTimes":
        """The physical model fitted to the whole table: what differences between neighbours are taken from."""
        from latency.physics import fit_times  # loads SciPy's solvers

        points = np.stack(np.meshgrid(*self.grid.axes, indexing="ij"), axis=-1).reshape(-1, len(AXES))
        return fit_times(points, self.block_ms.ravel(), self.grid.embed_dim, self.outside_ms, self.target.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """Of the numbers, not of their provenance."""
        document = [self.target.to_dict(), [list(axis) for axis in self.grid.axes]]
        return fingerprint(document, self.block_ms, self.outside_ms)

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest size per axis that the table answers for."""
        return {name: (axis[0], axis[-1]) for name, axis in zip(AXES, self.grid.axes, strict=True)}


def _check_times(grid: Grid, block_ms: Array) -> None:
    bad = np.flatnonzero(~(np.isfinite(block_ms) & (block_ms > 0)).ravel())
    if len(bad):
        raise TableError(
            f"{len(bad)} of {len(grid)} points have no valid time, first {_place(grid, int(bad[0]))}: "
            f"{block_ms.ravel()[bad[0]]}; times are positive milliseconds at every point of the grid"
        )


def _place(grid: Grid, index: int) -> str:
    embed, shape = grid.point(index)
    return " ".join(f"{name}={size}" for name, size in {"embed_dim": embed, **asdict(shape)}.items())
