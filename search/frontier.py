"""Which sizes to keep for a latency budget: every budget at once, with a bound that certifies how good the answer is.

Saliency adds up over units, so with EMBED fixed the best sizes for a budget are a multiple-choice knapsack: choose one
(H, QK, V, MLP) per block, maximise the saliency kept, stay within the budget. Each block's choices reduce to the upper
hull of saliency kept over latency; walking all hulls' edges in order of slope solves the linear relaxation for every
budget (Sinha & Zoltners 1979). What the relaxation would keep bounds what anyone can; the walk's own answer uses the
rest of the budget for choices between the hull's corners. EMBED is searched by trying all its sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latency.estimate import LatencyModel, check_tokens, estimate
from search.budget import ROUNDING, check_budget
from search.errors import BudgetError
from search.saliency import Saliency
from vit.architecture import BLOCK_UNITS, SIZE_FIELD, Architecture, BlockShape, Unit
from vit.groups import EMBED, Group, resize

Array = npt.NDArray[np.float64]

DEFAULT_MULTIPLES: Mapping[Unit, int] = {
    Unit.EMBED: 8,
    Unit.HEAD: 1,
    Unit.QK: 8,
    Unit.V: 8,
    Unit.MLP: 8,
}
"""Sizes are cut in steps of this many units; hardware likes multiples of 8 channels."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer to one budget.

    Attributes:
        arch: the architecture to cut to.
        latency_ms: its estimated latency (millions of MACs on the target `macs`).
        budget_ms: what was asked for.
        kept: share of the model's saliency that stays, from 0 to 1.
        bound: no architecture within the budget keeps a larger share (linear-programming bound, for saliency that
            adds up and sizes in the same steps); None from a method that has none.
    """

    arch: Architecture
    latency_ms: float
    budget_ms: float
    kept: float
    bound: float | None

    @property
    def gap(self) -> float | None:
        """How much better the best architecture can be at most, in share of saliency."""
        return None if self.bound is None else max(self.bound - self.kept, 0.0)

    def sizes(self) -> dict[Group, int]:
        sizes = {EMBED: self.arch.embed_dim}
        for index, shape in enumerate(self.arch.blocks):
            sizes |= {Group(unit, index): shape.size(unit) for unit in BLOCK_UNITS}
        return sizes


@dataclass(frozen=True, slots=True)
class _Ladder:
    """One block's choices that are worth their time, from the fastest to the one that keeps most.

    Attributes:
        ms, kept: increasing.
        sizes: (H, QK, V, MLP) of each rung.
        hull: rungs on the upper hull of kept over ms, the first and the last among them.
    """

    ms: Array
    kept: Array
    sizes: npt.NDArray[np.int64]
    hull: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Plane:
    """All budgets for one EMBED size: the blocks' ladders and their hulls' edges in order of slope.

    Attributes:
        ms, kept: of the smallest sizes, the part outside the blocks included.
        edge_block, edge_ms, edge_kept: one entry an edge, steepest first.
    """

    embed_dim: int
    ladders: tuple[_Ladder, ...]
    ms: float
    kept: float
    edge_block: npt.NDArray[np.int64]
    edge_ms: Array
    edge_kept: Array

    def bound(self, budget_ms: float) -> float:
        """Saliency kept by the linear relaxation."""
        taken = np.searchsorted(np.cumsum(self.edge_ms), budget_ms - self.ms, side="right")
        kept = self.kept + float(self.edge_kept[:taken].sum())
        if taken < len(self.edge_ms):
            rest = budget_ms - self.ms - float(self.edge_ms[:taken].sum())
            kept += float(self.edge_kept[taken] * rest / self.edge_ms[taken])
        return kept

    def solve(self, budget_ms: float) -> tuple[float, list[int]]:
        """(saliency kept, rung of each block's ladder): the better of two walks along the edges, steepest first.

        More budget never keeps less. Both walks take the same whole edges up to the first one that is too long; with
        more budget that edge is either taken whole, and nothing that comes instead is as steep, or met with more left.
        """
        return max(self._part_of_an_edge(budget_ms), self._skip_long_edges(budget_ms), key=lambda walk: walk[0])

    def _skip_long_edges(self, budget_ms: float) -> tuple[float, list[int]]:
        """A block rests at the first edge that is too long; the others go on."""
        spent, kept = self.ms, self.kept
        vertex = [0] * len(self.ladders)
        resting: set[int] = set()
        edges = zip(self.edge_block.tolist(), self.edge_ms.tolist(), self.edge_kept.tolist(), strict=True)
        for block, ms, gain in edges:
            if block in resting:
                continue
            if spent + ms <= budget_ms:
                spent, kept = spent + ms, kept + gain
                vertex[block] += 1
            else:
                resting.add(block)
                if len(resting) == len(vertex):
                    break
        return kept, self._rungs(vertex)

    def _part_of_an_edge(self, budget_ms: float) -> tuple[float, list[int]]:
        """Whole edges up to the first one that is too long; of that one, the rungs below it that still fit."""
        taken = int(np.searchsorted(np.cumsum(self.edge_ms), budget_ms - self.ms, side="right"))
        rungs = self._rungs(np.bincount(self.edge_block[:taken], minlength=len(self.ladders)).tolist())
        kept = self.kept + float(self.edge_kept[:taken].sum())
        if taken < len(self.edge_ms):
            block = int(self.edge_block[taken])
            ladder, start = self.ladders[block], rungs[block]
            rest = budget_ms - self.ms - float(self.edge_ms[:taken].sum())
            rungs[block] = max(int(np.searchsorted(ladder.ms, ladder.ms[start] + rest, side="right")) - 1, start)
            kept += float(ladder.kept[rungs[block]] - ladder.kept[start])
        return kept, rungs

    def _rungs(self, vertex: Sequence[int]) -> list[int]:
        return [int(ladder.hull[at]) for ladder, at in zip(self.ladders, vertex, strict=True)]


@dataclass(frozen=True, slots=True)
class _Answer:
    """Saliency kept, the EMBED size, and the rung of each block's ladder."""

    kept: float
    plane: _Plane
    rungs: Sequence[int]


def sizes_to_try(largest: int, step: int, bounds: tuple[int, int]) -> list[int]:
    """Multiples of `step` within the bounds that were profiled, and `largest` itself."""
    low, high = bounds
    sizes = set(range(step, largest, step)) | {largest}
    return sorted(s for s in sizes if low <= s <= min(high, largest))


class Frontier:
    """Best architectures for every budget, for one saliency and one target.

    Attributes:
        full_ms: latency of the uncut model.
        smallest_ms: latency below which nothing can be promised.
    """

    def __init__(
        self,
        saliency: Saliency,
        latency: LatencyModel,
        multiples: Mapping[Unit, int] | None = None,
    ) -> None:
        """Build all hulls (the slow part; queries are fast).

        Args:
            multiples: step of the sizes per unit, DEFAULT_MULTIPLES where not named.

        Raises:
            TargetError: the table was made for another number of tokens.
            OutsideGridError: the table does not cover the uncut model.
            BudgetError: the table covers no size that the model could be cut to.
        """
        check_tokens(latency, saliency.arch)
        self.saliency, self.latency = saliency, latency
        self._multiples = {**DEFAULT_MULTIPLES, **(multiples or {})}
        self._planes = self._build()
        self.full_ms = estimate(latency, saliency.arch).latency_ms
        fastest = min(self._planes, key=lambda plane: plane.ms)
        self._fastest = _Answer(fastest.kept, fastest, [0] * saliency.arch.depth)
        self.smallest_ms = self._ms(self._fastest)

    def best(self, budget_ms: float) -> Choice:
        """The architecture that keeps the most saliency within a budget.

        Raises:
            BudgetError: below the smallest architecture, or not below the whole model.
        """
        check_budget(self.latency, budget_ms, self.smallest_ms, self.full_ms)
        total = self.saliency.total or 1.0
        bound, answer = self._solve(budget_ms * (1 + ROUNDING))
        if self._ms(answer) > budget_ms:
            _, answer = self._solve(budget_ms * (1 - ROUNDING))
        return Choice(
            arch=self._architecture(answer),
            latency_ms=self._ms(answer),
            budget_ms=budget_ms,
            kept=min(answer.kept / total, 1.0),
            bound=min(max(bound, answer.kept) / total, 1.0),
        )

    def _solve(self, budget_ms: float) -> tuple[float, _Answer]:
        """(bound, best answer) over all EMBED sizes."""
        affordable = [plane for plane in self._planes if plane.ms <= budget_ms]
        bounds = [plane.bound(budget_ms) for plane in affordable]
        best = self._fastest
        # Planes in order of their bound: the first ones to fall short of the best answer so far end the search.
        for index in np.argsort(bounds)[::-1]:
            if bounds[index] <= best.kept:
                break
            kept, rungs = affordable[index].solve(budget_ms)
            if kept > best.kept:
                best = _Answer(kept, affordable[index], rungs)
        return max(bounds, default=best.kept), best

    def _ms(self, answer: _Answer) -> float:
        return estimate(self.latency, self._architecture(answer)).latency_ms

    def _architecture(self, answer: _Answer) -> Architecture:
        sizes = {EMBED: answer.plane.embed_dim}
        for index, (ladder, rung) in enumerate(zip(answer.plane.ladders, answer.rungs, strict=True)):
            for unit, count in zip(BLOCK_UNITS, ladder.sizes[rung].tolist(), strict=True):
                sizes[Group(unit, index)] = count
        return resize(self.saliency.arch, sizes)

    def _build(self) -> list[_Plane]:
        arch, bounds = self.saliency.arch, self.latency.bounds
        embeds = sizes_to_try(arch.embed_dim, self._multiples[Unit.EMBED], bounds["embed_dim"])
        choices = {shape: self._choices(shape) for shape in set(arch.blocks)}
        if not embeds or not all(len(sizes) for sizes in choices.values()):
            raise BudgetError(
                f"{self.latency.target.slug} covers no size that this model could be cut to "
                f"({', '.join(f'{n} {low} to {high}' for n, (low, high) in bounds.items())}); profile a grid for it"
            )
        kept_embed = self.saliency.kept(EMBED)
        kept_block = [self._kept(index, choices[shape]) for index, shape in enumerate(arch.blocks)]
        planes = []
        for embed in embeds:
            outside = float(self.latency.outside_times(embed))
            ms = {
                shape: self.latency.block_times(np.insert(sizes, 0, embed, axis=1)) for shape, sizes in choices.items()
            }
            order = {shape: np.argsort(times) for shape, times in ms.items()}  # the slow part, once a shape
            ladders = tuple(
                _ladder(order[shape], ms[shape], kept_block[index], choices[shape])
                for index, shape in enumerate(arch.blocks)
            )
            planes.append(_plane(embed, ladders, outside, float(kept_embed[embed])))
        return planes

    def _choices(self, shape: BlockShape) -> npt.NDArray[np.int64]:
        """Every (H, QK, V, MLP) that a block of this shape can be cut to, shape (choices, 4)."""
        axes = [
            sizes_to_try(shape.size(unit), self._multiples[unit], self.latency.bounds[SIZE_FIELD[unit]])
            for unit in BLOCK_UNITS
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(BLOCK_UNITS))

    def _kept(self, index: int, sizes: npt.NDArray[np.int64]) -> Array:
        """Saliency kept by each choice of one block."""
        kept = np.zeros(len(sizes))
        for column, unit in enumerate(BLOCK_UNITS):
            kept += self.saliency.kept(Group(unit, index))[sizes[:, column]]
        return kept


def _ladder(order: npt.NDArray[np.int64], ms: Array, kept: Array, sizes: npt.NDArray[np.int64]) -> _Ladder:
    """The choices that no other one beats in both ms and saliency kept, and their upper hull; `order` sorts `ms`."""
    in_order = kept[order]
    order = order[np.concatenate([[True], in_order[1:] > np.maximum.accumulate(in_order)[:-1]])]
    last_of_equals = np.append(ms[order[1:]] > ms[order[:-1]], True)  # it keeps the most of them
    order = order[last_of_equals]
    ms, kept, sizes = ms[order], kept[order], sizes[order]
    stack: list[int] = []
    xs, ys = ms.tolist(), kept.tolist()
    for i in range(len(xs)):
        while len(stack) >= 2:
            a, b = stack[-2], stack[-1]
            if (ys[b] - ys[a]) * (xs[i] - xs[a]) > (ys[i] - ys[a]) * (xs[b] - xs[a]):
                break
            stack.pop()
        stack.append(i)
    return _Ladder(ms, kept, sizes, np.array(stack, dtype=np.int64))


def _plane(embed_dim: int, ladders: tuple[_Ladder, ...], outside_ms: float, kept: float) -> _Plane:
    edge_block = np.concatenate([np.full(len(ladder.hull) - 1, index) for index, ladder in enumerate(ladders)])
    edge_ms = np.concatenate([np.diff(ladder.ms[ladder.hull]) for ladder in ladders])
    edge_kept = np.concatenate([np.diff(ladder.kept[ladder.hull]) for ladder in ladders])
    order = np.argsort(-edge_kept / edge_ms, kind="stable")
    return _Plane(
        embed_dim,
        ladders,
        outside_ms + sum(float(ladder.ms[0]) for ladder in ladders),
        kept + sum(float(ladder.kept[0]) for ladder in ladders),
        edge_block[order].astype(np.int64),
        edge_ms[order],
        edge_kept[order],
    )


def frontier_choice(
    saliency: Saliency,
    latency: LatencyModel,
    budget_ms: float,
    multiples: Mapping[Unit, int] | None = None,
) -> Choice:
    """One budget of a frontier that is not kept."""
    return Frontier(saliency, latency, multiples).best(budget_ms)
