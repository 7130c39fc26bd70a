"""Multilinear interpolation on the grid, compiled: the values of SciPy's RegularGridInterpolator, many times faster.

Linear, because latency nearly is, in each size.

Sizes of a grid are whole numbers, so every size between two of them lies in the cell of its whole part: the cell is
looked up, not searched.
"""

from itertools import accumulate, product

import numba
import numpy as np
import numpy.typing as npt

from latency.errors import OutsideGridError
from latency.grid import AXES, Grid

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.uint64]


@numba.njit(cache=True, nogil=True)
def _multilinear(
    bounds: Array,
    first: Indices,
    cells: npt.NDArray[np.uint32],
    low: Array,
    width: Array,
    offset: Indices,
    corners: Indices,
    values: Array,
    points: Array,
    out: Array,
) -> int:
    """Fill `out`; return -1, or 5 * point + axis of the first size that is outside the grid (or NaN).

    Indices are unsigned, so that no read has to ask whether its index counts from the end: a quarter of the time.

    Args:
        bounds: smallest and largest size of each axis, shape (5, 2).
        first: shape (5,); `cells[first[a] + s]` is the cell of the whole size s on axis a.
        cells: of every whole size, one axis after the other, counted on over the axes.
        low, width, offset: of every cell, its smallest size, its length and how far it lies into `values`.
        corners: shape (32,), how far the corners of a cell lie from its first, last axis fastest.
        values: flat.
        points: shape (P, 5).
        out: shape (P,).
    """
    weight = np.empty(5)
    folded = np.empty(16)
    for p in range(points.shape[0]):
        origin = np.uint64(0)
        for a in range(5):
            size = points[p, a]
            if not bounds[a, 0] <= size <= bounds[a, 1]:
                return 5 * p + a
            cell = cells[first[a] + np.uint64(size)]
            weight[a] = (size - low[cell]) / width[cell]  # divided, not multiplied by 1 / width: 1.0 at the end
            origin += offset[cell]
        # Fold the corners one axis at a time, first half with second half, as vectors; exact where a weight is 0 or 1.
        w = weight[0]
        for c in range(16):
            folded[c] = values[origin + corners[c]] * (1.0 - w) + values[origin + corners[c + 16]] * w
        for a in range(1, 5):
            w, half = weight[a], 16 >> a
            for c in range(half):
                folded[c] = folded[c] * (1.0 - w) + folded[c + half] * w
        out[p] = folded[0]
    return -1


class Interpolator:
    """Values on a grid, laid out once for any number of calls.

    Args:
        grid: the axes.
        values: shape `grid.shape`; copied.
        source: what was profiled, for the error.
    """

    def __init__(self, grid: Grid, values: Array, source: str = "the grid") -> None:
        self._axes, self._source = grid.axes, source
        # An axis of one size gets a second plane like the first, so that all axes have cells.
        for index, axis in enumerate(grid.axes):
            if len(axis) == 1:
                values = values.repeat(2, axis=index)
        values = np.array(values, np.float64, order="C")
        planes = [np.array(axis if len(axis) > 1 else (axis[0], axis[0] + 1)) for axis in grid.axes]
        strides = [stride // values.itemsize for stride in values.strides]
        counts = [len(axis) - 1 for axis in planes]
        cells = [
            start + np.searchsorted(axis[1:-1], np.arange(axis[0], axis[-1] + 1), side="right")
            for start, axis in zip(accumulate(counts, initial=0), planes, strict=False)
        ]
        offsets = [np.arange(0, n * step, step, dtype=np.uint64) for n, step in zip(counts, strides, strict=True)]
        starts = accumulate(map(len, cells), initial=0)
        self._layout = (
            np.array([(axis[0], axis[-1]) for axis in grid.axes], np.float64),
            # May be below zero, and is right again, as unsigned numbers are, once a size is added.
            np.array([start - axis[0] for start, axis in zip(starts, planes, strict=False)]).astype(np.uint64),
            np.concatenate(cells).astype(np.uint32),
            np.concatenate([axis[:-1] for axis in planes]).astype(np.float64),
            np.concatenate([np.diff(axis) for axis in planes]).astype(np.float64),
            np.concatenate(offsets),
            np.array([np.dot(corner, strides) for corner in product((0, 1), repeat=len(AXES))], np.uint64),
            values.ravel(),
        )

    def __call__(self, points: Array) -> Array:
        """
        Args:
            points: shape (..., 5).

        Returns:
            Shape (...,).

        Raises:
            OutsideGridError: a size beyond the ends of its axis, or NaN.
        """
        assert points.shape[-1] == len(AXES), points.shape
        flat = np.ascontiguousarray(points, dtype=np.float64).reshape(-1, len(AXES))
        out = np.empty(len(flat))
        if (wrong := _multilinear(*self._layout, flat, out)) >= 0:
            axis = self._axes[wrong % 5]
            raise OutsideGridError.of(AXES[wrong % 5], float(flat.flat[wrong]), axis[0], axis[-1], self._source)
        return out.reshape(points.shape[:-1])


def interpolate(grid: Grid, values: Array, points: Array, source: str = "the grid") -> Array:
    """`Interpolator(grid, values, source)(points)`; for more than one call, keep the interpolator."""
    return Interpolator(grid, values, source)(points)
