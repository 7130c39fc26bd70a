"""The timer, with scripted clocks: what it counts, what it leaves out, and when it stops."""

import itertools

import numpy as np
import pytest
import torch

from latency.timer import DISTURBED, TICK, Clocks, CpuStopwatch, CudaStopwatch, Effort, Lap, time_call


class World:
    """A call whose durations are scripted: (seconds on the wall, seconds of this process), the last one for ever."""

    def __init__(self, *script):
        self.wall = self.process = 100.0
        self.calls = 0
        self._script = itertools.chain(script, itertools.repeat(script[-1]))

    def call(self):
        wall, process = next(self._script)
        self.calls, self.wall, self.process = self.calls + 1, self.wall + wall, self.process + process

    def time(self, effort, single_threaded=True):
        clocks = Clocks(lambda: self.wall, lambda: self.process)
        return time_call(self.call, effort, stopwatch=CpuStopwatch(single_threaded, clocks))


def clean(seconds):
    return (seconds, seconds)


def shared(seconds):
    """Half of the wall time went to somebody else."""
    return (seconds, seconds / 2)


PATIENT = Effort(warmup=2, warmup_seconds=1e9, samples=5, most=12, seconds=1e9, least=3)


def test_warm_up_runs_are_not_counted():
    world = World(clean(50.0), clean(40.0), clean(0.002))
    timing = world.time(PATIENT)
    np.testing.assert_allclose(timing.measurement.samples_ms, [2.0] * 5)
    assert world.calls == PATIENT.warmup + PATIENT.samples


def test_samples_are_milliseconds_of_the_wall_in_order():
    durations = [0.003, 0.001, 0.007, 0.002, 0.005]
    timing = World(clean(1), clean(1), *map(clean, durations)).time(PATIENT)
    np.testing.assert_allclose(timing.measurement.samples_ms, [3, 1, 7, 2, 5])
    assert timing.measurement.median_ms == pytest.approx(3)
    assert timing.disturbed == 0.0


def test_samples_in_which_the_process_stood_still_are_left_out_and_their_share_is_reported():
    script = [clean(1)] * 2 + [clean(0.002), shared(0.009), clean(0.002), shared(0.008), shared(0.007), clean(0.002)]
    timing = World(*script).time(PATIENT)
    np.testing.assert_allclose(timing.measurement.samples_ms, [2.0] * 5)
    assert timing.disturbed == 3 / 8


def test_on_several_threads_or_a_gpu_every_sample_counts():
    timing = World(clean(1), clean(1), shared(0.004), clean(0.002)).time(PATIENT, single_threaded=False)
    np.testing.assert_allclose(timing.measurement.samples_ms, [4, 2, 2, 2, 2])
    assert timing.disturbed == 0.0


@pytest.mark.parametrize(("share", "disturbed"), [(0.9 * DISTURBED, 0.0), (1.1 * DISTURBED, 1.0)])
def test_a_sample_is_disturbed_if_the_process_stood_still_for_more_than_a_twentieth(share, disturbed):
    assert World((1.0, 1.0 - share)).time(PATIENT).disturbed == disturbed


def test_a_difference_below_a_tick_of_the_clocks_is_no_disturbance():
    short = 5 * TICK
    assert World((short, short - TICK)).time(PATIENT).disturbed == 0.0
    assert World((short, short - 1.5 * TICK)).time(PATIENT).disturbed == 1.0


def test_without_enough_clean_samples_it_gives_up_after_the_most():
    world = World(clean(1), clean(1), clean(0.002), shared(0.009))
    timing = world.time(PATIENT)
    assert world.calls == PATIENT.warmup + PATIENT.most
    np.testing.assert_allclose(timing.measurement.samples_ms, [2.0])
    assert timing.disturbed == 11 / 12


def test_if_every_sample_was_disturbed_they_are_all_there_is():
    world = World(shared(0.004))
    timing = world.time(PATIENT)
    assert world.calls == PATIENT.warmup + PATIENT.most
    np.testing.assert_allclose(timing.measurement.samples_ms, [4.0] * PATIENT.most)
    assert timing.disturbed == 1.0


def test_it_stops_when_its_seconds_are_spent():
    world = World(clean(1.0))
    timing = world.time(Effort(warmup=4, warmup_seconds=1e9, samples=100, most=100, seconds=5.5, least=3))
    assert len(timing.measurement.samples_ms) == 6
    assert world.calls == 4 + 6


def test_it_takes_the_least_number_of_clean_samples_even_when_its_seconds_are_spent():
    script = [clean(1), shared(1), shared(1), clean(1), shared(1), clean(1)]
    timing = World(*script).time(Effort(warmup=0, samples=100, most=100, seconds=0.5, least=3))
    np.testing.assert_allclose(timing.measurement.samples_ms, [1000.0] * 3)
    assert timing.disturbed == 0.5


