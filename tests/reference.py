"""Slow, obvious truths and small values that tests of several packages share."""

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from latency.estimate import LatencyModel
from latency.grid import Grid
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target
from search.saliency import Saliency
from vit.architecture import BLOCK_UNITS, SIZE_FIELD, Architecture, Unit
from vit.groups import EMBED, Group, groups, resize, size

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


def random_table(seed: int, grid: Grid = GRID, arch: Architecture | None = None, **kwargs: object) -> LatencyTable:
    """Times without any order: a bigger block may well be faster."""
    draw = np.random.default_rng(seed)
    return table_of(draw.uniform(0.1, 2.0, grid.shape), grid, arch=arch, **kwargs)  # type: ignore[arg-type]


def monotone_table(seed: int, grid: Grid = GRID, arch: Architecture | None = None) -> LatencyTable:
    """Times that grow along every axis, in random steps."""
    times = np.random.default_rng(seed).uniform(0.05, 1.0, grid.shape)
    for axis in range(times.ndim):
        times = np.cumsum(times, axis=axis)
    return table_of(times / times.mean(), grid, arch=arch)


def multilinear(seed: int) -> Callable[[Array], Array]:
    """A random function of five sizes that is linear in each of them and positive for positive sizes."""
    weights = np.random.default_rng(seed).uniform(0.1, 1.0, (2,) * 5)

    def function(points: Array) -> Array:
        total = np.zeros(points.shape[:-1])
        for powers in itertools.product((0, 1), repeat=5):
            total += weights[powers] * np.prod(points ** np.array(powers), axis=-1)
        return total

    return function


def random_saliency(arch: Architecture, seed: int) -> Saliency:
    draw = np.random.default_rng(seed)
    values = {group: draw.exponential(size=size(arch, group)) for group in groups(arch)}
    return Saliency(arch, values, "random", "", "", 0)


def sizes_in_steps(largest: int, step: int, low: int, high: int) -> list[int]:
    """What search may cut a group to, said once more: multiples of `step`, and `largest` itself, within the bounds."""
    return [n for n in range(1, largest + 1) if (n % step == 0 or n == largest) and low <= n <= high]


def every_architecture(
    arch: Architecture, latency: LatencyModel, steps: Mapping[Unit, int]
) -> Iterator[tuple[dict[Group, int], Architecture]]:
    """All that `arch` can be cut to in these steps within the bounds of a table."""
    units = [EMBED, *(Group(unit, block) for block in range(arch.depth) for unit in BLOCK_UNITS)]
    choices = [
        sizes_in_steps(size(arch, group), steps[group.unit], *latency.bounds[SIZE_FIELD[group.unit]]) for group in units
    ]
    for combination in itertools.product(*choices):
        sizes = dict(zip(units, combination, strict=True))
        yield sizes, resize(arch, sizes)


def slow_kept(saliency: Saliency, sizes: Mapping[Group, int]) -> float:
    """Saliency that stays when the largest `sizes[group]` entries of every group stay."""
    return sum(sum(sorted(saliency.values[group].tolist(), reverse=True)[:count]) for group, count in sizes.items())
