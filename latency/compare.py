"""Two tables beside each other, on the points that both answer for."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latency.errors import TableError
from latency.grid import AXES
from latency.table import LatencyTable

Array = npt.NDArray[np.float64]

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
MAX_POINTS = 50_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one table's blocks compare with another's.

    Attributes:
        bounds: smallest and largest size per axis that both tables answer for.
        points: how many blocks were compared.
        ratio: latency per image of the second over the first, by percentile.
        rank_correlation: Spearman's; None where either table has but one latency.
    """

    bounds: dict[str, tuple[int, int]]
    points: int
    ratio: dict[int, float]
    rank_correlation: float | None


def compare(first: LatencyTable, second: LatencyTable) -> Comparison:
    """Compare at the grid points of both tables within their common range (a sample, the same each time, of very many).

    Raises:
        TableError: no size of some axis that both answer for.
    """
    bounds, axes = {}, []
    for name, ours, theirs in zip(AXES, first.grid.axes, second.grid.axes, strict=True):
        low, high = max(ours[0], theirs[0]), min(ours[-1], theirs[-1])
        if low > high:
            raise TableError(
                f"no {name} is in both: {first.target.slug} has {ours[0]} to {ours[-1]}, "
                f"{second.target.slug} {theirs[0]} to {theirs[-1]}"
            )
        bounds[name] = (low, high)
        axes.append(sorted({low, high} | {size for size in (*ours, *theirs) if low <= size <= high}))
    points = _points(axes)
    mine = first.block_times(points) / first.target.batch
    other = second.block_times(points) / second.target.batch
    values = np.percentile(other / mine, PERCENTILES).tolist()
    return Comparison(bounds, len(points), dict(zip(PERCENTILES, values, strict=True)), _spearman(mine, other))


def _points(axes: list[list[int]]) -> Array:
    """Points of the product, shape (points, 5)."""
    shape = tuple(len(axis) for axis in axes)
    count = int(np.prod(shape))
    rows = np.arange(count)
    if count > MAX_POINTS:
        rows = np.sort(np.random.default_rng(0).choice(count, MAX_POINTS, replace=False))
    indices = np.unravel_index(rows, shape)
    return np.stack(
        [np.array(axis, dtype=np.float64)[index] for axis, index in zip(axes, indices, strict=True)], axis=1
    )


def _spearman(first: Array, second: Array) -> float | None:
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(first), rankdata(second)])
    if (ranks.std(axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks)[0, 1])
