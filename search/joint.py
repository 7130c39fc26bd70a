"""One architecture within a budget on each of several targets.

With EMBED fixed this is a multiple-choice knapsack with T budgets B_t. For prices λ_t >= 0 of a millisecond,

    D(λ) = Σ_blocks max_c (kept_c - Σ_t λ_t ms_tc) + Σ_t λ_t B_t

bounds what any architecture within all budgets keeps. Proof: whatever its choices, Σ kept <= Σ_blocks max_c (kept_c -
Σ_t λ_t ms_tc) + Σ_t λ_t ms_t, and ms_t <= B_t (weak Lagrangian duality; Geoffrion 1974). The smallest D is the bound of
the linear relaxation, and with one target that of the frontier. D is convex and piecewise linear; its minimum is found
by cutting planes (Kelley 1960): every λ that is tried gives an architecture, and every architecture a cut. EMBED sizes
whose bound is no better than an answer at hand are left out (branch and bound).

The answer is the best of the architectures on the way that meet all budgets, improved by all changes of its sizes that
the bound leaves room for (`search.ladder.combine`).

Shapes: T targets, C choices of one block.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from latency.estimate import LatencyModel, check_tokens, estimate
from search.budget import ROUNDING, check_budget
from search.choices import Array, Choices, architecture_of
from search.constraints import Constraints
from search.errors import BudgetError
from search.frontier import Choice, Frontier
from search.saliency import Saliency
from vit.architecture import Architecture

_CUTS = 60
"""Prices to try in one EMBED size; two targets take about fifteen."""

_ENOUGH = 1e-6
"""Share of the saliency that a bound may be above the relaxation's."""

_HIGHEST_PRICE = 1e6
"""Saliency for a whole budget, in multiples of all there is."""

_RUNGS, _TRIES, _ROUNDS = 2_000, 1_000_000, 5
"""Choices of one block that are combined to improve an answer, ways to look at, and how often."""


@dataclass(frozen=True, slots=True)
class JointChoice:
    """The answer to a budget on each of several targets.

    Attributes:
        arch: the architecture to cut to.
        latency_ms, budget_ms: on each target, in the order of the question.
        kept: share of the model's saliency that stays, from 0 to 1.
        bound: no architecture within all budgets keeps a larger share (for saliency that adds up and the same
            constraints).
    """

    arch: Architecture
    latency_ms: tuple[float, ...]
    budget_ms: tuple[float, ...]
    kept: float
    bound: float

    @classmethod
    def of(cls, choice: Choice) -> Self:
        """A frontier's answer, which is for one target."""
        assert choice.bound is not None
        return cls(choice.arch, (choice.latency_ms,), (choice.budget_ms,), choice.kept, choice.bound)

    @property
    def gap(self) -> float:
        """How much better the best architecture can be at most, in share of saliency."""
        return max(self.bound - self.kept, 0.0)


def joint_choice(
    saliency: Saliency,
    budgets: Sequence[tuple[LatencyModel, float]],
    constraints: Constraints | None = None,
) -> JointChoice:
    """The architecture that keeps the most saliency within every budget.

    A budget that the whole model meets binds nothing; if all are such, nothing needs a search. A single target is
    answered by its Frontier.

    Raises:
        ConstraintError: constraints that the model cannot meet.
        TargetError: a table was made for another number of tokens.
        OutsideGridError: a table does not cover the uncut model.
        BudgetError: a budget that nothing meets on its target, budgets that nothing was found to meet together, or none
            that needs a search.
    """
    if not budgets:
        raise BudgetError("a search needs at least one target with its budget")
    constraints = constraints or Constraints()
    if len(budgets) == 1:
        ((latency, budget_ms),) = budgets
        return JointChoice.of(Frontier(saliency, latency, constraints).best(budget_ms))
    search = _Search(saliency, budgets, constraints)
    # Sums in another order differ in the last bits: an answer that an estimate finds too slow is looked for again.
    for rounding in (ROUNDING, -ROUNDING):
        found, bound = search.solve(rounding)
        arch = architecture_of(saliency.arch, found.sizes)
        latency_ms = tuple(estimate(latency, arch).latency_ms for latency, _ in budgets)
        if all(ms <= budget_ms for ms, (_, budget_ms) in zip(latency_ms, budgets, strict=True)):
            break
    total = saliency.total or 1.0
    kept = min(found.kept / total, 1.0)
    return JointChoice(arch, latency_ms, tuple(ms for _, ms in budgets), kept, max(min(bound / total, 1.0), kept))


