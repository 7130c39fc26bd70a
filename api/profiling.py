"""What the edges do about latency: plan a profile, time it here or on a cluster, time whole models beside a table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from latency.bench import random_weights
from latency.estimate import estimate
from latency.fanout import profile_on_cluster
from latency.grid import Grid, grid_below
from latency.plan import ProfilePlan
from latency.profiler import ProfileProgress, profile, reference_of, table_from_journal
from latency.runtimes import Device, local_target, prepare, remote_target
from latency.storage import save_table
from latency.table import LatencyTable
from latency.target import Target
from latency.timer import time_call
from vit.architecture import Architecture
from vit.token_plan import TokenPlan
from vit.tokens import build


def profile_plan(
    arch: Architecture,
    device: Device | str,
    *,
    runtime: str = "eager",
    dtype: str = "fp32",
    batch: int = 1,
    grid: Grid | None = None,
    points: int | None = None,
    error: float | None = None,
    rounds: int = 3,
    seed: int = 0,
) -> ProfilePlan:
    """What to time so that everything that can be cut out of `arch` is covered (or everything in `grid`).

    Args:
        device: of this machine, or the slug of one elsewhere.
    """
    if isinstance(device, str):
        target = remote_target(device, runtime, dtype, batch, arch.tokens)
    else:
        target = local_target(device, runtime, dtype, batch, arch.tokens)
    return ProfilePlan(
        target, grid or grid_below(arch), arch, points, error, rounds=rounds, copies=arch.depth, seed=seed
    )


def run_profile(plan: ProfilePlan, device: Device, out: Path) -> Iterator[ProfileProgress]:
    """Profile into `out`; the journal beside it survives kill -9 and goes away when the table is written."""
    yield from _profile(plan, partial(profile, plan, device), out)


def run_profile_on_cluster(plan: ProfilePlan, address: str, out: Path) -> Iterator[ProfileProgress]:
    """`run_profile` on the nodes of a Ray cluster that offer the plan's device."""
    yield from _profile(plan, partial(profile_on_cluster, plan, address), out)


def _profile(
    plan: ProfilePlan, visits: Callable[[Path], Iterator[ProfileProgress]], out: Path
) -> Iterator[ProfileProgress]:
    journal = out.with_suffix(".journal.jsonl")
    yield from visits(journal)
    save_table(table_from_journal(plan, journal), out)
    journal.unlink()


@dataclass(frozen=True, slots=True)
class Measured:
    """A model timed here.

    Attributes:
        latency_ms, iqr_ms: median over rounds and its spread.
        predicted_ms, error: estimate of the table, and (predicted - measured) / measured.
        drift: how much slower the machine is than when the table was made (1.0: the same).
    """

    arch: Architecture
    target: Target
    latency_ms: float
    iqr_ms: float
    predicted_ms: float | None
    drift: float | None

    @property
    def error(self) -> float | None:
        return None if self.predicted_ms is None else self.predicted_ms / self.latency_ms - 1


def measure(
    archs: Sequence[Architecture],
    device: Device,
    target: Target,
    table: LatencyTable | None = None,
    *,
    plans: Sequence[TokenPlan | None] | None = None,
    rounds: int = 9,
    seed: int = 0,
) -> list[Measured]:
    """Time whole models, with random weights, in one interleaved run, beside the estimate of a table of the target.

    Models that drop tokens as `plans` say are timed so; a table, which is of one number of tokens, promises them none.

    The table's reference block is timed in every round, too: it tells a table that is wrong from a machine that is
    slower now. Best called in a fresh process: one that has trained before was seen to run the same models slower.
    """
    dropped = [None] * len(archs) if plans is None else plans
    predicted = [
        None if table is None or plan is not None else estimate(table, arch).latency_ms
        for arch, plan in zip(archs, dropped, strict=True)
    ]
    samples: list[list[float]] = [[] for _ in archs]
    reference: list[float] = []
    with device.active():
        calls = [
            prepare(target, device, [random_weights(build(arch, plan))], (arch.in_chans, *arch.image_size))
            for arch, plan in zip(archs, dropped, strict=True)
        ]
        time_reference = None if table is None else reference_of(table, device)
        order = np.random.default_rng(seed)
        for _ in range(rounds):
            if time_reference is not None:
                reference.append(time_reference())
            for index in order.permutation(len(calls)):
                timing = time_call(calls[index], stopwatch=device.stopwatch())
                samples[index].append(timing.measurement.median_ms)
    then = None if table is None else table.provenance.quality.get("reference_ms")
    drift = float(np.median(reference)) / then if then else None
    results = []
    for arch, ms, promised in zip(archs, samples, predicted, strict=True):
        low, middle, high = np.percentile(ms, (25, 50, 75))
        results.append(Measured(arch, target, float(middle), float(high - low), promised, drift))
    return results