def test_without_warm_up_the_first_run_is_a_sample():
    assert World(clean(9), clean(1)).time(Effort(warmup=0)).measurement.samples_ms[0] == pytest.approx(9000)


class Machine:
    """A fake device with a stopwatch of its own. A run takes `seconds`, times what the machine does to it:

    Attributes:
        drift: it gets slower by this share with every run.
        stalls: runs, by number, that wait for this long while somebody else has the device, which the stopwatch sees.
        spikes: runs, by number, that take so many times as long, which it does not see.
        resolution: the stopwatch counts in these seconds.
        shortest: what the stopwatch asks of a lap.
    """

    def __init__(self, seconds=0.01, *, drift=0.0, stalls=None, spikes=None, resolution=0.0, shortest=0.0):
        self.seconds, self.drift, self.stalls, self.spikes = seconds, drift, stalls or {}, spikes or {}
        self.resolution, self.shortest = resolution, shortest
        self.now, self.runs, self.laps, self.stalled = 0.0, 0, [], False

    def run(self):
        self.stalled |= self.runs in self.stalls
        seconds = self.seconds * (1 + self.drift) ** self.runs * self.spikes.get(self.runs, 1)
        self.now += seconds + self.stalls.get(self.runs, 0.0)
        self.runs += 1

    def lap(self, call, runs):
        self.stalled, start = False, self._shown()
        for _ in range(runs):
            call()
        self.laps.append(runs)
        return Lap(max(self._shown() - start, 1e-12), self.stalled)

    def _shown(self):
        return self.now // self.resolution * self.resolution if self.resolution else self.now

    def time(self, effort=PATIENT):
        return time_call(self.run, effort, stopwatch=self)


def test_stalls_are_left_out_and_counted():
    timing = Machine(0.01, stalls={3: 5.0, 4: 1.0}).time()
    np.testing.assert_allclose(timing.measurement.samples_ms, [10.0] * 5)
    assert timing.disturbed == 2 / 7


def test_spikes_that_nobody_sees_do_not_move_the_median():
    timing = Machine(0.01, spikes={3: 100, 6: 30}).time()
    assert timing.measurement.median_ms == pytest.approx(10)
    assert max(timing.measurement.samples_ms) == pytest.approx(1000)


def test_drift_stays_in_the_order_of_the_samples_and_in_their_spread():
    timing = Machine(0.01, drift=0.1).time()
    np.testing.assert_allclose(timing.measurement.samples_ms, 10 * 1.1 ** np.arange(2, 7))
    assert not timing.measurement.is_stable


def test_runs_shorter_than_a_lap_are_timed_many_in_a_row_and_a_sample_is_their_mean():
    machine = Machine(3e-6, resolution=1e-6, shortest=1e-4)
    timing = machine.time()
    assert machine.laps == [1] * PATIENT.warmup + [machine.laps[-1]] * PATIENT.samples
    assert machine.laps[-1] * machine.seconds >= 0.9 * machine.shortest
    np.testing.assert_allclose(timing.measurement.samples_ms, 3e-3, rtol=0.02)


def test_runs_as_long_as_a_lap_are_timed_one_by_one():
    machine = Machine(1e-4, shortest=1e-4)
    machine.time()
    assert set(machine.laps) == {1}


def test_a_slow_first_run_does_not_make_laps_shorter():
    machine = Machine(1e-5, spikes={0: 1000}, shortest=1e-4)
    machine.time()
    assert machine.laps[-1] in (10, 11)


@pytest.mark.parametrize(("seconds", "runs"), [(0.01, 12), (0.3, 4), (0.6, 2), (50.0, 2)])
def test_a_long_warm_up_stops_when_its_seconds_are_spent_but_not_before_the_second_run(seconds, runs):
    machine = Machine(seconds)
    machine.time(Effort(warmup=12, warmup_seconds=1.0, samples=1))
    assert machine.runs == runs + 1


def test_on_a_gpu_a_lap_is_what_passes_between_two_events_around_all_of_its_runs(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            return 6.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("idle"))
    assert CudaStopwatch().lap(lambda: log.append("run"), 3) == Lap(6e-3)
    assert log == ["idle", "event", "run", "run", "run", "event", "wait"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_events_count_the_work_and_not_its_enqueueing():
    x = torch.randn(4096, 4096, device="cuda")
    stopwatch = CudaStopwatch()
    stopwatch.lap(lambda: x @ x, 10)
    assert stopwatch.lap(lambda: x @ x, 40).seconds > 4 * stopwatch.lap(lambda: x @ x, 5).seconds
