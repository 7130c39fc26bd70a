"""Multilinear interpolation on the grid, compiled: the values of SciPy's RegularGridInterpolator, many times faster.

Linear, because latency nearly is, in each size.
"""

import numba
import numpy as np
import numpy.typing as npt

from latency.errors import OutsideGridError
from latency.grid import AXES, Grid

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def _multilinear(axes: Array, lengths: Ints, strides: Ints, values: Array, points: Array, out: Array) -> int:
    """Fill `out`; return -1, or 5 * point + axis of the first size that is outside the grid (or NaN).

    `axes` holds the axes one after the other; `points` has shape (P, 5).
    """
    weight = np.empty(5)
    step = np.empty(5, np.int64)
    corner = np.empty(16)
    for p in range(points.shape[0]):
        first, origin = 0, 0
        for a in range(5):
            size, last = points[p, a], first + lengths[a] - 1
            if not axes[first] <= size <= axes[last]:
                return 5 * p + a
            i = first
            while i < last - 1 and size >= axes[i + 1]:
                i += 1
            step[a], weight[a] = 0, 0.0
            if last > first:
                step[a], weight[a] = strides[a], (size - axes[i]) / (axes[i + 1] - axes[i])
            origin += (i - first) * strides[a]
            first = last + 1
        # Fold the cell's 32 corners one axis at a time; exact where a weight is 0 or 1.
        c = 0
        for i0 in range(2):
            for i1 in range(2):
                for i2 in range(2):
                    for i3 in range(2):
                        at = origin + i0 * step[0] + i1 * step[1] + i2 * step[2] + i3 * step[3]
                        corner[c] = values[at] * (1.0 - weight[4]) + values[at + step[4]] * weight[4]
                        c += 1
        for a in range(3, -1, -1):
            for c in range(1 << a):
                corner[c] = corner[2 * c] * (1.0 - weight[a]) + corner[2 * c + 1] * weight[a]
        out[p] = corner[0]
    return -1


def interpolate(grid: Grid, values: Array, points: Array, source: str = "the grid") -> Array:
    """
    Args:
        grid: the axes.
        values: shape `grid.shape`.
        points: shape (..., 5).
        source: what was profiled, for the error.

    Returns:
        Shape (...,).

    Raises:
        OutsideGridError: a size beyond the ends of its axis, or NaN.
    """
    assert points.shape[-1] == len(AXES), points.shape
    values = np.ascontiguousarray(values)
    flat = np.ascontiguousarray(points, dtype=np.float64).reshape(-1, len(AXES))
    out = np.empty(len(flat))
    strides = np.array(values.strides, np.int64) // values.itemsize
    axes = np.concatenate([np.array(axis, np.float64) for axis in grid.axes])
    lengths = np.array(grid.shape, np.int64)
    if (wrong := _multilinear(axes, lengths, strides, values.ravel(), flat, out)) >= 0:
        axis = grid.axes[wrong % 5]
        raise OutsideGridError.of(AXES[wrong % 5], float(flat.flat[wrong]), axis[0], axis[-1], source)
    return out.reshape(points.shape[:-1])
