"""Time a grid of blocks on a device of this machine -> LatencyTable.

Every point is visited several times, each round in another random order, so that a slow minute of the machine does not
fall on one corner of the grid. A reference block is re-timed all along; its course is the machine's drift and is
divided out. Points whose visits disagree are visited again. Each visit is one line of a journal, so a killed run goes
on where it was.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from latency.errors import TableError
from latency.grid import Grid
from latency.journal import Journal
from latency.measurement import STABLE
from latency.runtimes import Call, Device, prepare, versions
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target
from latency.timer import Effort, Timing, time_call
from vit.architecture import Architecture, BlockShape
from vit.model import Block, VisionTransformer


@dataclass(frozen=True, slots=True)
class ProfilePlan:
    """What to time and how thoroughly.

    Attributes:
        target, grid: of the table.
        template: an architecture with the norm, biases, activation and geometry that blocks and the rest shall have.
        rounds: visits of every point.
        extra: further visits of a point whose visits disagree.
        chunk: visits between two timings of the reference block.
        copies: sets of weights that runs of one point take in turn. A block that runs again and again with the same
            weights finds them in the innermost cache, where those of a whole model have no room. The depth of the
            model that is asked for.
        seed: of the order.
    """

    target: Target
    grid: Grid
    template: Architecture
    rounds: int = 3
    extra: int = 3
    chunk: int = 12
    copies: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("chunk", 1), ("copies", 1), ("extra", 0)):
            if getattr(self, name) < least:
                raise TableError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def header(self) -> dict[str, Any]:
        """What a journal must agree on to be continued."""
        return {
            "journal": "vitfit-profile",
            "version": 1,
            "target": self.target.to_dict(),
            "grid": self.grid.to_dict(),
            "template": self.template.to_dict(),
            "rounds": self.rounds,
            "chunk": self.chunk,
            "copies": self.copies,
            "seed": self.seed,
            "versions": versions(self.target.runtime),
        }

    @property
    def points(self) -> int:
        """Block points, and one point outside the blocks per embed_dim."""
        return len(self.grid) + len(self.grid.embed_dim)


@dataclass(frozen=True, slots=True)
class ProfileProgress:
    """One finished visit."""

    done: int
    total: int


def profile(plan: ProfilePlan, device: Device, journal_path: Path) -> Iterator[ProfileProgress]:
    """Time every point; the journal at `journal_path` holds the results. Yields after each visit.

    A run that was killed continues: no finished visit is lost or repeated.
    """
    with Journal(journal_path, plan.header()) as journal, device.active():
        bench = _Bench(plan, device)
        total = plan.rounds * plan.points
        done = {(line["round"], line["point"]) for line in journal.lines}
        for round_index in range(plan.rounds):
            order = np.random.default_rng((plan.seed, round_index)).permutation(plan.points)
            todo = [int(point) for point in order if (round_index, int(point)) not in done]
            for _ in _visit(plan, bench, journal, round_index, todo):
                yield ProfileProgress(min(len(journal.lines), total), total)
        for extra in range(plan.extra):
            round_index = plan.rounds + extra
            unsteady = [
                point
                for point, visits in _by_point(plan, journal.lines).items()
                if _spread(visits) > STABLE and (round_index, point) not in done
            ]
            for _ in _visit(plan, bench, journal, round_index, unsteady):
                yield ProfileProgress(total, total)


def _visit(
    plan: ProfilePlan, bench: "_Bench", journal: Journal, round_index: int, points: Sequence[int]
) -> Iterator[None]:
    for start in range(0, len(points), plan.chunk):
        reference = bench.reference()
        for point in points[start : start + plan.chunk]:
            timing = bench.time(point)
            journal.append(
                {
                    "round": round_index,
                    "point": point,
                    "ms": timing.measurement.median_ms,
                    "iqr_ms": timing.measurement.iqr_ms,
                    "samples": len(timing.measurement.samples_ms),
                    "disturbed": timing.disturbed,
                    "reference_ms": reference,
                }
            )
            yield


def _by_point(plan: ProfilePlan, lines: Sequence[dict[str, Any]]) -> dict[int, list[float]]:
    """Drift-corrected ms of every visit of every point."""
    typical = float(np.median([line["reference_ms"] for line in lines]))
    visits: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        visits[line["point"]].append(line["ms"] * typical / line["reference_ms"])
    return visits


def _spread(visits: Sequence[float]) -> float:
    low, middle, high = np.percentile(visits, (25, 50, 75))
    return float((high - low) / middle)


def table_from_journal(plan: ProfilePlan, device: Device, journal_path: Path) -> LatencyTable:
    """The table of a finished journal.

    Raises:
        TableError: a point has no visit.
    """
    with Journal(journal_path, plan.header()) as journal:
        lines = journal.lines
    if missing := set(range(plan.points)) - {line["point"] for line in lines}:
        raise TableError(f"{journal_path}: {len(missing)} of {plan.points} points have no visit yet; profile on")
    visits = _by_point(plan, lines)
    medians = np.full(plan.points, np.nan)
    spreads = np.full(plan.points, np.nan)
    for point, ms in visits.items():
        low, medians[point], high = np.percentile(ms, (25, 50, 75))
        spreads[point] = high - low
    count = len(plan.grid)
    template = plan.template
    return LatencyTable(
        target=plan.target,
        grid=plan.grid,
        block_ms=medians[:count].reshape(plan.grid.shape),
        block_iqr_ms=spreads[:count].reshape(plan.grid.shape),
        outside=Outside(template.image_size, template.patch_size, template.in_chans, template.num_classes),
        outside_ms=medians[count:],
        outside_iqr_ms=spreads[count:],
        norm=template.norm,
        provenance=Provenance(
            kind="measured",
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            method=(
                f"median of {plan.rounds} or more visits in random order, each the median of repeated runs of "
                f"a block with {plan.copies} sets of weights in turn, after warm-up, divided by the course of a "
                "re-timed reference block"
            ),
            device=f"{device.name}, {device.threads} thread(s)" if device.torch_device == "cpu" else device.name,
            versions=versions(plan.target.runtime),
            quality=_quality(lines, medians, spreads) | {"weight_copies": float(plan.copies)},
        ),
    )


def _quality(lines: Sequence[dict[str, Any]], medians: np.ndarray, spreads: np.ndarray) -> dict[str, float]:
    reference = np.array([line["reference_ms"] for line in lines])
    return {
        "visits": float(len(lines)),
        "reference_ms": float(np.median(reference)),
        "median_relative_iqr": float(np.median(spreads / medians)),
        "unstable_points_share": float(np.mean(spreads > STABLE * medians)),
        "disturbed_samples_share": float(np.mean([line["disturbed"] for line in lines])),
        "drift_p95_over_p05": float(np.percentile(reference, 95) / np.percentile(reference, 5)),
    }


def reference_of(table: LatencyTable, device: Device) -> Callable[[], float]:
    """A call that times a table's reference block: against the table's own figure it shows a machine that has changed.

    Returns:
        A function without arguments that gives ms.
    """
    outside = table.outside
    template = Architecture(
        image_size=outside.image_size,
        patch_size=outside.patch_size,
        in_chans=outside.in_chans,
        num_classes=outside.num_classes,
        embed_dim=table.grid.embed_dim[-1],
        blocks=(table.grid.point(len(table.grid) - 1)[1],),
        norm=table.norm,
    )
    copies = int(table.provenance.quality.get("weight_copies", 1))
    return _Bench(ProfilePlan(table.target, table.grid, template, copies=copies), device).reference


class _Bench:
    """Builds and times the points of one plan on one device."""

    def __init__(self, plan: ProfilePlan, device: Device) -> None:
        self.plan, self.device = plan, device
        self.effort = Effort(warmup=max(2, plan.copies))
        self._reference = self._block(*plan.grid.point(len(plan.grid) - 1))

    def reference(self) -> float:
        """ms of the largest block, timed now."""
        return self._time(self._reference).measurement.median_ms

    def time(self, point: int) -> Timing:
        count = len(self.plan.grid)
        if point < count:
            return self._time(self._block(*self.plan.grid.point(point)))
        return self._time(self._outside(self.plan.grid.embed_dim[point - count]))

    def _time(self, call: Call) -> Timing:
        return time_call(call, self.effort, stopwatch=self.device.stopwatch())

    def _block(self, embed_dim: int, shape: BlockShape) -> Call:
        """Runs of one block, with another copy of its weights each time."""
        arch = self.plan.template.replace(embed_dim=embed_dim, blocks=(shape,), softmax_scale=None)
        block = random_weights(Block(arch, 0))
        modules = [block, *(copy.deepcopy(block) for _ in range(self.plan.copies - 1))]
        return prepare(self.plan.target, self.device, modules, (self.plan.target.tokens, embed_dim))

    def _outside(self, embed_dim: int) -> Call:
        """The whole model without its blocks."""
        arch = self.plan.template.replace(embed_dim=embed_dim, blocks=(BlockShape(1, 1, 1, 1),), softmax_scale=None)
        module = VisionTransformer(arch)
        module.blocks = torch.nn.Sequential()
        shape = (arch.in_chans, *arch.image_size)
        return prepare(self.plan.target, self.device, [random_weights(module)], shape)


M = TypeVar("M", bound=torch.nn.Module)


def random_weights(module: M) -> M:
    """Ordinary numbers everywhere: zeros and denormals would be timed faster or slower than real weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.02, generator=generator)
    return module
