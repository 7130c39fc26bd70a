"""Time a grid of blocks on a device of this machine -> LatencyTable (on many machines: `fanout.py`).

`plan.py` decides what is visited when, `bench.py` visits, the journal remembers: a killed run goes on where it was.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from latency.bench import Bench, Visitor
from latency.errors import TableError
from latency.measurement import STABLE
from latency.plan import Line, ProfilePlan, corrected, pending, reference_ms, sizes
from latency.runtimes import Device, clocks, driver, versions
from latency.surrogate import fit_surrogate, held_out
from latency.table import LatencyTable, Outside, Provenance
from vit.architecture import Architecture
from vit.journal import Journal


@dataclass(frozen=True, slots=True)
class ProfileProgress:
    """One finished visit. A plan that stops at an error may end before `total`."""

    done: int
    total: int


def open_journal(plan: ProfilePlan, path: Path) -> Journal:
    """
    Raises:
        JournalError: the journal of another plan, or one that another process writes.
    """
    return Journal(path, plan.header)


def introduction(plan: ProfilePlan, device: Device, visitor: Visitor) -> list[Line]:
    """What a worker says before its first visit: a look at the reference block, then what it is and runs.

    In this order, so that the clocks are those of a device at work.
    """
    look = visitor.look()
    machine = {
        "device": f"{device.name}, {device.threads} thread(s)" if device.torch_device == "cpu" else device.name,
        "driver": driver(device),
        "clocks": clocks(device),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(plan.target.runtime),
    }
    return [look, {"worker": visitor.worker, "machine": machine}]


def record(journal: Journal, lines: Sequence[Line]) -> None:
    """Append a worker's lines.

    Raises:
        TableError: the worker has other versions than those who timed before; nothing was appended.
    """
    for line in lines:
        if "machine" in line:
            _check_versions(journal, line)
    for line in lines:
        journal.append(line)


def _check_versions(journal: Journal, line: Line) -> None:
    worker, here = line["worker"] or "here", line["machine"]["versions"]
    known = [before["machine"]["versions"] for before in journal.lines if "machine" in before]
    if known and here != known[0]:
        raise TableError(
            f"{journal.path} was begun with {_listed(known[0])}; worker {worker} has {_listed(here)}; "
            "install the same versions, or choose another --out"
        )


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def profile(
    plan: ProfilePlan, device: Device, journal_path: Path, visitor: Visitor | None = None
) -> Iterator[ProfileProgress]:
    """Time what the plan asks for; the journal at `journal_path` holds the results. Yields after each visit.

    A run that was killed continues: no finished visit is lost or repeated.

    Args:
        visitor: who makes the visits; by default one on `device`, built when there is something to time.
    """
    with open_journal(plan, journal_path) as journal, device.active():
        done = sum("point" in line for line in journal.lines)
        if not pending(plan, journal.lines):
            return
        visitor = visitor or Visitor(Bench(plan, device))
        record(journal, introduction(plan, device, visitor))
        while todo := pending(plan, journal.lines):
            for visit in todo:
                record(journal, visitor.visit(visit))
                done += 1
                yield ProfileProgress(min(done, plan.visits), plan.visits)
            journal.append(visitor.look())  # the last visits lie between two looks, too


def table_from_journal(plan: ProfilePlan, journal_path: Path) -> LatencyTable:
    """The table of a finished journal: as it was timed, or, where only some points were, filled by the physical model.

    Raises:
        TableError: a point that the plan asks for has no visit.
    """
    with open_journal(plan, journal_path) as journal:
        lines = journal.lines
    if todo := pending(plan, lines):
        raise TableError(f"{journal_path}: {len(todo)} visits of {plan.visits} are still to be made; profile on")
    visits = corrected(lines)
    count = len(plan.grid)
    medians, spreads = np.zeros(count + len(plan.outside)), np.zeros(count + len(plan.outside))
    for point, ms in visits.items():
        low, medians[point], high = np.percentile(ms, (25, 50, 75))
        spreads[point] = high - low
    timed = np.array(sorted(point for point in visits if point < count))
    quality = _quality(lines, medians[sorted(visits)], spreads[sorted(visits)]) | {
        "weight_copies": float(plan.copies),
        "timed_points": float(len(timed)),
    }
    kind, interval, filled = "measured", None, ""
    if len(timed) < count:
        points, tokens = sizes(plan.grid, timed), plan.target.tokens
        accuracy = held_out(points, medians[timed], tokens)
        surrogate = fit_surrogate(points, medians[timed], tokens)
        medians[:count] = surrogate.block_times(sizes(plan.grid, np.arange(count)))
        spreads[:count] = 0.0  # no spread of a timing: the interval tells how far off a modelled point may be
        kind, interval = "partly-modelled", _around_one(accuracy.interval)
        filled = f"; {len(timed)} of {count} points timed, all filled by the physical model with a smooth correction"
        quality |= {
            "heldout_mape": accuracy.mape,
            "heldout_p95": accuracy.p95,
            "heldout_rank_correlation": accuracy.rank_correlation or 0.0,
        }
    template = plan.template
    machines = [line["machine"] for line in lines if "machine" in line]
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
            kind=kind,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            method=(
                f"median of {plan.rounds} or more visits in random order, each the median of repeated runs of "
                f"a block with {plan.copies} sets of weights in turn, after warm-up, divided by the course of a "
                f"re-timed reference block{filled}"
            ),
            device=_all_of(machines, "device"),
            driver=_all_of(machines, "driver"),
            clocks=_all_of(machines, "clocks"),
            versions=machines[0]["versions"],
            created_by=f"vitfit profile on {_all_of(machines, 'system')}",
            source="timed on the device",
            license="facts; free to use",
            quality=quality,
            interval=interval,
        ),
    )


def _all_of(machines: Sequence[Line], what: str) -> str:
    """What the machines of a journal say, each answer once."""
    return "; ".join(dict.fromkeys(machine[what] for machine in machines))


def _around_one(interval: tuple[float, float]) -> tuple[float, float]:
    return min(interval[0], 1.0), max(interval[1], 1.0)


def _quality(lines: Sequence[Line], medians: np.ndarray, spreads: np.ndarray) -> dict[str, float]:
    looks = [line for line in lines if "reference_ms" in line]
    visits = [line for line in lines if "point" in line]
    reference = np.array([line["reference_ms"] for line in looks])
    quality = {
        "visits": float(len(visits)),
        "reference_ms": reference_ms(lines),
        "median_relative_iqr": float(np.median(spreads / medians)),
        "unstable_points_share": float(np.mean(spreads > STABLE * medians)),
        "disturbed_samples_share": float(np.mean([line["disturbed"] for line in visits])),
        "drift_p95_over_p05": float(np.percentile(reference, 95) / np.percentile(reference, 5)),
        "slowed_share": float(np.mean([bool(line["state"]["slowed_by"]) for line in looks])),
        "others_median": float(np.median([line["state"]["others"] for line in looks])),
    }
    for name in ("clock_mhz", "memory_mhz", "load"):
        seen = [line["state"][name] for line in looks if line["state"][name] is not None]
        if seen:
            quality |= {f"{name}_median": float(np.median(seen)), f"{name}_lowest": float(min(seen))}
    return quality


def reference_of(table: LatencyTable, device: Device) -> Callable[[], float]:
    """A call that times a table's reference block: against the table's own figure it shows a machine that has changed.

    Returns:
        A function without arguments that gives ms.
    """
    return Bench(plan_like(table), device).reference


def plan_like(table: LatencyTable) -> ProfilePlan:
    """A plan whose blocks are those of a table."""
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
    return ProfilePlan(table.target, table.grid, template, copies=copies)
