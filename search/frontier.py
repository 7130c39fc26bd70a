"""Which sizes to keep for a latency budget: every budget at once, with a bound that certifies how good the answer is.

A frontier is a staircase. Its steps are architectures, each faster than the next and keeping less; the answer to a
budget is the slowest that meets it, and more budget never keeps less. Beside each step stands what bounds it: nothing
faster than the next step keeps more. How the steps are found is in `search.planes`; then a budget is a look-up, and a
file of some megabytes holds them all.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from latency.estimate import LatencyModel, check_tokens, estimate
from search.budget import ROUNDING, check_budget
from search.choices import Choices, architecture_of
from search.constraints import Constraints
from search.saliency import Saliency
from vit.architecture import BLOCK_UNITS, Architecture
from vit.groups import EMBED, Group

Array = npt.NDArray[np.float64]
Sizes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer to one budget.

    Attributes:
        arch: the architecture to cut to.
        latency_ms: its estimated latency (millions of MACs on the target `macs`).
        budget_ms: what was asked for.
        kept: share of the model's saliency that stays, from 0 to 1.
        bound: no architecture within the budget keeps a larger share (for saliency that adds up and the same
            constraints); None from a method that has none.
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


@dataclass(frozen=True, eq=False)
class Staircase:
    """Architectures by latency, each the answer from its own latency to the next one's.

    Attributes:
        ms, kept: latency and saliency kept, both increasing, shape (A,).
        bound: no architecture that is faster than the next answer keeps more; shape (A,).
        sizes: EMBED, then H, QK, V and MLP of every block; shape (A, 1 + 4·depth).

    Raises:
        ValueError: arrays that are none.
    """

    ms: Array
    kept: Array
    bound: Array
    sizes: Sizes

    def __post_init__(self) -> None:
        for field in fields(self):
            dtype = np.int32 if field.name == "sizes" else np.float64
            array = np.array(getattr(self, field.name), dtype=dtype, order="C")
            array.setflags(write=False)
            object.__setattr__(self, field.name, array)
        if self.sizes.ndim != 2 or not len(self.sizes) or (self.sizes < 1).any():
            raise ValueError("sizes are positive, a row an answer")
        for name in ("ms", "kept", "bound"):
            array = getattr(self, name)
            if array.shape != self.sizes.shape[:1] or not np.isfinite(array).all() or (np.diff(array) < 0).any():
                raise ValueError(f"{name} rises, with one finite entry an answer")
        if (self.bound < self.kept).any():
            raise ValueError("no bound is below what is kept")


class Frontier:
    """Best architectures for every budget, for one saliency and one target.

    Attributes:
        saliency, latency, constraints: what it was made for.
        staircase: all answers.
        full_ms: latency of the uncut model.
        smallest_ms: latency below which nothing can be promised.
    """

    def __init__(
        self,
        saliency: Saliency,
        latency: LatencyModel,
        constraints: Constraints | None = None,
        *,
        staircase: Staircase | None = None,
    ) -> None:
        """Find all answers (the slow part; queries are fast), unless they are known.

        Args:
            staircase: what was found before, for the same three.

        Raises:
            ConstraintError: constraints that the model cannot meet.
            TargetError: the table was made for another number of tokens.
            OutsideGridError: the table does not cover the uncut model.
            BudgetError: the table covers no size that the model could be cut to.
        """
        check_tokens(latency, saliency.arch)
        self.saliency, self.latency, self.constraints = saliency, latency, constraints or Constraints()
        self.constraints.check(saliency.arch)
        self.staircase = staircase or _staircase(saliency, latency, self.constraints)
        self.full_ms = estimate(latency, saliency.arch).latency_ms
        self.smallest_ms = self._ms(self._architecture(0))

    def best(self, budget_ms: float) -> Choice:
        """The architecture that keeps the most saliency within a budget.

        Raises:
            BudgetError: below the smallest architecture, or not below the whole model.
        """
        arch, stairs = self.saliency.arch, self.staircase
        check_budget(self.latency, budget_ms, self.smallest_ms, self.full_ms, arch, self.constraints)
        top = index = max(int(np.searchsorted(stairs.ms, budget_ms * (1 + ROUNDING), side="right")) - 1, 0)
        small = self._architecture(index)
        # Latencies of the staircase are sums in another order: the last bits of a budget may buy one step less.
        while (latency_ms := self._ms(small)) > budget_ms:
            index -= 1
            small = self._architecture(index)
        total = self.saliency.total or 1.0
        return Choice(
            arch=small,
            latency_ms=latency_ms,
            budget_ms=budget_ms,
            kept=min(float(stairs.kept[index]) / total, 1.0),
            bound=min(float(stairs.bound[top]) / total, 1.0),
        )

    def _ms(self, arch: Architecture) -> float:
        return estimate(self.latency, arch).latency_ms

    def _architecture(self, index: int) -> Architecture:
        return architecture_of(self.saliency.arch, self.staircase.sizes[index])


def _staircase(saliency: Saliency, latency: LatencyModel, constraints: Constraints) -> Staircase:
    """All answers, one EMBED size at a time."""
    from search.ladder import ladder  # loads numba, which only searches should wait for
    from search.planes import Plane, answers

    choices = Choices.of(saliency, latency.bounds, constraints, latency.target.slug)
    planes = []
    for embed in choices.embeds:
        ms = choices.times(latency, embed)
        order = [np.argsort(times) for times in ms]
        ladders = [
            ladder(order[shape], ms[shape], kept) for shape, kept in zip(choices.shape_of, choices.kept, strict=True)
        ]
        planes.append(Plane.of(embed, float(latency.outside_times(embed)), float(choices.kept_embed[embed]), ladders))
    best, bound = answers(planes, saliency.total)
    sizes = np.empty((len(best.ms), 1 + saliency.arch.depth * len(BLOCK_UNITS)), dtype=np.int32)
    for index in np.unique(best.plane).tolist():
        at, plane = best.plane == index, planes[index]
        sizes[at] = choices.sizes(plane.embed_dim, plane.choice[best.rungs[at]])
    return Staircase(best.ms, best.kept, bound, sizes)


def frontier_choice(
    saliency: Saliency,
    latency: LatencyModel,
    budget_ms: float,
    constraints: Constraints | None = None,
) -> Choice:
    """One budget of a frontier that is not kept."""
    return Frontier(saliency, latency, constraints).best(budget_ms)
