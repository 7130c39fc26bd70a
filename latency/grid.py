"""Grid: which block shapes to time. Five axes, every one measured at its ends, so nothing absent is ever free."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from latency.errors import TableError
from vit.architecture import MAX_SIZE, Architecture, BlockShape

AXES = ("embed_dim", "num_heads", "qk_dim", "v_dim", "mlp_dim")
"""Axis names, in the order of the table's dimensions."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A product of five strictly increasing axes of sizes from 1 to MAX_SIZE."""

    embed_dim: tuple[int, ...]
    num_heads: tuple[int, ...]
    qk_dim: tuple[int, ...]
    v_dim: tuple[int, ...]
    mlp_dim: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, axis in zip(AXES, self.axes, strict=True):
            if not axis:
                raise TableError(f"grid axis {name} is empty")
            for size in axis:
                if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                    raise TableError(f"grid axis {name}: sizes are whole numbers from 1, got {size!r}")
                if size > MAX_SIZE:
                    raise TableError(f"grid axis {name}: sizes go up to {MAX_SIZE}, as in architectures, got {size}")
            for low, high in itertools.pairwise(axis):
                if high <= low:
                    raise TableError(f"grid axis {name} must be strictly increasing, got {high} after {low}")

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def point(self, index: int) -> tuple[int, BlockShape]:
        """Embedding width and block shape of one point; indices count the last axis fastest."""
        embed, *sizes = (axis[i] for axis, i in zip(self.axes, np.unravel_index(index, self.shape), strict=True))
        return embed, BlockShape(*sizes)

    def points(self) -> Iterator[tuple[int, BlockShape]]:
        return (self.point(index) for index in range(len(self)))

    def to_dict(self) -> dict[str, list[int]]:
        return {name: list(axis) for name, axis in zip(AXES, self.axes, strict=True)}

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        if not isinstance(document, dict) or set(document) != set(AXES):
            raise TableError(f"a grid has the axes {', '.join(AXES)}, got {document!r:.200}")
        axes = {}
        for name, axis in document.items():
            if not isinstance(axis, list):
                raise TableError(f"grid axis {name} must be a list, got {axis!r:.100}")
            axes[name] = tuple(axis)
        return cls(**axes)


_CHANNELS = (16, 32, 48, 64)

GRIDS: dict[str, Grid] = {
    "vitfit": Grid(
        embed_dim=(64, 192, 384, 576, 768),
        num_heads=(1, 3, 6, 9, 12),
        qk_dim=(8, *_CHANNELS),
        v_dim=(8, *_CHANNELS),
        mlp_dim=(16, 64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 2688, 3072),
    ),
    "nvit": Grid(
        embed_dim=(256, 512, 768),
        num_heads=(1, 3, 6, 9, 12),
        qk_dim=(1, *_CHANNELS),
        v_dim=(1, *_CHANNELS),
        mlp_dim=(1, *range(128, 3073, 128)),
    ),
}
"""Grids by name, 9,375 points each: ours, which covers DeiT-T, ReViT-T and everything up to DeiT-B, and the one of
NViT's published table (Yang et al. 2023)."""


def grid_below(arch: Architecture, *, planes: Sequence[int] = (4, 3, 3, 3, 4), least_channels: int = 8) -> Grid:
    """A grid that covers everything that can be cut out of one model.

    Every axis runs from a small size to the model's largest, in about equal steps: latency is nearly linear in each
    size, so few planes do.

    Args:
        planes: number of sizes per axis, in the order of AXES (fewer where the range holds fewer).
        least_channels: the smallest qk_dim and v_dim; EMBED and MLP start at twice as many.
    """
    largest = {"embed_dim": arch.embed_dim} | {
        name: max(getattr(block, name) for block in arch.blocks) for name in AXES[1:]
    }
    smallest = dict(zip(AXES, (2 * least_channels, 1, least_channels, least_channels, 2 * least_channels), strict=True))
    axes = {}
    for name, count in zip(AXES, planes, strict=True):
        high = largest[name]
        low = min(smallest[name], high)
        sizes = np.linspace(low, high, count)
        step = 8 if name != "num_heads" else 1
        rounded = {low, high} | {int(round(s / step) * step) for s in sizes[1:-1]}
        axes[name] = tuple(sorted(s for s in rounded if low <= s <= high))
    return Grid(**axes)
