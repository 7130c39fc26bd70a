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
from latency.errors import TableError
from latency.grid import Grid
from latency.measurement import Measurement
from latency.profiler import ProfilePlan, profile, table_from_journal
from latency.runtimes import Device, find_device, local_target, pytorch
from latency.storage import load_table, save_table
from latency.target import Target
from latency.timer import Timing
from tests.cases import CLASS_TOKEN

FAKE = Device("cpu", "fake", 1)
GRID = Grid((8, 16, 24), (1, 2), (8, 16), (8,), (16, 32, 48))
TINY = Grid((8, 16), (1, 2), (4, 8), (4,), (8, 16))


def plan_of(grid=GRID, target=None, **changes):
    target = target or Target(FAKE.slug, "eager", "fp32", 1, CLASS_TOKEN.tokens)
    return ProfilePlan(target, grid, CLASS_TOKEN, **changes)


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()[1:]]


class FakeBench:
    """Points with a known time on a machine that gets slower from visit to visit, with spikes.

    Attributes:
        truth: ms of every point on the machine at rest; the reference takes 1 ms.
        visited: points in order.
    """

    def __init__(self, plan, drift=0.0, spikes=0.0, unsteady=(), seed=0):
        self.unsteady, self.spikes = set(unsteady), spikes
        self.draw = np.random.default_rng(seed)
        self.truth = self.draw.uniform(0.1, 5.0, plan.points)
        self.per_visit = drift / (plan.rounds * plan.points)
        self.visited = []

    def _slowness(self):
        spike = 1 + 2 * (self.draw.uniform() < self.spikes)
        return (1 + self.per_visit * len(self.visited)) * spike * self.draw.normal(1.0, 0.005)

    def reference(self):
        return self._slowness()

    def time(self, point):
        self.visited.append(point)
        ms = self.truth[point] * self._slowness()
        if point in self.unsteady:
            ms *= self.draw.uniform(1, 2)
        return Timing(Measurement.of([ms]), 0.0)


@pytest.fixture
def fake(monkeypatch):
    """Make the profiler time a FakeBench; returns how to build it."""

    def install(plan, **how):
        bench = FakeBench(plan, **how)
        monkeypatch.setattr(profiler, "_Bench", lambda *_: bench)
        return bench

    return install


def run(plan, path):
    return list(profile(plan, FAKE, path))


@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_right_although_the_machine_slows_by_40_percent_and_has_spikes(fake, tmp_path, seed):
    plan = plan_of(rounds=5, seed=seed)
    bench = fake(plan, drift=0.4, spikes=0.03, seed=seed)
    run(plan, tmp_path / "j")
    table = table_from_journal(plan, FAKE, tmp_path / "j")
    # All times are those of the machine in its median state, in which the reference takes this long.
    truth = bench.truth * table.provenance.quality["reference_ms"]
    found = np.concatenate([table.block_ms.ravel(), table.outside_ms])
    assert np.abs(found / truth - 1).max() < 0.03
    assert table.provenance.quality["drift_p95_over_p05"] > 1.3


def test_on_a_steady_machine_every_point_is_visited_once_a_round_in_another_order_each(fake, tmp_path):
    plan = plan_of(rounds=4)
    bench = fake(plan)
    run(plan, tmp_path / "j")
    rounds = np.array(bench.visited).reshape(4, plan.points)
    assert (np.sort(rounds, axis=1) == np.arange(plan.points)).all()
    assert len({tuple(order) for order in rounds.tolist()}) == 4
    assert tuple(rounds[0].tolist()) != tuple(range(plan.points))


def test_another_seed_is_another_order_and_the_same_seed_the_same(fake, tmp_path):
    orders = []
    for index, seed in enumerate([0, 0, 1]):
        bench = fake(plan_of(rounds=1, seed=seed))
        run(plan_of(rounds=1, seed=seed), tmp_path / str(index))
        orders.append(bench.visited)
    assert orders[0] == orders[1] != orders[2]


def test_points_whose_visits_disagree_are_visited_again_and_no_others(fake, tmp_path):
    plan = plan_of(rounds=3, extra=2)
    bench = fake(plan, unsteady=[3, 20, 37])
    run(plan, tmp_path / "j")
    again = {point for point, count in Counter(bench.visited).items() if count > 3}
    assert again
    assert again <= {3, 20, 37}
    assert max(Counter(bench.visited).values()) <= 5
    table = table_from_journal(plan, FAKE, tmp_path / "j")
    assert table.provenance.quality["visits"] == len(bench.visited)


def test_progress_counts_visits_up_to_the_total(fake, tmp_path):
    plan = plan_of(rounds=2, extra=0)
    fake(plan)
    total = 2 * plan.points
    assert [(p.done, p.total) for p in run(plan, tmp_path / "j")] == [(n, total) for n in range(1, total + 1)]


