"""All choices of one EMBED size, and what of all EMBED sizes answers a budget.

Saliency adds up over units and latency over blocks, so with EMBED fixed the best sizes for a budget are a
multiple-choice knapsack: choose one (H, QK, V, MLP) per block, maximise the saliency kept, stay within the budget.
Each block's choices reduce to the upper hull of saliency kept over latency; walking all hulls' edges, steepest first,
solves the linear relaxation for every budget (Sinha & Zoltners 1979), and what that keeps bounds what anyone can.

Shapes: P planes, B blocks, A answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from search.budget import ROUNDING
from search.ladder import Array, Indices, Ladder, combine

TOLERANCE = 1e-4
"""Where an answer's bound lies farther above it than this share of all saliency, the ways in between are looked for."""

_TRIES = 20_000
"""Rungs to look at between two answers in one plane: a millisecond."""


@dataclass(frozen=True, slots=True)
class Plane:
    """All budgets for one EMBED size: the blocks' ladders, and the walk along their hulls' edges.

    Attributes:
        embed_dim: EMBED.
        outside_ms, outside_kept: of the part outside the blocks, and of EMBED's own units.
        ms, kept, choice: of all blocks' rungs, one block after the other.
        starts: block b's rungs are starts[b] to starts[b + 1]; shape (B + 1,).
        edge_block, edge_low, edge_high: block and rungs of every edge, steepest first.
        walk_ms, walk_kept: after so many whole edges, 0 to all.
    """

    embed_dim: int
    outside_ms: float
    outside_kept: float
    ms: Array
    kept: Array
    choice: Indices
    starts: Indices
    edge_block: Indices
    edge_low: Indices
    edge_high: Indices
    walk_ms: Array
    walk_kept: Array

    @classmethod
    def of(cls, embed_dim: int, outside_ms: float, outside_kept: float, ladders: Sequence[Ladder]) -> Self:
        starts = np.cumsum([0, *(len(ladder.ms) for ladder in ladders)])
        ms, kept = (np.concatenate([getattr(ladder, name) for ladder in ladders]) for name in ("ms", "kept"))
        hulls = [ladder.hull + start for ladder, start in zip(ladders, starts[:-1], strict=True)]
        block = np.concatenate([np.full(len(hull) - 1, index) for index, hull in enumerate(hulls)])
        low, high = np.concatenate([hull[:-1] for hull in hulls]), np.concatenate([hull[1:] for hull in hulls])
        order = np.argsort((kept[low] - kept[high]) / (ms[high] - ms[low]), kind="stable")
        block, low, high = block[order], low[order], high[order]
        return cls(
            embed_dim,
            outside_ms,
            outside_kept,
            ms,
            kept,
            np.concatenate([ladder.choice for ladder in ladders]),
            starts,
            block,
            low,
            high,
            outside_ms + ms[starts[:-1]].sum() + np.cumsum(np.append(0.0, ms[high] - ms[low])),
            outside_kept + kept[starts[:-1]].sum() + np.cumsum(np.append(0.0, kept[high] - kept[low])),
        )

    def bound(self, budgets_ms: Array) -> Array:
        """Saliency that the linear relaxation keeps below each budget; -inf where nothing is so fast."""
        reached = budgets_ms > self.walk_ms[0] * (1 + ROUNDING)
        return np.where(reached, np.interp(budgets_ms, self.walk_ms, self.walk_kept), -np.inf)

    def price(self, budget_ms: float) -> float:
        """Saliency for one more millisecond in the linear relaxation."""
        edge = int(np.searchsorted(self.walk_ms, budget_ms)) - 1
        if edge >= len(self.edge_block):
            return 0.0
        edge = max(edge, 0)
        return float((self.walk_kept[edge + 1] - self.walk_kept[edge]) / (self.walk_ms[edge + 1] - self.walk_ms[edge]))

    def steps(self) -> tuple[Array, Array, Indices, Indices]:
        """(ms, kept, edge, rung) of everything on the walk: whole edges, and of the next one each rung below it.

        More time never keeps less on one edge, nor does more of a later edge: an answer at every budget.
        """
        rungs = self.edge_high - self.edge_low
        edge = np.repeat(np.arange(len(rungs)), rungs)
        rung = np.arange(len(edge)) - np.repeat(np.cumsum(rungs) - rungs, rungs) + self.edge_low[edge] + 1
        ms = self.walk_ms[edge] + self.ms[rung] - self.ms[self.edge_low[edge]]
        kept = self.walk_kept[edge] + self.kept[rung] - self.kept[self.edge_low[edge]]
        return (
            np.append(self.walk_ms[0], ms),
            np.append(self.walk_kept[0], kept),
            np.append(0, edge),
            np.append(self.starts[0], rung),
        )

    def rungs(self, edge: Indices, rung: Indices) -> Indices:
        """The rung of every block, shape (A, B), when all edges before `edge` are taken and its block is at `rung`."""
        blocks = np.arange(len(self.starts) - 1)
        taken = np.cumsum(self.edge_block[:, None] == blocks, axis=0, dtype=np.int32)
        taken = np.concatenate([np.zeros((1, len(blocks)), np.int32), taken])[edge]
        found = np.empty(taken.shape, np.int64)
        for block in blocks.tolist():
            corners = np.append(self.starts[block], self.edge_high[self.edge_block == block])
            found[:, block] = corners[taken[:, block]]
        moved = np.searchsorted(self.starts, rung, side="right") - 1
        found[np.arange(len(rung)), moved] = rung
        return found


