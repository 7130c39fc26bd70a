"""Profiling: the truth comes through drift and spikes, and a killed run goes on where it was."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from latency import profiler
from latency.bench import LOOK_EVERY, Bench, Visitor
from latency.errors import TableError
from latency.grid import Grid
from latency.measurement import Measurement
from latency.physics import PhysicalModel
from latency.plan import ProfilePlan, order, sizes
from latency.profiler import profile, table_from_journal
from latency.runtimes import Device, find_device, local_target, pytorch
from latency.storage import load_table, save_table
from latency.target import Target
from latency.timer import Timing
from tests.cases import CLASS_TOKEN
from vit.errors import JournalError

FAKE = Device("cpu", "fake", 1)
GRID = Grid((8, 16, 24), (1, 2), (8, 16), (8,), (16, 32, 48))
TINY = Grid((8, 16), (1, 2), (4, 8), (4,), (8, 16))


def plan_of(grid=GRID, target=None, **changes):
    target = target or Target(FAKE.slug, "eager", "fp32", 1, CLASS_TOKEN.tokens)
    return ProfilePlan(target, grid, CLASS_TOKEN, **changes)


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()[1:]]


class FakeBench:
    """Points with a known time on a machine that gets slower all along, with stalls and spikes; it has its own clock.

    Attributes:
        truth: ms of every point on the machine at rest; the reference takes 1 ms.
        visited: points in order.
    """

    def __init__(self, plan, drift=0.0, spikes=0.0, stall=(0.0, 0.0), unsteady=(), noise=0.005, seed=0, truth=None):
        self.unsteady, self.spikes, self.stall, self.noise = set(unsteady), spikes, stall, noise
        self.draw = np.random.default_rng(seed)
        count = len(plan.grid) + len(plan.outside)
        self.truth = self.draw.uniform(0.1, 5.0, count) if truth is None else np.asarray(truth)
        self.seconds, self.until = 0.0, 0.2 * plan.visits
        self.drift = drift
        self.visited = []

    def now(self):
        return self.seconds

    def _slowness(self):
        self.seconds += 0.2
        done = self.seconds / self.until
        stalled = self.stall[0] <= done < self.stall[1]
        spike = 1 + 2 * (self.draw.uniform() < self.spikes)
        return (1 + self.drift * done) * (1.5 if stalled else 1.0) * spike * self.draw.normal(1.0, self.noise)

    def reference(self):
        return self._slowness()

    def state(self):
        return {"clock_mhz": 2000.0, "memory_mhz": None, "slowed_by": [], "others": 0, "load": 0.5}

    def time(self, point):
        self.visited.append(point)
        ms = self.truth[point] * self._slowness()
        if point in self.unsteady:
            ms *= self.draw.uniform(1, 2)
        return Timing(Measurement.of([ms]), 0.0)

    def visitor(self):
        return Visitor(self, now=self.now)


def run(plan, path, bench):
    return list(profile(plan, FAKE, path, bench.visitor()))


@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_right_although_the_machine_slows_by_40_percent_with_spikes_and_a_stall(tmp_path, seed):
    plan = plan_of(rounds=5, seed=seed)
    bench = FakeBench(plan, drift=0.4, spikes=0.03, stall=(0.3, 0.4), seed=seed)
    run(plan, tmp_path / "j", bench)
    table = table_from_journal(plan, tmp_path / "j")
    # All times are those of the machine in its median state, in which the reference takes this long.
    truth = bench.truth * table.provenance.quality["reference_ms"]
    found = np.concatenate([table.block_ms.ravel(), table.outside_ms])
    assert np.abs(found / truth - 1).max() < 0.03
    assert table.provenance.quality["drift_p95_over_p05"] > 1.3


def test_without_the_reference_the_same_machine_would_give_a_wrong_table(tmp_path):
    plan = plan_of(rounds=1, extra=0)
    bench = FakeBench(plan, drift=0.4)
    run(plan, tmp_path / "j", bench)
    raw = {line["point"]: line["ms"] for line in lines_of(tmp_path / "j") if "point" in line}
    ratio = np.array([raw[p] / bench.truth[p] for p in range(len(bench.truth))])
    assert ratio.max() / ratio.min() > 1.3


def test_on_a_steady_machine_every_point_is_visited_once_a_round_in_another_order_each(tmp_path):
    plan = plan_of(rounds=4)
    bench = FakeBench(plan)
    run(plan, tmp_path / "j", bench)
    rounds = np.array(bench.visited).reshape(4, len(bench.truth))
    assert (np.sort(rounds, axis=1) == np.arange(len(bench.truth))).all()
    assert len({tuple(order) for order in rounds.tolist()}) == 4
    assert tuple(rounds[0].tolist()) != tuple(range(len(bench.truth)))


def test_another_seed_is_another_order_and_the_same_seed_the_same(tmp_path):
    orders = []
    for index, seed in enumerate([0, 0, 1]):
        bench = FakeBench(plan_of(rounds=1, seed=seed))
        run(plan_of(rounds=1, seed=seed), tmp_path / str(index), bench)
        orders.append(bench.visited)
    assert orders[0] == orders[1] != orders[2]


def test_points_whose_visits_disagree_are_visited_again_and_no_others(tmp_path):
    plan = plan_of(rounds=3, extra=2)
    bench = FakeBench(plan, unsteady=[3, 20, 37])
    run(plan, tmp_path / "j", bench)
    again = {point for point, count in Counter(bench.visited).items() if count > 3}
    assert again
    assert again <= {3, 20, 37}
    assert max(Counter(bench.visited).values()) <= 5
    table = table_from_journal(plan, tmp_path / "j")
    assert table.provenance.quality["visits"] == len(bench.visited)


def test_the_reference_is_timed_about_every_second_and_before_the_first_and_after_the_last_visit(tmp_path):
    plan = plan_of(rounds=2, extra=0)
    run(plan, tmp_path / "j", FakeBench(plan))
    lines = lines_of(tmp_path / "j")
    looks = [line["at"] for line in lines if "reference_ms" in line]
    visits = [line["at"] for line in lines if "point" in line]
    assert looks[0] < visits[0]
    assert visits[-1] < looks[-1]
    assert max(np.diff(looks)) < LOOK_EVERY + 0.5


def test_what_the_device_was_doing_is_told_in_the_table(tmp_path):
    plan = plan_of(rounds=1, extra=0)
    run(plan, tmp_path / "j", FakeBench(plan))
    quality = table_from_journal(plan, tmp_path / "j").provenance.quality
    assert (quality["clock_mhz_median"], quality["slowed_share"], quality["others_median"]) == (2000.0, 0.0, 0.0)
    assert "memory_mhz_median" not in quality


def test_progress_counts_visits_up_to_the_total(tmp_path):
    plan = plan_of(rounds=2, extra=0)
    total = 2 * (len(plan.grid) + len(plan.outside))
    done = run(plan, tmp_path / "j", FakeBench(plan))
    assert [(p.done, p.total) for p in done] == [(n, total) for n in range(1, total + 1)]


@pytest.mark.parametrize("stop", [1, 12, 39, 50, 77])
def test_a_run_that_stops_goes_on_without_losing_or_repeating_a_visit(tmp_path, stop):
    plan = plan_of(rounds=2, extra=0)
    first = FakeBench(plan)
    progress = profile(plan, FAKE, tmp_path / "j", first.visitor())
    for _ in range(stop):
        next(progress)
    progress.close()
    second = FakeBench(plan)
    run(plan, tmp_path / "j", second)
    assert len(first.visited) == stop
    assert Counter(first.visited + second.visited) == dict.fromkeys(range(len(first.truth)), 2)
    assert run(plan, tmp_path / "j", second) == []


def test_killed_in_the_middle_of_a_line_it_times_that_visit_again(tmp_path):
    plan, path = plan_of(rounds=1, extra=0), tmp_path / "j"
    run(plan, path, FakeBench(plan))
    lines = path.read_bytes().splitlines(keepends=True)
    last = max(index for index, line in enumerate(lines) if b"point" in line)
    path.write_bytes(b"".join(lines[:last]) + lines[last][:-5])
    bench = FakeBench(plan)
    run(plan, path, bench)
    assert bench.visited == [json.loads(lines[last])["point"]]


def test_another_plan_does_not_continue_a_journal(tmp_path):
    bench = FakeBench(plan_of())
    next(profile(plan_of(), FAKE, tmp_path / "j", bench.visitor()))
    with pytest.raises(JournalError, match="journal of other work"):
        run(plan_of(copies=4), tmp_path / "j", bench)


@pytest.mark.parametrize("visits", [0, 1, 38])
def test_an_unfinished_journal_gives_no_table(tmp_path, visits):
    plan = plan_of(rounds=1)
    progress = profile(plan, FAKE, tmp_path / "j", FakeBench(plan).visitor())
    for _ in range(visits):
        next(progress)
    progress.close()
    with pytest.raises(TableError, match=f"{39 - visits} visits of 39 are still to be made"):
        table_from_journal(plan, tmp_path / "j")


# --- a few points ------------------------------------------------------------------------------------------------

WIDE = Grid((16, 48, 96, 192), (1, 2, 3), (8, 16, 32), (8, 16, 32), (16, 64, 256, 512))
LAWFUL = PhysicalModel(
    5, {"qk_macs": 2.0, "v_macs": 1.0, "mlp_macs": 1.5, "scores": 30.0, "stream": 9.0, "block": 0.05}
)


def lawful_bench(plan, **how):
    """A device whose blocks follow the physical model up to a smooth part that it does not know."""
    points = sizes(plan.grid, np.arange(len(plan.grid)))
    blocks = LAWFUL.block_times(points) * (1 + 0.05 * np.sin(np.log2(points[:, 0]) + np.log2(points[:, 4])))
    return FakeBench(plan, truth=[*blocks, *(1.0 + 0.01 * e for e in plan.grid.embed_dim)], **how)


def test_a_few_points_fill_the_grid_and_say_so(tmp_path):
    plan = plan_of(WIDE, points=80)
    bench = lawful_bench(plan, seed=1)
    run(plan, tmp_path / "j", bench)
    table = table_from_journal(plan, tmp_path / "j")
    assert len(set(bench.visited)) == 80 + len(WIDE.embed_dim)
    assert table.kind == "partly-modelled"
    assert table.provenance.quality["timed_points"] == 80
    truth = bench.truth[: len(WIDE)].reshape(WIDE.shape) * table.provenance.quality["reference_ms"]
    error = np.abs(table.block_ms / truth - 1)
    assert error.mean() < 0.02
    # What it says of points that were left out holds for those that were never timed.
    low, high = table.provenance.interval
    assert np.mean((truth / table.block_ms > low) & (truth / table.block_ms < high)) > 0.8
    assert error.mean() < 2 * table.provenance.quality["heldout_mape"]


def test_auto_stops_as_soon_as_the_held_out_error_is_small_enough(tmp_path):
    counts = {}
    for error in (0.03, 0.0001):
        plan = plan_of(WIDE, error=error, rounds=1, extra=0)
        bench = lawful_bench(plan)
        run(plan, tmp_path / f"{error}", bench)
        table = table_from_journal(plan, tmp_path / f"{error}")
        counts[error] = table.provenance.quality["timed_points"]
        assert counts[error] in plan.stages
        if counts[error] < len(WIDE):
            assert table.provenance.quality["heldout_mape"] <= error
    assert counts[0.03] < counts[0.0001] == len(WIDE)
    assert table.kind == "measured", "nothing is left to be modelled"


def test_more_points_go_on_from_the_journal_of_fewer(tmp_path):
    few, more = plan_of(WIDE, points=40, rounds=1, extra=0), plan_of(WIDE, points=60, rounds=1, extra=0)
    first, second = lawful_bench(few), lawful_bench(more)
    run(few, tmp_path / "j", first)
    run(more, tmp_path / "j", second)
    assert len(second.visited) == 20
    assert not set(first.visited) & set(second.visited)


def test_the_first_points_of_the_order_fill_every_axis_evenly_and_all_of_them_come_once():
    points = order(WIDE, 0)
    assert sorted(points) == list(range(len(WIDE)))
    first = sizes(WIDE, points[:64])
    for axis, column in zip(WIDE.axes, first.T, strict=True):
        counts = np.array([np.sum(column == size) for size in axis])
        assert counts.max() <= 2 * counts.min()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"points": 31}, "points must be at least 32"),
        ({"error": 0.0}, "between 0 and 1"),
        ({"error": 1.0}, "between 0 and 1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"copies": 0}, "copies must be at least 1"),
        ({"extra": -1}, "extra must be at least 0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(TableError, match=message):
        plan_of(**wrong)


def check_real_table(table, plan, device, path):
    assert (table.grid, table.target, table.kind) == (plan.grid, plan.target, "measured")
    provenance = table.provenance
    assert device.name in provenance.device
    assert provenance.versions["torch"] == torch.__version__
    assert "median" in provenance.method
    assert provenance.created_at.endswith("+00:00")
    assert provenance.quality["visits"] >= plan.visits
    save_table(table, path)
    assert np.array_equal(load_table(path, expect=plan.target).block_ms, table.block_ms)


def test_a_tiny_grid_timed_on_this_cpu_is_a_measured_table_with_provenance(tmp_path):
    device = find_device("cpu", 1)
    plan = plan_of(TINY, local_target(device, "eager", "fp32", 2, CLASS_TOKEN.tokens), rounds=2, extra=1, copies=2)
    list(profile(plan, device, tmp_path / "j"))
    check_real_table(table_from_journal(plan, tmp_path / "j"), plan, device, tmp_path / "t.parquet")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_tiny_grid_timed_on_cuda_is_a_measured_table_with_provenance(tmp_path, dtype):
    device = find_device("cuda")
    plan = plan_of(TINY, local_target(device, "eager", dtype, 2, CLASS_TOKEN.tokens), rounds=2, extra=1)
    list(profile(plan, device, tmp_path / "j"))
    check_real_table(table_from_journal(plan, tmp_path / "j"), plan, device, tmp_path / "t.parquet")


CHILD = """
import sys
from pathlib import Path
from latency.plan import ProfilePlan
from latency.profiler import profile
from latency.grid import Grid
from latency.runtimes import find_device, local_target
from vit.architecture import Architecture
import json
document = json.loads(sys.argv[1])
arch, device = Architecture.from_dict(document["arch"]), find_device("cpu", 1)
target = local_target(device, "eager", "fp32", 1, arch.tokens)
plan = ProfilePlan(target, Grid.from_dict(document["grid"]), arch, rounds=document["rounds"], extra=0)
for progress in profile(plan, device, Path(document["journal"])):
    print(progress.done, flush=True)
