"""Studies find what they should, on both databases; kills, resumption and several workers count nothing twice."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from api.db import normal_url
from search.errors import StudyError
from search.study import PRUNERS, Made, counts, open_study, quiet, run_study
from search.study_file import parse_study
from search.study_report import complete_trials, standing, studies
from search.study_storage import close_storage, insert_trials, open_storage
from tests.search.study_worker import Quick, accuracy_of
from vit.errors import ArchitectureError
from vit.presets import preset

ROOT = Path(__file__).parents[2]

COSTS = parse_study("""
study: costs
make: redistribute
target: macs
objectives: [params, latency_ms]
constraints: {macs: {at_least: 400}}
trials: 60
sampler: nsga2
population: 10
space: {embed_dim: {from: 8, to: 400}, depth: [6, 12]}
""")

TRAINED = """
study: trained
make: redistribute
target: macs
objectives: [accuracy]
constraints: {params: {at_most: 600}}
trials: 12
data: digits
space: {embed_dim: {from: 8, to: 400}}
train: {steps: 3, lr: {from: 0.001, to: 0.1, log: true}}
"""


@pytest.fixture
def storage(database_url):
    opened = open_storage(normal_url(database_url), heartbeat_s=1, grace_s=2)
    yield opened
    close_storage(opened)


def loaded(name, storage):
    with quiet():
        return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


class Costs:
    """Arithmetic."""

    def make(self, values):
        width = float(values["embed_dim"])
        if width == 13:
            raise ArchitectureError("no model has 13 channels")
        return Made(preset("deit-t"), {"latency_ms": 1000 - width, "params": width, "macs": 4 * width})


def test_a_study_in_memory_is_stored_and_gone_on_with(storage):
    steps = list(run_study(COSTS, storage, Costs()))
    assert [step.done for step in steps] == [60]
    trials = loaded("costs", storage)
    assert [trial.number for trial in trials] == list(range(60))
    assert len(trials) == sum(map(counts, trials)) == 60
    assert list(run_study(COSTS, storage, Costs())) == []
    more = list(run_study(replace(COSTS, trials=75), storage, Costs()))
    assert more[-1].done == 75
    assert loaded("costs", storage)[:60] == trials


def test_constraints_are_met_and_the_front_is_what_brute_force_finds(storage):
    list(run_study(COSTS, storage, Costs()))
    found = standing("costs", storage)
    every = [one for one in complete_trials("costs", storage) if one.metrics["macs"] >= 400]
    assert all(one.feasible == (one.metrics["macs"] >= 400) for one in complete_trials("costs", storage))

    def points(trials):
        return {(one.metrics["params"], one.metrics["latency_ms"]) for one in trials}

    front = {
        (p, ms)
        for p, ms in points(every)
        if not any(a <= p and b <= ms and (a, b) != (p, ms) for a, b in points(every))
    }
    assert points(found.best) == front
    assert front


def test_values_that_make_nothing_fail_the_trial_and_not_the_study(storage):
    spec = replace(COSTS, name="broken", trials=20, varied={"embed_dim": COSTS.varied["embed_dim"]}, sampler="random")
    spec = replace(spec, varied={"embed_dim": replace(spec.varied["embed_dim"], low=12, high=14)})
    list(run_study(spec, storage, Costs()))
    states = standing("broken", storage).states
    assert states["complete"] + states["failed"] == 20
    assert states["failed"] > 0
    failed = [trial for trial in loaded("broken", storage) if trial.user_attrs.get("error")]
    assert {trial.user_attrs["error"] for trial in failed} == {"no model has 13 channels"}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_every_sampler_trains_as_many_trials_as_are_asked_for(storage, sampler):
    spec = replace(parse_study(TRAINED), sampler=sampler)
    steps = list(run_study(spec, storage, Quick()))
    assert [step.done for step in steps] == list(range(1, 13))
    found = standing("trained", storage)
    assert found.states["complete"] + found.states["pruned"] == 12
    for trial in complete_trials("trained", storage):
        assert trial.metrics["accuracy"] == accuracy_of(trial.values)
        assert trial.feasible
    best = max(complete_trials("trained", storage), key=lambda one: one.metrics["accuracy"])
    assert found.best[0].metrics == best.metrics
    pruned = [trial for trial in loaded("trained", storage) if trial.state == optuna.trial.TrialState.PRUNED]
    assert all(trial.params["embed_dim"] > 300 for trial in pruned)  # known to be too large before any training


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != "none"])
def test_a_pruner_stops_what_falls_behind(storage, pruner):
    spec = replace(parse_study(TRAINED), pruner=pruner, trials=16, constraints=(), sampler="random")
    steps = list(run_study(spec, storage, Quick()))
    stopped = [step for step in steps if step.state == "pruned"]
    assert 0 < len(stopped) < 16
    reported = {t.number: t.intermediate_values for t in loaded("trained", storage)}
    assert all(0 < len(reported[step.number]) <= 3 for step in stopped)


def test_a_study_that_asks_something_else_is_refused_by_what_differs(storage):
    open_study(COSTS, storage)
    with pytest.raises(StudyError, match="begun with another sampler, seed; go on with the file"):
        open_study(replace(COSTS, sampler="tpe", seed=4), storage)
    with pytest.raises(StudyError, match="other objectives"):
        open_study(replace(COSTS, objectives=("params",)), storage)
    with pytest.raises(StudyError, match="there is no study 'x'; there are: costs"):
        standing("x", storage)
    assert [one.name for one in studies(storage)] == ["costs"]


def test_many_at_once_are_the_same_rows_as_one_after_another(storage):
    with quiet():
        memory = optuna.create_study(directions=["minimize", "maximize"])

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            trial.suggest_categorical("c", ["a", "b"])
            trial.suggest_int("n", 2, 64, log=True)
            trial.set_user_attr("note", {"x": [x, None]})
            trial.set_constraint("late", x - 0.5)
            return x, float("inf") if x < 0.2 else -x

        memory.optimize(objective, n_trials=25)
        slow = optuna.create_study(study_name="slow", storage=storage, directions=["minimize", "maximize"])
        slow.add_trials(memory.trials)
        fast = optuna.create_study(study_name="fast", storage=storage, directions=["minimize", "maximize"])
        assert insert_trials(storage, storage.get_study_id_from_name("fast"), memory.trials) == 25
        ours, theirs = fast.get_trials(), slow.get_trials()
    for mine, other in zip(ours, theirs, strict=True):
        for name in (
            "number",
            "state",
            "values",
            "params",
            "distributions",
            "user_attrs",
            "system_attrs",
            "datetime_start",
            "datetime_complete",
            "constraints",
        ):
            assert getattr(mine, name) == getattr(other, name), name
    assert insert_trials(storage, storage.get_study_id_from_name("fast"), memory.trials, most=30) == 5


# --- real processes ----------------------------------------------------------------------------------------------


def start(url, path, *rest):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "search" / "study_worker.py"), url, str(path), *map(str, rest)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(worker):
    out, err = worker.communicate(timeout=120)
    assert worker.returncode == 0, err
    return out.splitlines()


def killed_in_its_trial(url, path, mark, at):
    """Starts a worker, kills it with -9 in the middle of a trial, and gives that trial's learning rate."""
    worker = start(url, path, at, mark)
    for _ in range(600):
        if mark.exists() and mark.read_text():
            break
        assert worker.poll() is None, worker.communicate()[1]
        time.sleep(0.1)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    return float(mark.read_text())