@dataclass(frozen=True, slots=True)
class _Found:
    """An architecture that meets all budgets: what it keeps, and its row of `Choices.sizes`."""

    kept: float
    sizes: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Plane:
    """One EMBED size.

    Attributes:
        kept_embed: saliency of EMBED that stays.
        ms: of the choices of each shape, (T, C).
        left_ms: what the budgets leave for the blocks, shape (T,).
    """

    embed_dim: int
    kept_embed: float
    ms: Sequence[Array]
    left_ms: Array


def _kept(found: _Found | None) -> float:
    """What has to be surpassed; as long as nothing was found, everything surpasses it."""
    return -1.0 if found is None else found.kept


class _Search:
    """One question: its choices, its targets and their budgets."""

    def __init__(
        self, saliency: Saliency, budgets: Sequence[tuple[LatencyModel, float]], constraints: Constraints
    ) -> None:
        self.arch, self.constraints, self.total = saliency.arch, constraints, saliency.total or 1.0
        self.latencies = [latency for latency, _ in budgets]
        self.budget_ms = np.array([budget_ms for _, budget_ms in budgets])
        for latency in self.latencies:
            check_tokens(latency, self.arch)
        covered = [latency.bounds for latency in self.latencies]
        bounds = {axis: (max(b[axis][0] for b in covered), min(b[axis][1] for b in covered)) for axis in covered[0]}
        self.names = " and ".join(latency.target.slug for latency in self.latencies)
        self.choices = Choices.of(saliency, bounds, constraints, self.names)
        full_ms = np.array([estimate(latency, self.arch).latency_ms for latency in self.latencies])
        self._check(np.zeros(len(budgets)))
        if (self.budget_ms > full_ms * (1 + ROUNDING)).all():
            each = ", ".join(f"{ms:.4g} on {own.target.slug}" for ms, own in zip(full_ms, self.latencies, strict=True))
            raise BudgetError(f"the whole model is within all budgets ({each}), so it needs no search; ask for less")

    def _check(self, low: Array) -> None:
        """Of each budget alone: a positive number, not below what its target can do."""
        for latency, budget, least in zip(self.latencies, self.budget_ms.tolist(), low.tolist(), strict=True):
            high = budget if math.isfinite(budget) else least
            check_budget(latency, budget, least, high, self.arch, self.constraints)

    def solve(self, rounding: float) -> tuple[_Found, float]:
        """(the best that was found, what bounds all).

        Raises:
            BudgetError: nothing was found.
        """
        best: _Found | None = None
        prices, relaxed = np.zeros(len(self.latencies)), []
        for embed in self._order():
            limit, at, found = self._relax(self._plane(embed, rounding), prices, best)
            relaxed.append((limit, embed, at))
            if found is not None and found.kept > _kept(best):
                best, prices = found, at  # where to start in the next plane
        bound = 0.0
        for limit, embed, at in sorted(relaxed, key=lambda plane: -plane[0]):
            if limit > _kept(best):
                best, complete = self._improve(self._plane(embed, rounding), at, limit, best)
                limit = _kept(best) if complete else limit
            bound = max(bound, limit)
        if best is None:
            raise self._refusal()
        return best, max(bound, best.kept)

    def _order(self) -> list[int]:
        """EMBED sizes, those first that leave the blocks about half of the tightest budget at their smallest sizes."""
        smallest = [self.choices.shapes[shape].min(axis=0) for shape in self.choices.shape_of]

        def share(embed: int) -> float:
            points = np.array([[embed, *sizes] for sizes in smallest])
            ms = [
                self.choices.repeats * latency.block_times(points).sum() + latency.outside_times(embed)
                for latency in self.latencies
            ]
            return abs(float((np.array(ms) / self.budget_ms).max()) - 0.5)

        return sorted(self.choices.embeds, key=share)

    def _plane(self, embed: int, rounding: float = 0.0) -> _Plane:
        by_target = [self.choices.times(latency, embed) for latency in self.latencies]
        outside = np.array([float(latency.outside_times(embed)) for latency in self.latencies])
        ms = [np.stack(of_shape) for of_shape in zip(*by_target, strict=True)]
        return _Plane(embed, float(self.choices.kept_embed[embed]), ms, self.budget_ms * (1 + rounding) - outside)

    def _at(self, plane: _Plane, prices: Array) -> tuple[float, Array, npt.NDArray[np.int64]]:
        """(saliency kept, ms left on each target, choice of each block) of what is best at these prices."""
        from search.ladder import cheapest

        kept, left, picked = plane.kept_embed, plane.left_ms.copy(), []
        for shape, of_block in zip(self.choices.shape_of, self.choices.kept, strict=True):
            choice = cheapest(plane.ms[shape], of_block, prices)
            picked.append(choice)
            kept += float(of_block[choice])
            left -= plane.ms[shape][:, choice]
        return kept, left, np.array(picked)

    def _relax(self, plane: _Plane, prices: Array, best: _Found | None) -> tuple[float, Array, _Found | None]:
        """(least D, its prices, the best that met all budgets); gives up once D is no better than `best`."""
        from scipy.optimize import linprog

        limit, at, found = np.inf, prices, None
        cuts: list[Array] = []
        unit = self.total / self.budget_ms  # of prices
        for _ in range(_CUTS):
            kept, left, picked = self._at(plane, prices)
            found = self._better(plane, found, kept, left, picked)
            if (value := kept + float(prices @ left)) < limit:
                limit, at = value, prices
            if limit <= _kept(best):
                return limit, at, found
            cuts.append(np.concatenate([[-1.0], left * unit / self.total, [-kept / self.total]]))
            rows = np.array(cuts)
            lowest = linprog(
                np.eye(1, 1 + len(prices))[0],
                A_ub=rows[:, :-1],
                b_ub=rows[:, -1],
                bounds=[(None, None)] + [(0, _HIGHEST_PRICE)] * len(prices),
            )
            if lowest.x is None or limit - lowest.x[0] * self.total <= _ENOUGH * self.total:
                break
            prices = lowest.x[1:] * unit
        for step in range(16):  # the least D lies between architectures that meet the budgets and some that do not
            kept, left, picked = self._at(plane, np.maximum(at, _ENOUGH * unit) * (1 + 1e-3 * 2**step))
            found = self._better(plane, found, kept, left, picked)
            if (left >= 0).all():
                break
        return limit, at, found

    def _better(
        self, plane: _Plane, found: _Found | None, kept: float, left: Array, picked: npt.NDArray[np.int64]
    ) -> _Found | None:
        if (left < 0).any() or (found is not None and found.kept >= kept):
            return found
        return _Found(kept, self.choices.sizes(plane.embed_dim, picked[None])[0])

    def _improve(self, plane: _Plane, prices: Array, limit: float, best: _Found | None) -> tuple[_Found | None, bool]:
        """(something better, or `best`; whether nothing in this plane is better than that)."""
        from search.ladder import combine, undominated

        pools, complete = [], True
        for shape, kept in zip(self.choices.shape_of, self.choices.kept, strict=True):
            worth = kept - prices @ plane.ms[shape]
            pool = np.flatnonzero(worth >= worth.max() - (limit - _kept(best)))
            complete &= len(pool) <= _RUNGS
            pool = pool[np.argsort(-worth[pool], kind="stable")[:_RUNGS]]
            pools.append(pool[undominated(np.ascontiguousarray(plane.ms[shape][:, pool]), kept[pool])])
        parts = list(zip(pools, self.choices.shape_of, self.choices.kept, strict=True))
        ms = np.concatenate([plane.ms[shape][:, pool] for pool, shape, _ in parts], axis=1)
        kept = np.concatenate([of_block[pool] for pool, _, of_block in parts])
        starts = np.cumsum([0, *map(len, pools)])
        for _ in range(_ROUNDS):
            least = _kept(best) - plane.kept_embed
            ways, all_of_them = combine(ms, kept, starts, prices, least, plane.left_ms, _TRIES)
            if len(ways):
                most = int(kept[ways].sum(axis=1).argmax())
                picked = np.concatenate(pools)[ways[most]]
                sizes = self.choices.sizes(plane.embed_dim, picked[None])[0]
                best = _Found(plane.kept_embed + float(kept[ways[most]].sum()), sizes)
            if all_of_them or not len(ways):
                return best, complete and all_of_them
        return best, False

    def _refusal(self) -> BudgetError:
        """Why nothing was found: one of the budgets, or all of them together."""
        low = np.full(len(self.latencies), np.inf)
        for embed in self.choices.embeds:
            plane = self._plane(embed)
            fastest = np.sum([plane.ms[shape].min(axis=1) for shape in self.choices.shape_of], axis=0)
            low = np.minimum(low, self.budget_ms - plane.left_ms + fastest)
        try:
            self._check(low * (1 - ROUNDING))
        except BudgetError as error:
            return error
        each = ", ".join(f"{ms:.4g} on {latency.target.slug}" for ms, latency in zip(low, self.latencies, strict=True))
        return BudgetError(f"no architecture was found that meets all budgets at once; each alone can be met ({each})")
