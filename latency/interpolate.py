"""Multilinear interpolation on the grid, compiled: the values of SciPy's RegularGridInterpolator, many times faster.

Linear, because latency nearly is, in each size.

What makes it fast: sizes of the axes are whole numbers, so the cell of any size is the cell of its whole part, one
look-up instead of a search; widths are inverted beforehand; and whole models are summed as they are read, so that a
million of them need no memory beside the input and one number each.
"""

from typing import NoReturn

import numba
import numpy as np
import numpy.typing as npt

from latency.errors import OutsideGridError
from latency.grid import AXES, Grid

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Sizes = npt.NDArray[np.int16] | npt.NDArray[np.int32] | npt.NDArray[np.int64] | npt.NDArray[np.float64]

_AS_THEY_ARE = frozenset(map(np.dtype, (np.int16, np.int32, np.int64, np.float64)))
"""Types of sizes that are read without being converted first."""


@numba.njit(cache=True, nogil=True)
def _between(low: float, high: float, share: float) -> float:
    """Exactly `low` where the share is 0; it never is 1."""
    return low + (high - low) * share


@numba.njit(cache=True, nogil=True)
def _plane(values: Array, at: int, s3: int, s4: int, w3: float, w4: float) -> float:
    low = _between(values[at], values[at + s4], w4)
    return _between(low, _between(values[at + s3], values[at + s3 + s4], w4), w3)


@numba.njit(cache=True, nogil=True)
def _cube(values: Array, at: int, s2: int, s3: int, s4: int, w2: float, w3: float, w4: float) -> float:
    return _between(_plane(values, at, s3, s4, w3, w4), _plane(values, at + s2, s3, s4, w3, w4), w2)


@numba.njit(cache=True, nogil=True)
def _inside(ends: Array, e: float, h: float, q: float, v: float, m: float) -> bool:
    """False for NaN. One branch for all ten comparisons: `and` in their place costs a third of the speed."""
    return (
        (ends[0, 0] <= e)
        & (e <= ends[0, 1])
        & (ends[1, 0] <= h)
        & (h <= ends[1, 1])
        & (ends[2, 0] <= q)
        & (q <= ends[2, 1])
        & (ends[3, 0] <= v)
        & (v <= ends[3, 1])
        & (ends[4, 0] <= m)
        & (m <= ends[4, 1])
    )


@numba.njit(cache=True, nogil=True)
def _block(
    starts: Ints,
    cell_of: Ints,
    cells: Array,
    hops: Ints,
    values: Array,
    e: float,
    h: float,
    q: float,
    v: float,
    m: float,
) -> float:
    """ms of one block that is inside the grid."""
    c0 = cell_of[starts[0] + int(e)]
    c1 = cell_of[starts[1] + int(h)]
    c2 = cell_of[starts[2] + int(q)]
    c3 = cell_of[starts[3] + int(v)]
    c4 = cell_of[starts[4] + int(m)]
    w0 = (e - cells[c0, 0]) * cells[c0, 1]
    w1 = (h - cells[c1, 0]) * cells[c1, 1]
    w2 = (q - cells[c2, 0]) * cells[c2, 1]
    w3 = (v - cells[c3, 0]) * cells[c3, 1]
    w4 = (m - cells[c4, 0]) * cells[c4, 1]
    s0, s1, s2, s3, s4 = hops[c0, 1], hops[c1, 1], hops[c2, 1], hops[c3, 1], hops[c4, 1]
    at = hops[c0, 0] + hops[c1, 0] + hops[c2, 0] + hops[c3, 0] + hops[c4, 0]
    return _between(
        _between(_cube(values, at, s2, s3, s4, w2, w3, w4), _cube(values, at + s1, s2, s3, s4, w2, w3, w4), w1),
        _between(
            _cube(values, at + s0, s2, s3, s4, w2, w3, w4), _cube(values, at + s0 + s1, s2, s3, s4, w2, w3, w4), w1
        ),
        w0,
    )


@numba.njit(cache=True, nogil=True)
def _blocks(
    ends: Array, starts: Ints, cell_of: Ints, cells: Array, hops: Ints, values: Array, points: Sizes, out: Array
) -> int:
    """ms of blocks, (P, 5) sizes -> (P,); the first row outside the grid, or -1."""
    for p in range(len(points)):
        e, h, q, v, m = points[p, 0], points[p, 1], points[p, 2], points[p, 3], points[p, 4]
        if not _inside(ends, e, h, q, v, m):
            return p
        out[p] = _block(starts, cell_of, cells, hops, values, e, h, q, v, m)
    return -1


