"""One block's choices for one EMBED size: those that no other one beats, compiled.

Shapes: C choices of one block, R rungs (choices that are worth their time), V rungs on the upper hull.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_MOST_WAYS = 4096
"""Ways that one call of `combine` finds at most."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """A block's choices that are worth their time, from the fastest to the one that keeps most.

    Attributes:
        ms, kept: of each rung, both increasing; shape (R,).
        choice: which of the block's choices each rung is, shape (R,).
        hull: rungs on the upper hull of kept over ms, the first and the last among them; shape (V,).
    """

    ms: Array
    kept: Array
    choice: Indices
    hull: Indices


@numba.njit(cache=True, nogil=True)
def _rungs(order: Indices, ms: Array, kept: Array, out: Indices) -> int:
    """Fill `out` with the choices that no other one beats, fastest first; return how many.

    Args:
        order: sorts `ms`.
    """
    count, best = 0, -np.inf
    for choice in order:
        if kept[choice] <= best:
            continue
        best = kept[choice]
        if count and ms[out[count - 1]] == ms[choice]:  # of equals in time, the one that keeps the most
            count -= 1
        out[count] = choice
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _hull(ms: Array, kept: Array, out: Indices) -> int:
    """Fill `out` with the corners of the upper hull of kept over ms; return how many. Both increase."""
    count = 0
    for i in range(len(ms)):
        while count >= 2:
            a, b = out[count - 2], out[count - 1]
            if (kept[b] - kept[a]) * (ms[i] - ms[a]) > (kept[i] - kept[a]) * (ms[b] - ms[a]):
                break
            count -= 1
        out[count] = i
        count += 1
    return count


def ladder(order: Indices, ms: Array, kept: Array) -> Ladder:
    """
    Args:
        order: sorts `ms`; shape (C,).
        ms, kept: of every choice, shape (C,).
    """
    out = np.empty(len(order), dtype=np.int64)
    choice = out[: _rungs(order, ms, kept, out)].copy()
    ms, kept = ms[choice], kept[choice]
    return Ladder(ms, kept, choice, out[: _hull(ms, kept, out)].copy())


@numba.njit(cache=True, nogil=True)
def _combine(
    ms: Array,
    kept: Array,
    starts: Indices,
    price: float,
    least: float,
    before: float,
    tries: int,
    found: npt.NDArray[np.int32],
) -> tuple[int, bool]:
    """As `combine`, into `found`; (how many ways, whether these are all).

    Depth first over the blocks, least loss first. A way is left where it has lost too much, or where what the other
    blocks can still add makes it neither fast enough nor worth its time.
    """
    depth = len(starts) - 1
    loss = np.empty(len(ms))
    best = np.zeros(depth)
    for b in range(depth):
        best[b] = (kept[starts[b] : starts[b + 1]] - price * ms[starts[b] : starts[b + 1]]).max()
        for r in range(starts[b], starts[b + 1]):
            loss[r] = best[b] - (kept[r] - price * ms[r])
    top = best.sum()
    allowance = top + price * before - least
    near = np.empty(len(ms), dtype=np.int64)  # rungs within the allowance, block by block, least loss first
    first = np.zeros(depth + 1, dtype=np.int64)
    count = 0
    for b in range(depth):
        for r in range(starts[b], starts[b + 1]):
            if loss[r] <= allowance:
                near[count] = r
                count += 1
        first[b + 1] = count
        if count == first[b]:
            return 0, True
        own = near[first[b] : count].copy()
        near[first[b] : count] = own[np.argsort(loss[own])]
    fastest, slowest = np.zeros(depth + 1), np.zeros(depth + 1)  # of all blocks from b on
    for b in range(depth - 1, -1, -1):
        own_ms = ms[near[first[b] : first[b + 1]]]
        fastest[b], slowest[b] = fastest[b + 1] + own_ms.min(), slowest[b + 1] + own_ms.max()
    at = first[:-1].copy()
    spent, lost = np.zeros(depth + 1), np.zeros(depth + 1)
    b, ways = 0, 0
    while b >= 0:
        if at[b] == first[b + 1] or lost[b] + loss[near[at[b]]] > allowance:
            at[b] = first[b]
            b -= 1
            if b >= 0:
                at[b] += 1
            continue
        if tries == 0:
            return ways, False
        tries -= 1
        r = near[at[b]]
        spent[b + 1], lost[b + 1] = spent[b] + ms[r], lost[b] + loss[r]
        too_slow = spent[b + 1] + fastest[b + 1] >= before
        if too_slow or top + price * (spent[b + 1] + slowest[b + 1]) - lost[b + 1] <= least:
            at[b] += 1
        elif b + 1 < depth:
            b += 1
        else:
            if ways == len(found):
                return ways, False
            for other in range(depth):
                found[ways, other] = near[at[other]]
            ways += 1
            at[b] += 1
    return ways, True


def combine(
    ms: Array, kept: Array, starts: Indices, price: float, least: float, before: float, tries: int
) -> tuple[npt.NDArray[np.int32], bool]:
    """Every way to take one rung of each block that keeps more than `least` in less time than `before`.

    At a price for a millisecond, a rung loses what it falls short of its block's best by kept - price·ms. A way keeps

        Σ best + price·ms - Σ losses,

    so one that is of interest loses less than Σ best + price·before - least. That leaves few rungs a block where
    `least` is near what the relaxation keeps (reduced costs fix the rest; Dyer, Kayal & Walker 1984 for this knapsack).

    Args:
        ms, kept: of all blocks' rungs, one block after the other; block b's are starts[b] to starts[b + 1].
        price: any number from 0; the fewest rungs are left at the relaxation's slope at `before`.
        tries: rungs to look at before giving up.

    Returns:
        Rungs as indices of `ms`, shape (ways, blocks), and whether these are all.
    """
    found = np.empty((min(tries, _MOST_WAYS), len(starts) - 1), dtype=np.int32)
    ways, complete = _combine(ms, kept, starts, price, least, before, tries, found)
    return found[:ways], bool(complete)
