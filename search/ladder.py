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
def cheapest(ms: Array, kept: Array, prices: Array) -> int:
    """The choice with the most kept - prices·ms; shapes (T, C), (C,), (T,)."""
    found, most = 0, -np.inf
    for choice in range(len(kept)):
        worth = kept[choice]
        for target in range(len(prices)):
            worth -= prices[target] * ms[target, choice]
        if worth > most:
            found, most = choice, worth
    return found


@numba.njit(cache=True, nogil=True)
def undominated(ms: Array, kept: Array) -> npt.NDArray[np.bool_]:
    """Choices that no other one beats: as much kept in no more time on any target. Shapes (T, C), (C,) -> (C,)."""
    stays = np.ones(len(kept), dtype=np.bool_)
    for i in range(len(kept)):
        for j in range(len(kept)):
            if i == j or not stays[j] or kept[j] < kept[i]:
                continue
            no_slower = True
            for t in range(len(ms)):
                no_slower &= ms[t, j] <= ms[t, i]
            if no_slower:
                stays[i] = False
                break
    return stays


@numba.njit(cache=True, nogil=True)
def _combine(
    ms: Array,
    kept: Array,
    starts: Indices,
    prices: Array,
    least: float,
    before: Array,
    tries: int,
    found: npt.NDArray[np.int32],
) -> tuple[int, bool]:
    """As `combine`, into `found`; (how many ways, whether these are all).

    Depth first over the blocks, least loss first. A way is left where it has lost too much, or where what the other
    blocks can still add makes it neither fast enough nor worth its time.
    """
    targets, depth = len(ms), len(starts) - 1
    loss, top = np.empty(len(kept)), 0.0
    for b in range(depth):
        best = -np.inf
        for r in range(starts[b], starts[b + 1]):
            loss[r] = kept[r]
            for t in range(targets):
                loss[r] -= prices[t] * ms[t, r]
            best = max(best, loss[r])
        for r in range(starts[b], starts[b + 1]):
            loss[r] = best - loss[r]
        top += best
    allowance = top - least
    for t in range(targets):
        allowance += prices[t] * before[t]
    near = np.empty(len(kept), dtype=np.int64)  # rungs within the allowance, block by block, least loss first
    first = np.zeros(depth + 1, dtype=np.int64)
    for b in range(depth):
        count = first[b]
        for r in range(starts[b], starts[b + 1]):
            if loss[r] <= allowance:
                near[count] = r
                count += 1
        if count == first[b]:
            return 0, True
        own = near[first[b] : count].copy()
        near[first[b] : count] = own[np.argsort(loss[own])]
        first[b + 1] = count
    fastest, slowest = np.zeros((depth + 1, targets)), np.zeros((depth + 1, targets))  # of all blocks from b on
    for b in range(depth - 1, -1, -1):
        for t in range(targets):
            own_ms = ms[t][near[first[b] : first[b + 1]]]
            fastest[b, t], slowest[b, t] = fastest[b + 1, t] + own_ms.min(), slowest[b + 1, t] + own_ms.max()
    at = first[:-1].copy()
    spent, lost = np.zeros((depth + 1, targets)), np.zeros(depth + 1)
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
        lost[b + 1] = lost[b] + loss[r]
        fits, most = True, top - lost[b + 1]
        for t in range(targets):
            spent[b + 1, t] = spent[b, t] + ms[t, r]
            fits &= spent[b + 1, t] + fastest[b + 1, t] < before[t]
            most += prices[t] * min(spent[b + 1, t] + slowest[b + 1, t], before[t])
        if not fits or most <= least:
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
    ms: Array, kept: Array, starts: Indices, prices: Array, least: float, before: Array, tries: int
) -> tuple[npt.NDArray[np.int32], bool]:
    """Every way to take one rung of each block that keeps more than `least` in less time than `before`.

    At a price for a millisecond on each target, a rung loses what it falls short of its block's best by, in
    kept - price·ms. A way keeps

        Σ best + price·ms - Σ losses,

    so one that is of interest loses less than Σ best + price·before - least. That leaves few rungs a block where
    `least` is near what the relaxation keeps (reduced costs fix the rest; Dyer, Kayal & Walker 1984 for this knapsack).

    Args:
        ms: of all blocks' rungs, one block after the other, on each of T targets; shape (T, rungs).
        kept: shape (rungs,).
        starts: block b's rungs are starts[b] to starts[b + 1].
        prices: any numbers from 0, shape (T,); the relaxation's own leave the fewest rungs.
        before: shape (T,).
        tries: rungs to look at before giving up.

    Returns:
        Rungs as indices of `kept`, shape (ways, blocks), and whether these are all.
    """
    found = np.empty((min(tries, _MOST_WAYS), len(starts) - 1), dtype=np.int32)
    ways, complete = _combine(np.ascontiguousarray(ms), kept, starts, prices, least, before, tries, found)
    return found[:ways], bool(complete)