@numba.njit(cache=True, nogil=True)
def _models(
    ends: Array,
    starts: Ints,
    cell_of: Ints,
    cells: Array,
    hops: Ints,
    values: Array,
    outside: Array,
    points: Sizes,
    out: Array,
) -> int:
    """ms of models, (M, depth, 5) sizes -> (M,); the first row outside the grid, counted over models, or -1.

    `outside` has one entry per embed_dim and one more, which is never weighed.
    """
    depth = points.shape[1]
    for p in range(len(points)):
        total = 0.0
        for b in range(depth):
            e, h, q, v, m = points[p, b, 0], points[p, b, 1], points[p, b, 2], points[p, b, 3], points[p, b, 4]
            if not _inside(ends, e, h, q, v, m):
                return p * depth + b
            total += _block(starts, cell_of, cells, hops, values, e, h, q, v, m)
        embed = points[p, 0, 0]
        c = cell_of[starts[0] + int(embed)]
        out[p] = total + _between(outside[c], outside[c + 1], (embed - cells[c, 0]) * cells[c, 1])
    return -1


class Interpolator:
    """The values of one grid, laid out for look-ups."""

    def __init__(self, grid: Grid, values: Array, source: str = "the grid") -> None:
        """
        Args:
            values: shape `grid.shape`.
            source: what was profiled, for errors.
        """
        self.grid, self.source = grid, source
        values = np.ascontiguousarray(values, dtype=np.float64)
        cell_of, cells, hops, starts = [], [], [], []
        for sizes, stride in zip(grid.axes, values.strides, strict=True):
            axis = np.array(sizes)
            count, step = len(axis), stride // values.itemsize
            starts.append(sum(map(len, cell_of)) - axis[0])
            # The last size is a cell of its own, without width and without a neighbour to weigh.
            of_size = np.append(np.repeat(np.arange(count - 1), np.diff(axis)), count - 1)
            cell_of.append(of_size + sum(map(len, cells)))
            cells.append(np.stack([axis, np.append(1.0 / np.diff(axis), 0.0)], axis=1))
            hops.append(np.stack([np.arange(count) * step, np.append(np.full(count - 1, step), 0)], axis=1))
        self._layout = (
            np.array([(axis[0], axis[-1]) for axis in grid.axes], np.float64),
            np.array(starts, np.int64),
            np.concatenate(cell_of).astype(np.int32),
            np.concatenate(cells),
            np.concatenate(hops),
            values.ravel(),
        )

    def blocks(self, points: npt.ArrayLike) -> Array:
        """
        Args:
            points: shape (..., 5).

        Returns:
            Shape (...,).

        Raises:
            OutsideGridError: a size beyond the ends of its axis, or NaN.
        """
        sizes = _sizes(points)
        rows = sizes.reshape(-1, len(AXES))
        out = np.empty(len(rows))
        if (wrong := _blocks(*self._layout, rows, out)) >= 0:
            self._refuse(rows[wrong])
        return out.reshape(sizes.shape[:-1])

    def models(self, points: npt.ArrayLike, outside: Array) -> Array:
        """Sums over blocks, and the rest of each model by the embed_dim of its first block.

        Args:
            points: shape (models, depth, 5); int16, int32, int64 and float64 are read as they are.
            outside: shape (len(grid.embed_dim),).

        Returns:
            Shape (models,).

        Raises:
            OutsideGridError: a size beyond the ends of its axis, or NaN.
        """
        sizes = _sizes(points)
        assert sizes.ndim == 3, sizes.shape
        assert sizes.shape[1], "a model has blocks"
        out = np.empty(len(sizes))
        if (wrong := _models(*self._layout, np.append(outside, outside[-1:]), sizes, out)) >= 0:
            self._refuse(sizes.reshape(-1, len(AXES))[wrong])
        return out

    def _refuse(self, sizes: Sizes) -> NoReturn:
        for name, axis, size in zip(AXES, self.grid.axes, sizes.tolist(), strict=True):
            if not axis[0] <= size <= axis[-1]:
                raise OutsideGridError.of(name, size, axis[0], axis[-1], self.source)
        raise AssertionError(sizes)


def _sizes(points: npt.ArrayLike) -> Sizes:
    sizes = np.asarray(points)
    assert sizes.shape[-1:] == (len(AXES),), sizes.shape
    return np.ascontiguousarray(sizes, dtype=None if sizes.dtype in _AS_THEY_ARE else np.float64)


def interpolate(grid: Grid, values: Array, points: npt.ArrayLike, source: str = "the grid") -> Array:
    """One-off `Interpolator.blocks`."""
    return Interpolator(grid, values, source).blocks(points)
