"""Small tables and saliencies that tests of several packages share; torch-free, for tests that only look at pages."""

import numpy as np
import numpy.typing as npt

from latency.grid import Grid
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target
from search.saliency import Saliency
from vit.architecture import Architecture
from vit.groups import groups, size

Array = npt.NDArray[np.float64]

GRID = Grid((4, 8, 12), (1, 2, 3), (2, 4, 6), (2, 5), (4, 8, 18))
"""Covers the small architectures of `tests.cases`."""


def mesh(grid: Grid) -> Array:
    """Sizes of every grid point, shape (*grid.shape, 5)."""
    return np.stack(np.meshgrid(*grid.axes, indexing="ij"), axis=-1).astype(np.float64)


def table_of(
    block_ms: Array,
    grid: Grid = GRID,
    *,
    outside_ms: Array | None = None,
    arch: Architecture | None = None,
    target: Target | None = None,
    provenance: Provenance | None = None,
) -> LatencyTable:
    """A table of these times, for the geometry and tokens of `arch` (16 x 16 pixels, 5 classes, if there is none)."""
    tokens = 5 if arch is None else arch.tokens
    outside = Outside((16, 16), (8, 8), 3, 5)
    if arch is not None:
        outside = Outside(arch.image_size, arch.patch_size, arch.in_chans, arch.num_classes)
    return LatencyTable(
        target=target or Target("testbed", "eager", "fp32", 2, tokens),
        grid=grid,
        block_ms=block_ms,
        block_iqr_ms=0.01 * np.ones(grid.shape),
        outside=outside,
        outside_ms=np.linspace(0.1, 0.3, len(grid.embed_dim)) if outside_ms is None else outside_ms,
        outside_iqr_ms=np.zeros(len(grid.embed_dim)),
        norm="layer",
        provenance=provenance or Provenance("measured", "2026-01-01T00:00:00+00:00", "made up for a test"),
    )


def random_saliency(arch: Architecture, seed: int) -> Saliency:
    draw = np.random.default_rng(seed)
    values = {group: draw.exponential(size=size(arch, group)) for group in groups(arch)}
    return Saliency(arch, values, "random", "", "", 0)
