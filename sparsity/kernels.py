"""The two loops that take the time on CPUs, compiled: inverting small blocks, and greedy elimination inside a block.

Both do what `inverse.py` and `obs.py` say in torch, and are tested against the same slow truths. A block's rows fit a
core's cache; blocks are independent, so that cores share them. n blocks of size B.
"""

from threading import Thread
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

_launch = Thread(target=numba.get_num_threads)
_launch.start()
_launch.join()
"""Numba's start sets OpenMP's number of threads and allows nested ones, for the thread that it happens in. Where torch
works in that thread, MKL's batched solvers fail or hang from then on."""


def as_many_threads_as_torch() -> None:
    """For the kernels that this thread runs next."""
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(torch.get_num_threads(), most))


_FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, so that they run in vectors; NaN and infinity keep their meaning."""


@numba.njit(fastmath=_FAST, cache=True, error_model="numpy", inline="always")
def _subtract(row: Array, rows: Array, factors: Array, count: int, start: int, stop: int) -> None:
    """row[start:stop] -= Σ_k factors[k] rows[k, start:stop], eight k at a time: loaded and stored once for all."""
    first, end = np.uint64(start), np.uint64(stop)  # signed, an index might count from the end: no vectors then
    k = 0
    while k + 8 <= count:
        f0, f1, f2, f3 = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        f4, f5, f6, f7 = factors[k + 4], factors[k + 5], factors[k + 6], factors[k + 7]
        for j in range(first, end):
            row[j] -= (
                f0 * rows[k, j]
                + f1 * rows[k + 1, j]
                + f2 * rows[k + 2, j]
                + f3 * rows[k + 3, j]
                + f4 * rows[k + 4, j]
                + f5 * rows[k + 5, j]
                + f6 * rows[k + 6, j]
                + f7 * rows[k + 7, j]
            )
        k += 8
    while k < count:
        factor = factors[k]
        for j in range(first, end):
            row[j] -= factor * rows[k, j]
        k += 1


@numba.njit(cache=True, inline="always")
def _whole_vectors(i: int, size: int) -> tuple[int, int]:
    """Where row i of an upper triangle starts, and of a lower one ends, so that no vector is cut. What is computed
    beyond the diagonal is never read in the one, and zero in the other."""
    return i & -8, min((i & -8) + 8, size)


@numba.njit(fastmath=_FAST, cache=True, error_model="numpy", inline="always")
def _invert_root(block: Array, made: Array, factors: Array, diagonal: Array, worst: float) -> float:
    """L⁻¹ of L Lᵀ, whose upper triangle `block` holds and loses, in `made`; the smallest of `worst` and its pivots over
    `diagonal`."""
    size = block.shape[0]
    for i in range(size):  # rows of Lᵀ, in the upper triangle
        start, stop = _whole_vectors(i, size)
        for k in range(i):
            factors[k] = block[k, i]
        _subtract(block[i], block, factors, i, start, size)
        pivot = block[i, i]
        ratio = pivot / diagonal[i]
        if not ratio >= worst:
            worst = ratio
        scale = 1 / np.sqrt(pivot)
        for j in range(np.uint64(start), np.uint64(size)):
            block[i, j] *= scale
        # Row i of the inverse: (e_i - Σ_k<i L_ik M_k) / L_ii.
        _subtract(made[i], made, factors, i, 0, stop)
        for j in range(stop):
            made[i, j] *= scale
        made[i, i] = scale
    return worst


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def inverse_root(blocks: Array, diagonal: Array, first: int, worst: Array) -> None:
    """M = L⁻¹ of symmetric positive definite blocks A = L Lᵀ, in their place: lower triangles, zero above.

    Args:
        blocks: shape (n, S, S).
        diagonal: shape (n, B) of the matrices that the blocks are the rest of; `first` is where theirs begins.
        worst: shape (n,); lowered to the smallest pivot over its diagonal; at most zero: not positive definite.
    """
    size = blocks.shape[1]
    for b in numba.prange(blocks.shape[0]):
        made = np.zeros((size, size), blocks.dtype)
        factors = np.empty(size, blocks.dtype)
        worst[b] = _invert_root(blocks[b], made, factors, diagonal[b, first : first + size], worst[b])
        blocks[b] = made


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def inverse(blocks: Array, scale: float, damp: Array, trusted: float, worst: Array) -> None:
    """(scale · A + damp · I)⁻¹ = Mᵀ M of symmetric blocks A, M = L⁻¹, in their place: all within a core's cache.

    Args:
        blocks: shape (n, B, B). Those with a pivot that is not above `trusted` of its diagonal stay as they are.
        damp: shape (n,).
        worst: shape (n,), becomes the smallest pivot over its diagonal; at most zero: not positive definite.
    """
    size = blocks.shape[1]
    for b in numba.prange(blocks.shape[0]):
        block, zero = blocks[b], blocks.dtype.type(0)
        work, made = np.empty_like(block), np.zeros_like(block)
        factors, diagonal = np.empty(size, block.dtype), np.empty(size, block.dtype)
        for i in range(size):
            for j in range(np.uint64(i & -8), np.uint64(size)):
                work[i, j] = block[i, j] * scale
            work[i, i] += damp[b]
            diagonal[i] = work[i, i]
        worst[b] = _invert_root(work, made, factors, diagonal, worst[b])
        if not worst[b] > trusted:
            continue
        for i in range(size):
            stop = _whole_vectors(i, size)[1]
            for k in range(i, size):
                factors[k - i] = -made[k, i]
            for j in range(stop):
                block[i, j] = zero
            _subtract(block[i], made[i:], factors, size - i, 0, stop)
        for i in range(size):
            for j in range(i):
                block[j, i] = block[i, j]


@numba.njit(parallel=True, fastmath=_FAST | {"nnan"}, cache=True, error_model="numpy")
def eliminate(
    inverse: Array,
    weights: Array,
    variance: Array,
    least: Array,
    closed: Array,
    room: Array,
    order: Array,
    coefficient: Array,
    gain: Array,
    count: Array,
    until: Array,
) -> None:
    """Remove weights one by one, those that raise the loss least first, until each block has lost `until`.

    Greedy OBS is a pivoted Cholesky factorisation of the inverse Fisher block with the pivot rule w²/d: left-looking,
    so that a row of the inverse is touched only when its weight goes, and then holds the factor's column for good.
    Everything is updated in place, and a block can be gone on with.

    Args:
        inverse: shape (n, B, B); row p becomes the Cholesky column of the step in which p went.
        weights: shape (n, B); the weights that remain, re-tuned. Removed ones are zero.
        variance: shape (n, B); the diagonal of the inverse, given what is removed.
        least: shape (n, B); what no variance falls below: one over the diagonal of the Fisher block.
        closed: shape (n, B); infinity where a weight may not go (any more), else zero.
        room: shape (n, G); how many weights may still go of each of G groups of B/G neighbours.
        order: shape (n, B); which weight went in each step.
        coefficient: shape (n, B); w_p / √d_p of each step.
        gain: shape (n, B); what each step adds to the loss, infinity where there was none.
        count, until: shape (n,); steps made, and to be made.
    """
    size = inverse.shape[1]
    per_group = size // room.shape[1]
    for b in numba.prange(inverse.shape[0]):
        rows, w, d, shut = inverse[b], weights[b], variance[b], closed[b]
        column, which, bound = coefficient[b], order[b], least[b]
        loss = np.full((size + 7) & -8, np.inf, w.dtype)
        k = count[b]
        while k < until[b]:
            for i in range(size):
                loss[i] = w[i] * w[i] / d[i] + shut[i]
            m0, m1, m2, m3, m4, m5, m6, m7 = loss[0], loss[1], loss[2], loss[3], loss[4], loss[5], loss[6], loss[7]
            for i in range(8, len(loss), 8):  # eight at a time: none waits for the one before
                m0, m1, m2, m3 = min(m0, loss[i]), min(m1, loss[i + 1]), min(m2, loss[i + 2]), min(m3, loss[i + 3])
                m4, m5, m6, m7 = min(m4, loss[i + 4]), min(m5, loss[i + 5]), min(m6, loss[i + 6]), min(m7, loss[i + 7])
            best = min(min(min(m0, m1), min(m2, m3)), min(min(m4, m5), min(m6, m7)))
            if best == np.inf:
                break
            p = 0
            while loss[p] != best:
                p += 1
            row = rows[p]
            j = 0
            while j + 8 <= k:
                r0, r1, r2, r3 = rows[which[j]], rows[which[j + 1]], rows[which[j + 2]], rows[which[j + 3]]
                r4, r5, r6, r7 = rows[which[j + 4]], rows[which[j + 5]], rows[which[j + 6]], rows[which[j + 7]]
                c0, c1, c2, c3, c4, c5, c6, c7 = r0[p], r1[p], r2[p], r3[p], r4[p], r5[p], r6[p], r7[p]
                for i in range(size):
                    row[i] -= (
                        c0 * r0[i]
                        + c1 * r1[i]
                        + c2 * r2[i]
                        + c3 * r3[i]
                        + c4 * r4[i]
                        + c5 * r5[i]
                        + c6 * r6[i]
                        + c7 * r7[i]
                    )
                j += 8
            while j < k:
                r0 = rows[which[j]]
                c0 = r0[p]
                for i in range(size):
                    row[i] -= c0 * r0[i]
                j += 1
            for j in range(k):
                row[which[j]] = 0
            scale = 1 / np.sqrt(max(row[p], bound[p]))
            c = w[p] * scale
            for i in range(size):
                row[i] *= scale
                w[i] -= c * row[i]
                d[i] = max(d[i] - row[i] * row[i], bound[i])
            w[p] = 0
            shut[p] = np.inf
            group = p // per_group
            room[b, group] -= 1
            if room[b, group] == 0:
                for i in range(group * per_group, (group + 1) * per_group):
                    shut[i] = np.inf
            which[k] = p
            column[k] = c
            gain[b, k] = 0.5 * c * c
            k += 1
        count[b] = k


@numba.njit(parallel=True, fastmath=_FAST, cache=True, error_model="numpy")
def restore(factors: Array, order: Array, coefficient: Array, count: Array, weights: Array) -> None:
    """The weights after the first `count` steps of `eliminate`, from those before the first: in place.

        w' = w - Σ_k c_k L_k

    Args:
        factors: what `eliminate` left of the inverse, shape (n, B, B).
        order, coefficient: its steps, shape (n, B).
        count: shape (n,).
        weights: shape (n, B).
    """
    size = factors.shape[1]
    for b in numba.prange(factors.shape[0]):
        w = weights[b]
        for k in range(count[b]):
            row, c = factors[b, order[b, k]], coefficient[b, k]
            for i in range(size):
                w[i] -= c * row[i]
        for k in range(count[b]):
            w[order[b, k]] = 0
