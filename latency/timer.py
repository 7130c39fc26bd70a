"""Timing one callable: warm-up, repetition, and samples in which the machine did something else left out.

The clocks are an argument, so the timer is tested with scripted ones. A sample of a single-threaded run in which the
wall clock went on while the process stood still was shared with somebody else; it says nothing about the callable.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from latency.measurement import Measurement

Now = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds of the wall, and of this process's processor time."""

    wall: Now = time.perf_counter
    process: Now = time.process_time


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look at one point.

    Attributes:
        warmup: runs before the first sample.
        samples: clean samples wanted.
        most: samples taken at most while looking for clean ones.
        seconds: stop early after this long, once there are `least` clean samples.
        least: clean samples below which `seconds` does not stop.
    """

    warmup: int = 2
    samples: int = 7
    most: int = 21
    seconds: float = 0.5
    least: int = 3


@dataclass(frozen=True, slots=True)
class Timing:
    """Clean samples, and the share of samples that were disturbed."""

    measurement: Measurement
    disturbed: float


DISTURBED = 0.05
"""Share of the wall time for which a single-threaded process may stand still in a clean sample."""
TICK = 30e-6
"""Seconds below which the two clocks cannot be told apart."""


def time_call(
    call: Callable[[], object],
    effort: Effort = Effort(),
    *,
    single_threaded: bool,
    clocks: Clocks = Clocks(),
) -> Timing:
    """Time `call`, which returns when its work is done (devices synchronise inside it).

    Args:
        single_threaded: all work happens on the calling thread, so processor time can show a disturbance. With
            more threads, or on a GPU, every sample counts as clean.
    """
    for _ in range(effort.warmup):
        call()
    clean: list[float] = []
    disturbed: list[float] = []
    started = clocks.wall()
    while len(clean) < effort.samples and len(clean) + len(disturbed) < effort.most:
        process, wall = clocks.process(), clocks.wall()
        call()
        elapsed, busy = clocks.wall() - wall, clocks.process() - process
        stood_still = single_threaded and elapsed - busy > DISTURBED * elapsed + TICK
        (disturbed if stood_still else clean).append(1e3 * elapsed)
        if len(clean) >= effort.least and clocks.wall() - started > effort.seconds:
            break
    share = len(disturbed) / (len(clean) + len(disturbed))
    return Timing(Measurement.of(clean or disturbed), share)