@pytest.mark.parametrize("stop", [1, 12, 39, 50, 77])
def test_a_run_that_stops_goes_on_without_losing_or_repeating_a_visit(fake, tmp_path, stop):
    plan = plan_of(rounds=2, extra=0)
    first = fake(plan)
    progress = profile(plan, FAKE, tmp_path / "j")
    for _ in range(stop):
        next(progress)
    progress.close()
    second = fake(plan)
    run(plan, tmp_path / "j")
    assert len(first.visited) == stop
    assert Counter(first.visited + second.visited) == dict.fromkeys(range(plan.points), 2)
    assert run(plan, tmp_path / "j") == []


def test_killed_in_the_middle_of_a_line_it_times_that_visit_again(fake, tmp_path):
    plan, path = plan_of(rounds=1, extra=0), tmp_path / "j"
    fake(plan)
    run(plan, path)
    before = lines_of(path)
    path.write_bytes(path.read_bytes()[:-5])
    bench = fake(plan)
    run(plan, path)
    assert bench.visited == [before[-1]["point"]]
    assert lines_of(path)[:-1] == before[:-1]


def test_another_plan_does_not_continue_a_journal(fake, tmp_path):
    fake(plan_of())
    next(profile(plan_of(), FAKE, tmp_path / "j"))
    with pytest.raises(TableError, match="journal of other work"):
        run(plan_of(rounds=4), tmp_path / "j")


@pytest.mark.parametrize("visits", [0, 1, 38])
def test_an_unfinished_journal_gives_no_table(fake, tmp_path, visits):
    plan = plan_of(rounds=1)
    fake(plan)
    progress = profile(plan, FAKE, tmp_path / "j")
    for _ in range(visits):
        next(progress)
    progress.close()
    with pytest.raises(TableError, match=f"{plan.points - visits} of {plan.points} points have no visit yet"):
        table_from_journal(plan, FAKE, tmp_path / "j")


def check_real_table(table, plan, device, path):
    assert (table.grid, table.target, table.kind) == (plan.grid, plan.target, "measured")
    provenance = table.provenance
    assert device.name in provenance.device
    assert provenance.versions["torch"] == torch.__version__
    assert "median" in provenance.method
    assert provenance.created_at.endswith("+00:00")
    assert provenance.quality["visits"] >= plan.rounds * plan.points
    save_table(table, path)
    assert np.array_equal(load_table(path, expect=plan.target).block_ms, table.block_ms)


def test_a_tiny_grid_timed_on_this_cpu_is_a_measured_table_with_provenance(tmp_path):
    device = find_device("cpu", 1)
    plan = plan_of(TINY, local_target(device, "eager", "fp32", 2, CLASS_TOKEN.tokens), rounds=2, extra=1, copies=2)
    list(profile(plan, device, tmp_path / "j"))
    check_real_table(table_from_journal(plan, device, tmp_path / "j"), plan, device, tmp_path / "t.parquet")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_tiny_grid_timed_on_cuda_is_a_measured_table_with_provenance(tmp_path, dtype):
    device = find_device("cuda")
    plan = plan_of(TINY, local_target(device, "eager", dtype, 2, CLASS_TOKEN.tokens), rounds=2, extra=1)
    list(profile(plan, device, tmp_path / "j"))
    check_real_table(table_from_journal(plan, device, tmp_path / "j"), plan, device, tmp_path / "t.parquet")


CHILD = """
import sys
from pathlib import Path
from latency.profiler import ProfilePlan, profile
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
    assert 25 <= len(before) < 40 * plan.points, "killed in the middle, and nothing that was reported is lost"
    counted = []
    time = profiler._Bench.time
    monkeypatch.setattr(profiler._Bench, "time", lambda self, point: counted.append(point) or time(self, point))
    list(profile(plan, device, path))
    after = lines_of(path)
    assert after[: len(before)] == before
    assert len(counted) == 40 * plan.points - len(before)
    visits = Counter((line["round"], line["point"]) for line in after)
    assert visits == {(r, p): 1 for r in range(40) for p in range(plan.points)}
    assert (table_from_journal(plan, device, path).block_ms > 0).all()


def test_runs_of_a_block_take_its_copies_in_turn(monkeypatch):
    """So that a block does not find its weights in the innermost cache, where a model's have no room."""
    plan = plan_of(TINY, local_target(find_device(), "eager", "fp32", 2, CLASS_TOKEN.tokens), copies=3)
    ran = []

    def recording(modules, *_):
        return [lambda module=module: ran.append(id(module)) for module in modules]

    monkeypatch.setattr(pytorch, "eager", recording)
    call = profiler._Bench(plan, find_device())._block(*plan.grid.point(0))
    for _ in range(6):
        call()
    assert len(set(ran)) == 3
    assert ran[:3] == ran[3:]