@dataclass(frozen=True, slots=True)
class Answers:
    """The best architecture for every budget, fastest first: each answers from its own latency to the next one's.

    Attributes:
        plane: index of its plane, shape (A,).
        rungs: of every block, as indices of the plane's, shape (A, B).
        ms, kept: increasing, shape (A,).
    """

    plane: Indices
    rungs: Indices
    ms: Array
    kept: Array

    @classmethod
    def of(cls, planes: Sequence[Plane], plane: Indices, rungs: Indices) -> Self:
        """Those of these that no other one beats."""
        ms, kept = np.empty(len(plane)), np.empty(len(plane))
        for index in np.unique(plane).tolist():
            own, at = planes[index], plane == index
            ms[at] = own.outside_ms + own.ms[rungs[at]].sum(axis=1)
            kept[at] = own.outside_kept + own.kept[rungs[at]].sum(axis=1)
        best = _unbeaten(ms, kept)
        return cls(plane[best], rungs[best], ms[best], kept[best])


def _unbeaten(ms: Array, kept: Array) -> Indices:
    """Those that nothing at most as slow keeps as much as; fastest first."""
    order = np.lexsort((-kept, ms))
    in_order = kept[order]
    return order[in_order > np.maximum.accumulate(np.append(-np.inf, in_order))[:-1]]


def answers(planes: Sequence[Plane], total: float) -> tuple[Answers, Array]:
    """What answers every budget, and what bounds it.

    The walks of all planes, and where they leave a gap every way that could be in it: a walk's answer that keeps k, up
    to the next one's ms, can only be beaten by ways that keep more than k in less than that (`combine`). Where all of
    them were looked at, the best of them is the optimum and its own bound.

    Args:
        total: all saliency, which TOLERANCE is a share of.

    Returns:
        The answers, and for each what no architecture faster than the next answer can keep more than, shape (A,).
    """
    found = _walks(planes)
    reached = np.stack([plane.bound(np.append(found.ms[1:], np.inf)) for plane in planes])
    known = np.full(len(found.ms), len(planes[0].starts) == 2)  # the walk of a single block passes all its rungs
    gaps = reached.max(axis=0) - found.kept
    plane, rungs = [found.plane], [found.rungs]
    for index in np.flatnonzero(~known[:-1] & (gaps[:-1] > TOLERANCE * total)).tolist():
        known[index], before = True, float(found.ms[index + 1])
        for at in np.flatnonzero(reached[:, index] > found.kept[index]).tolist():
            own = planes[at]
            more, complete = combine(
                own.ms[None],
                own.kept,
                own.starts,
                np.array([own.price(before)]),
                float(found.kept[index]) - own.outside_kept,
                np.array([before - own.outside_ms]),
                _TRIES,
            )
            known[index] &= complete
            more = more[_unbeaten(own.ms[more].sum(axis=1), own.kept[more].sum(axis=1))]
            plane.append(np.full(len(more), at))
            rungs.append(more.astype(np.int64))
    best = Answers.of(planes, np.concatenate(plane), np.concatenate(rungs))
    ends = np.append(best.ms[1:], np.inf)
    # An answer is the optimum where every stretch between the walks' answers that it answers for is known.
    unknown = np.append(0, np.cumsum(~known))
    low = np.searchsorted(found.ms, best.ms, side="right") - 1
    high = np.searchsorted(found.ms, ends, side="left")
    optimal = unknown[high] == unknown[np.maximum(low, 0)]
    bound = np.where(optimal, best.kept, np.max([plane.bound(ends) for plane in planes], axis=0))
    # What bounds a larger budget bounds a smaller one, too.
    return best, np.maximum(np.minimum.accumulate(bound[::-1])[::-1], best.kept)


def _walks(planes: Sequence[Plane]) -> Answers:
    steps = [plane.steps() for plane in planes]
    owner = np.repeat(np.arange(len(planes)), [len(ms) for ms, _, _, _ in steps])
    ms, kept, edge, rung = (np.concatenate(part) for part in zip(*steps, strict=True))
    best = _unbeaten(ms, kept)
    owner, edge, rung = owner[best], edge[best], rung[best]
    rungs = np.empty((len(best), len(planes[0].starts) - 1), np.int64)
    for index in np.unique(owner).tolist():
        at = owner == index
        rungs[at] = planes[index].rungs(edge[at], rung[at])
    return Answers.of(planes, owner, rungs)
