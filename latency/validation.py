"""Is a table true? Random models and random blocks off its grid, measured now, against what it says of them.

Everything is measured twice, in two passes of one interleaved run, for no prediction can be closer to a measurement
than a second measurement is: their difference is the noise floor. The table's reference block is timed all along and
tells a machine that is slower now from a table that is wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latency.accuracy import Accuracy
from latency.bench import Bench
from latency.errors import TargetError
from latency.estimate import estimate
from latency.grid import AXES
from latency.plan import ProfilePlan
from latency.profiler import plan_like
from latency.runtimes import Call, Device
from latency.table import LatencyTable
from latency.timer import Effort, time_call
from vit.architecture import Architecture, BlockShape

STEP = 8
"""Channels in whose multiples random sizes come, as sizes do that are cut."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What was found. Errors of predictions are of the table as it stands; `drift` says what of it is the machine.

    Attributes:
        target: slug of the table.
        models, blocks: predicted against measured; None where none were measured.
        models_steady, blocks_steady: the same with the machine's drift divided out of what was measured.
        models_floor, blocks_floor: the first pass against the second.
        drift: time of the reference block now over its time when the table was made; None where that is not known.
        names, predicted_ms, measured_ms, iqr_ms: of every model and block.
    """

    target: str
    models: Accuracy | None
    blocks: Accuracy | None
    models_steady: Accuracy | None
    blocks_steady: Accuracy | None
    models_floor: Accuracy | None
    blocks_floor: Accuracy | None
    drift: float | None
    names: tuple[str, ...]
    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]
    iqr_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ValidationProgress:
    """One finished measurement; the last one brings the result."""

    done: int
    total: int
    result: Validation | None = None


def random_architecture(
    template: Architecture, bounds: dict[str, tuple[int, int]], depth: int, seed: Any
) -> Architecture:
    """A skewed model: every block has sizes of its own, and each kind of size leans to one end of its range.

    Args:
        bounds: smallest and largest size, by axis.
        seed: of numpy's default_rng.
    """
    draw = np.random.default_rng(seed)

    def pick(axis: str, lean: float) -> int:
        low, high = bounds[axis]
        step = 1 if axis == "num_heads" else STEP
        size = low + draw.beta(2 * lean, 2 * (1 - lean)) * (high - low)
        return int(np.clip(step * round(size / step), low, high))

    leans = {axis: float(draw.uniform(0.15, 0.85)) for axis in AXES}
    blocks = tuple(BlockShape(*(pick(axis, leans[axis]) for axis in AXES[1:])) for _ in range(depth))
    return template.replace(embed_dim=pick("embed_dim", leans["embed_dim"]), blocks=blocks, softmax_scale=None)


def validate(
    table: LatencyTable, device: Device, *, models: int = 20, blocks: int = 40, rounds: int = 3, seed: int = 0
) -> Iterator[ValidationProgress]:
    """Measure and compare; nothing is written.

    Args:
        device: that of the table (`device_of`).
        models, blocks: how many random ones.
        rounds: measurements of each, in each of two passes.

    Raises:
        TargetError: nothing is to be measured.
    """
    if models + blocks < 1 or min(models, blocks) < 0 or rounds < 1:
        raise TargetError("give at least one model or block, and at least one round")
    plan, bounds = plan_like(table), table.bounds
    depth = plan.copies if plan.copies > 1 else 12
    archs = [random_architecture(plan.template, bounds, depth, (seed, 0, i)) for i in range(models)]
    singles = [random_architecture(plan.template, bounds, 1, (seed, 1, i)) for i in range(blocks)]
    predicted = np.array(
        [estimate(table, arch).latency_ms for arch in archs] + [estimate(table, one).block_ms[0] for one in singles]
    )
    total = 2 * rounds * len(predicted)
    samples = np.full((2, rounds, len(predicted)), np.nan)
    looks: list[float] = []
    draw = np.random.default_rng((seed, 2))
    with device.active():
        timer = _Timer(plan, device, archs, singles)
        done = 0
        for index in range(2 * rounds):
            for item in draw.permutation(len(predicted)):
                if done % 10 == 0:
                    looks.append(timer.bench.reference())
                samples[index // rounds, index % rounds, item] = timer.time(int(item))
                done += 1
                yield ValidationProgress(done, total)
    then = table.provenance.quality.get("reference_ms")
    drift = float(np.median(looks)) / then if then else None
    names = [f"model {i}: {_describe(arch)}" for i, arch in enumerate(archs)]
    names += [f"block {i}: {_describe(one)}" for i, one in enumerate(singles)]
    yield ValidationProgress(total, total, _result(table, predicted, samples, drift, models, tuple(names)))


def _describe(arch: Architecture) -> str:
    """EMB, and the mean over the blocks of their sizes."""
    means = [round(float(np.mean([getattr(block, axis) for block in arch.blocks]))) for axis in AXES[1:]]
    return "EMB {} H {} QK {} V {} MLP {}".format(arch.embed_dim, *means)


def _result(
    table: LatencyTable,
    predicted: npt.NDArray[np.float64],
    samples: npt.NDArray[np.float64],
    drift: float | None,
    models: int,
    names: tuple[str, ...],
) -> Validation:
    every = samples.reshape(-1, samples.shape[-1])
    measured = np.median(every, axis=0)
    low, high = np.percentile(every, (25, 75), axis=0)
    first, second = np.median(samples, axis=1)
    whole, single = slice(0, models), slice(models, None)

    def compare(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], part: slice) -> Accuracy | None:
        return Accuracy.of(a[part], b[part]) if len(a[part]) else None

    steady = measured if drift is None else measured / drift
    return Validation(
        target=table.target.slug,
        models=compare(predicted, measured, whole),
        blocks=compare(predicted, measured, single),
        models_steady=compare(predicted, steady, whole),
        blocks_steady=compare(predicted, steady, single),
        models_floor=compare(first, second, whole),
        blocks_floor=compare(first, second, single),
        drift=drift,
        names=names,
        predicted_ms=tuple(predicted.tolist()),
        measured_ms=tuple(measured.tolist()),
        iqr_ms=tuple((high - low).tolist()),
    )


class _Timer:
    """Models first, then blocks, by index; models stay prepared, for a graph of one takes seconds to make."""

    def __init__(
        self, plan: ProfilePlan, device: Device, archs: Sequence[Architecture], singles: Sequence[Architecture]
    ) -> None:
        self.bench, self.device = Bench(plan, device), device
        self.archs, self.singles = archs, singles
        self.calls: dict[int, Call] = {}

    def time(self, item: int) -> float:
        """Median ms of one measurement."""
        if item >= len(self.archs):
            one = self.singles[item - len(self.archs)]
            return self.bench.time_block(one.embed_dim, one.blocks[0]).measurement.median_ms
        if item not in self.calls:
            self.calls[item] = self.bench.model(self.archs[item])
        effort = Effort(warmup=2, samples=5, most=15, seconds=0.3)
        return time_call(self.calls[item], effort, stopwatch=self.device.stopwatch()).measurement.median_ms
