"""What to time, in which order, and what is left to do: decided from the plan and the journal alone.

Every point is visited several times, each round in another random order, so that a slow minute of the machine does not
fall on one corner of the grid. A reference block is re-timed all along; its course is the machine's drift and is
divided out. Points whose visits disagree are visited again. Where a plan asks for a few points only, or for as many as
an error needs, points come in an order that fills the grid evenly, and the same journal goes on to more of them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from latency.accuracy import Accuracy
from latency.errors import TableError
from latency.grid import Grid
from latency.measurement import STABLE
from latency.surrogate import FEWEST, held_out
from latency.target import Target
from vit.architecture import Architecture

Line = dict[str, Any]
Visit = tuple[int, int]
"""Round and point."""

FIRST_STAGE, GROWTH = 64, 1.5
"""How many points are timed before the held-out error is first looked at, and by how much more before the next look."""


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """What to time and how thoroughly.

    Attributes:
        target, grid: of the table.
        template: an architecture with the norm, biases, activation and geometry that blocks and the rest shall have.
        points: block shapes of the grid to time at most; None: all of them.
        error: stop as soon as the mean relative error on points that were held out is below this; None: never.
        rounds: visits of every point.
        extra: further visits of a point whose visits disagree.
        copies: sets of weights that runs of one point take in turn. A block that runs again and again with the same
            weights finds them in the innermost cache, where those of a whole model have no room. The depth of the
            model that is asked for.
        seed: of the order.
    """

    target: Target
    grid: Grid
    template: Architecture
    points: int | None = None
    error: float | None = None
    rounds: int = 3
    extra: int = 2
    copies: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("copies", 1), ("extra", 0)):
            if getattr(self, name) < least:
                raise TableError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.points is not None and not self.points >= FEWEST:
            raise TableError(f"points must be at least {FEWEST} (the model has about as many terms), got {self.points}")
        if self.error is not None and not 0 < self.error < 1:
            raise TableError(f"the held-out error to stop at is a share between 0 and 1, got {self.error}")

    @property
    def header(self) -> Line:
        """What a journal must agree on to be continued. How many points is not among it, and where it was timed comes
        from there (see `profiler.introduction`)."""
        return {
            "journal": "vitfit-profile",
            "version": 3,
            "target": self.target.to_dict(),
            "grid": self.grid.to_dict(),
            "template": self.template.to_dict(),
            "copies": self.copies,
            "seed": self.seed,
        }

    @property
    def stages(self) -> tuple[int, ...]:
        """Block shapes timed when the held-out error is looked at; the last one is all that the plan allows."""
        most = min(self.points or len(self.grid), len(self.grid))
        if self.error is None:
            return (most,)
        stages, count = [], FIRST_STAGE
        while count < most:
            stages.append(count)
            count = int(count * GROWTH)
        return (*stages, most)

    @property
    def outside(self) -> tuple[int, ...]:
        """Points outside the blocks, one per embed_dim: their indices follow those of the grid."""
        return tuple(range(len(self.grid), len(self.grid) + len(self.grid.embed_dim)))

    @property
    def visits(self) -> int:
        """Visits that the plan takes at least (at most, where it may stop early)."""
        return self.rounds * (self.stages[-1] + len(self.outside))


@lru_cache(maxsize=8)
def order(grid: Grid, seed: int) -> npt.NDArray[np.int64]:
    """All points, so that the first ones of any number fill the grid evenly (Sobol's sequence, scrambled)."""
    sequence = qmc.Sobol(len(grid.shape), rng=np.random.default_rng(seed))
    cells = sequence.random_base2(int(np.ceil(np.log2(8 * len(grid)))))
    indices = (cells * np.array(grid.shape)).astype(np.int64)
    flat = np.ravel_multi_index(tuple(indices.T), grid.shape)
    _, first = np.unique(flat, return_index=True)
    found = flat[np.sort(first)]
    points = np.concatenate([found, np.setdiff1d(np.arange(len(grid)), found)])
    points.setflags(write=False)
    return points


def pending(plan: ProfilePlan, lines: Sequence[Line]) -> list[Visit]:
    """The next visits, in order; none when the plan is done. Nothing that is in the journal comes again."""
    done = {(line["round"], line["point"]) for line in lines if "point" in line}
    points = order(plan.grid, plan.seed)
    for stage in plan.stages:
        chosen = [*points[:stage].tolist(), *plan.outside]
        for index in range(plan.rounds):
            shuffled = np.random.default_rng((plan.seed, index, stage)).permutation(chosen).tolist()
            if todo := [(index, point) for point in shuffled if (index, point) not in done]:
                return todo
        for extra in range(plan.rounds, plan.rounds + plan.extra):
            visits = corrected(lines)
            if todo := [(extra, p) for p in chosen if (extra, p) not in done and _spread(visits[p]) > STABLE]:
                return todo
        if plan.error is not None and len(plan.stages) > 1 and stage < plan.stages[-1]:
            accuracy = held_out_error(plan, lines, stage)
            if accuracy.mape <= plan.error:
                return []
    return []


def held_out_error(plan: ProfilePlan, lines: Sequence[Line], stage: int) -> Accuracy:
    """How far the first `stage` points, left out in turn, are from what the others tell of them."""
    visits = corrected(lines)
    chosen = order(plan.grid, plan.seed)[:stage].tolist()
    return held_out(sizes(plan.grid, chosen), np.array([np.median(visits[p]) for p in chosen]), plan.target.tokens)


def sizes(grid: Grid, points: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Sizes of points by their indices, shape (P, 5)."""
    indices = np.unravel_index(np.asarray(points, np.int64), grid.shape)
    return np.stack([np.array(axis, np.float64)[i] for axis, i in zip(grid.axes, indices, strict=True)], axis=1)


def corrected(lines: Sequence[Line]) -> dict[int, list[float]]:
    """ms of every visit of every point on the machine in its typical state.

    A visit is divided by the reference's course around it (the median of three timings in a row, between them in a
    straight line), on the machine that made the visit.
    """
    references = [line for line in lines if "reference_ms" in line]
    typical = reference_ms(lines)
    course = {}
    for worker in {line["worker"] for line in references}:
        own = sorted((line["at"], line["reference_ms"]) for line in references if line["worker"] == worker)
        at, ms = np.array(own).T
        padded = np.pad(ms, 1, mode="edge")
        course[worker] = at, np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    visits: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        if "point" in line:
            visits[line["point"]].append(line["ms"] * typical / float(np.interp(line["at"], *course[line["worker"]])))
    return visits


def reference_ms(lines: Sequence[Line]) -> float:
    """The reference block's time on the machine in its typical state."""
    return float(np.median([line["reference_ms"] for line in lines if "reference_ms" in line]))


def _spread(visits: Sequence[float]) -> float:
    low, middle, high = np.percentile(visits, (25, 50, 75))
    return float((high - low) / middle)


def reference_point(grid: Grid) -> int:
    """The block that shows the machine's course: in the middle of every axis, so that looking often costs little."""
    return int(np.ravel_multi_index([len(axis) // 2 for axis in grid.axes], grid.shape))
