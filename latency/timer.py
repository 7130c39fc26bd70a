"""Timing one callable: warm-up, repetition, and samples in which the machine did something else left out.

The stopwatch is an argument, so the timer is tested with a scripted one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from latency.measurement import Measurement

Now = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds of the wall, and of this process's processor time."""

    wall: Now = time.perf_counter
    process: Now = time.process_time


@dataclass(frozen=True, slots=True)
class Lap:
    """Runs in a row, timed together.

    Attributes:
        seconds: of all of them.
        disturbed: somebody else had the device for a part of it, so it says nothing about the callable.
    """

    seconds: float
    disturbed: bool = False


class Stopwatch(Protocol):
    """Times runs in a row.

    Attributes:
        shortest: seconds that a lap must last to be timed well.
    """

    @property
    def shortest(self) -> float: ...

    def lap(self, call: Callable[[], object], runs: int) -> Lap:
        """Seconds from before the first run to the end of the last one's work."""
        ...


DISTURBED = 0.05
"""Share of the wall time for which a single-threaded process may stand still in a clean lap."""
TICK = 30e-6
"""Seconds below which the two clocks cannot be told apart."""


@dataclass(frozen=True, slots=True)
class CpuStopwatch:
    """Clocks around calls that return when their work is done.

    Attributes:
        single_threaded: all work happens on the calling thread. Then a lap in which the wall clock went on while the
            process stood still was shared with somebody else. With more threads every lap counts as clean.
    """

    single_threaded: bool
    clocks: Clocks = Clocks()
    shortest: float = 1e-4

    def lap(self, call: Callable[[], object], runs: int) -> Lap:
        process, wall = self.clocks.process(), self.clocks.wall()
        for _ in range(runs):
            call()
        elapsed, busy = self.clocks.wall() - wall, self.clocks.process() - process
        return Lap(elapsed, self.single_threaded and elapsed - busy > DISTURBED * elapsed + TICK)


@dataclass(frozen=True, slots=True)
class CudaStopwatch:
    """Events of the current stream around calls that only enqueue their work.

    A lap is long enough for the first kernel's launch, for which the GPU waits, not to count.
    """

    shortest: float = 1e-3

    def lap(self, call: Callable[[], object], runs: int) -> Lap:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(runs):
            call()
        end.record()
        end.synchronize()
        return Lap(1e-3 * start.elapsed_time(end))


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look at one point.

    Attributes:
        warmup: runs before the first sample.
        warmup_seconds: stop warming up after this long, once there were two runs.
        samples: clean samples wanted.
        most: samples taken at most while looking for clean ones.
        seconds: stop early after this long, once there are `least` clean samples.
        least: clean samples below which `seconds` does not stop.
    """

    warmup: int = 2
    warmup_seconds: float = 1.0
    samples: int = 7
    most: int = 21
    seconds: float = 0.5
    least: int = 3


@dataclass(frozen=True, slots=True)
class Timing:
    """Clean samples, and the share of samples that were disturbed."""

    measurement: Measurement
    disturbed: float


def time_call(call: Callable[[], object], effort: Effort = Effort(), *, stopwatch: Stopwatch) -> Timing:
    """Time `call`. A sample is one run, or the mean of as many as make up the stopwatch's shortest lap."""
    runs = _runs_in_a_lap(_warm_up(call, effort, stopwatch), stopwatch)
    clean: list[float] = []
    disturbed: list[float] = []
    spent = 0.0
    while len(clean) < effort.samples and len(clean) + len(disturbed) < effort.most:
        lap = stopwatch.lap(call, runs)
        (disturbed if lap.disturbed else clean).append(1e3 * lap.seconds / runs)
        spent += lap.seconds
        if len(clean) >= effort.least and spent > effort.seconds:
            break
    share = len(disturbed) / (len(clean) + len(disturbed))
    return Timing(Measurement.of(clean or disturbed), share)


def _warm_up(call: Callable[[], object], effort: Effort, stopwatch: Stopwatch) -> list[float]:
    """Seconds of every run of the warm-up."""
    seconds: list[float] = []
    while len(seconds) < effort.warmup and (len(seconds) < 2 or sum(seconds) <= effort.warmup_seconds):
        seconds.append(stopwatch.lap(call, 1).seconds)
    return seconds


def _runs_in_a_lap(warmup: list[float], stopwatch: Stopwatch) -> int:
    """One where nothing is known yet."""
    if not warmup:
        return 1
    return max(1, math.ceil(stopwatch.shortest / max(min(warmup), 1e-7)))