def check_nothing_is_counted_twice(storage, name, count, lost_lr):
    trials = loaded(name, storage)
    counted = [trial for trial in trials if counts(trial)]
    assert len(counted) == count
    (died,) = [trial for trial in trials if not counts(trial) and "surplus" not in trial.user_attrs]
    assert died.state == optuna.trial.TrialState.FAIL
    assert died.params["train.lr"] == lost_lr
    again = [trial for trial in counted if trial.params == died.params]
    assert len(again) == 1
    assert again[0].system_attrs["failed_trial"] == died.number
    assert len({tuple(sorted(trial.params.items())) for trial in counted}) == count  # no draw was made twice
    assert standing(name, storage).states["died"] == 1


def test_a_killed_study_is_resumed_and_its_trial_tried_again(storage, database_url, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(TRAINED.replace("at_most: 600", "at_most: 1000"))
    url = normal_url(database_url)
    lost = killed_in_its_trial(url, path, tmp_path / "mark", at=4)
    assert len(loaded("trained", storage)) == 4
    time.sleep(2.5)  # until the silent trial counts as dead
    lines = finished(start(url, path))
    assert lines[-1] == "complete 12"
    check_nothing_is_counted_twice(storage, "trained", 12, lost)


def test_two_workers_share_a_study_on_postgresql_and_one_is_killed(postgresql_server, tmp_path):
    from tests import postgresql

    path = tmp_path / "study.yaml"
    path.write_text(TRAINED.replace("at_most: 600", "at_most: 1000").replace("trials: 12", "trials: 30"))
    with postgresql.database(postgresql_server) as given:
        url = normal_url(given)
        storage = open_storage(url, heartbeat_s=1, grace_s=2)
        open_study(parse_study(path.read_text()), storage)
        other = start(url, path)
        lost = killed_in_its_trial(url, path, tmp_path / "mark", at=3)
        lines = finished(other)
        assert lines[-1].endswith(" 30")
        check_nothing_is_counted_twice(storage, "trained", 30, lost)
        ours = [line for line in lines if line.startswith("complete")]
        assert 27 <= len(ours) <= 28  # the rest are the other one's, who ended two
        close_storage(storage)


def test_workers_end_with_exactly_as_many_trials_as_were_asked_for(postgresql_server, tmp_path):
    from tests import postgresql

    path = tmp_path / "study.yaml"
    path.write_text(TRAINED.replace("at_most: 600", "at_most: 1000").replace("trials: 12", "trials: 25"))
    with postgresql.database(postgresql_server) as given:
        url = normal_url(given)
        workers = [start(url, path) for _ in range(2)]  # and who comes first makes the tables
        ended = [line for worker in workers for line in finished(worker)]
        storage = open_storage(url, heartbeat_s=1, grace_s=2)
        trials = loaded("trained", storage)
        assert sum(map(counts, trials)) == len(ended) == 25
        assert all(counts(trial) or "surplus" in trial.user_attrs for trial in trials)
        close_storage(storage)