"""


def test_a_process_killed_with_sigkill_goes_on_where_it_was(tmp_path, monkeypatch):
    path, device = tmp_path / "j", find_device("cpu", 1)
    plan = plan_of(TINY, local_target(device, "eager", "fp32", 1, CLASS_TOKEN.tokens), rounds=40, extra=0)
    document = {"arch": CLASS_TOKEN.to_dict(), "grid": TINY.to_dict(), "rounds": 40, "journal": str(path)}
    root = str(Path(profiler.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(document)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    reported = [int(child.stdout.readline()) for _ in range(25)]
    child.send_signal(signal.SIGKILL)
    child.stdout.read()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert reported == list(range(1, 26))

    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()[1:]
    before = [json.loads(line) for line in whole]
    made = [line for line in before if "point" in line]
    assert 25 <= len(made) < plan.visits, "killed in the middle, and nothing that was reported is lost"
    counted = []
    time = Bench.time
    monkeypatch.setattr(Bench, "time", lambda self, point: counted.append(point) or time(self, point))
    list(profile(plan, device, path))
    after = lines_of(path)
    assert after[: len(before)] == before
    assert len(counted) == plan.visits - len(made)
    visits = Counter((line["round"], line["point"]) for line in after if "point" in line)
    assert visits == {(r, p): 1 for r in range(40) for p in range(len(TINY) + 2)}
    assert (table_from_journal(plan, path).block_ms > 0).all()


def test_runs_of_a_block_take_its_copies_in_turn(monkeypatch):
    """So that a block does not find its weights in the innermost cache, where a model's have no room."""
    plan = plan_of(TINY, local_target(find_device(), "eager", "fp32", 2, CLASS_TOKEN.tokens), copies=3)
    ran = []

    def recording(modules, *_):
        return [lambda module=module: ran.append(id(module)) for module in modules]

    monkeypatch.setattr(pytorch, "eager", recording)
    call = Bench(plan, find_device())._block(*plan.grid.point(0))
    for _ in range(6):
        call()
    assert len(set(ran)) == 3
    assert ran[:3] == ran[3:]
