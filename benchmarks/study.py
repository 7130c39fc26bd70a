"""How much does keeping a study cost a trial, at 1,000 trials, on SQLite and on PostgreSQL?

    $ python benchmarks/study.py [--quick] [--trials 1000] [--asked 60] [--url postgresql://user@host/name]

A study of six parameters, of which --trials less --asked are there already. The trials that are asked for do nothing
at all, so that their time is what the study costs: sampling, announcing the trial, signs of life, its result. Beside
it what the same takes where Optuna's own `optimize` runs the trials on the database, and what a trial takes that runs
in memory and is stored a hundred at a time. The goal is 5 % of a trial of 2 seconds.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
from common import postgresql, print_goal, print_machine, spread

from api.db import normal_url
from search.study import Made, Report, distributions, open_study, quiet, run_study
from search.study_file import StudySpec, Value, parse_study
from search.study_storage import close_storage, insert_trials, open_storage
from vit.presets import preset

TRIAL_S, SHARE = 2.0, 0.05
SPEC = parse_study("""
study: costs
make: redistribute
target: macs
objectives: [accuracy]
constraints: {params: {at_most: 100000000}}
data: digits
space:
  profile: [nvidia, poster]
  embed_dim: {from: 104, to: 512, step: 8}
  mlp_dim.scale: {from: 0.5, to: 2, log: true}
  qk_dim.middle: {from: 0.5, to: 2}
  v_dim.scale: {from: 0.5, to: 2}
train: {steps: 100, lr: {from: 0.0001, to: 0.01, log: true}}
""")
ARCH = preset("deit-s")


class Nothing:
    """Trials of no time at all."""

    def make(self, values: Mapping[str, Value]) -> Made:
        width = float(values["embed_dim"])
        return Made(ARCH, {"latency_ms": width, "params": width, "macs": width})

    def finish(self, values: Mapping[str, Value], made: Made, report: Report) -> Mapping[str, float]:
        return {"accuracy": float(values["train.lr"])}


def before(spec: StudySpec, count: int) -> list[optuna.trial.FrozenTrial]:
    """Trials that are there already."""
    rng = np.random.default_rng(0)
    with quiet():
        memory = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
        space = distributions(spec)
        for _ in range(count):
            trial = memory.ask(space)
            trial.set_user_attr("architecture", ARCH.to_dict())
            trial.set_user_attr("metrics", {"accuracy": rng.random(), "latency_ms": 1.0, "params": 1.0, "macs": 1.0})
            trial.set_constraint("params", -1.0)
            memory.tell(trial, rng.random())
        return list(memory.get_trials(deepcopy=False))


def ours(url: str, sampler: str, trials: int, asked: int) -> list[float]:
    """Milliseconds of every trial that was asked for."""
    storage = open_storage(url)
    spec = replace(SPEC, name=f"ours-{sampler}", sampler=sampler, trials=trials)
    open_study(spec, storage)
    insert_trials(storage, storage.get_study_id_from_name(spec.name), before(spec, trials - asked))
    times = []
    steps = run_study(spec, storage, Nothing())
    while True:
        start = time.perf_counter()
        if next(steps, None) is None:
            break
        times.append(1e3 * (time.perf_counter() - start))
    close_storage(storage)
    return times[1:]  # the first reads all that is there


def optunas(url: str, trials: int, asked: int) -> list[float]:
    """The same by Optuna's own loop on the database."""
    storage, spec, times = open_storage(url), replace(SPEC, name="optuna"), []
    space = distributions(spec)
    with quiet():
        study = optuna.create_study(
            study_name=spec.name, storage=storage, direction="maximize", sampler=optuna.samplers.TPESampler(seed=0)
        )
        insert_trials(storage, storage.get_study_id_from_name(spec.name), before(spec, trials - asked))

        def objective(trial: optuna.Trial) -> float:
            for name, kind in space.items():
                trial._suggest(name, kind)
            trial.set_user_attr("architecture", ARCH.to_dict())
            trial.set_user_attr("metrics", {"accuracy": 1.0, "latency_ms": 1.0, "params": 1.0, "macs": 1.0})
            trial.set_constraint("params", -1.0)
            return 1.0

        for _ in range(asked):
            start = time.perf_counter()
            study.optimize(objective, n_trials=1)
            times.append(1e3 * (time.perf_counter() - start))
    close_storage(storage)
    return times[1:]


def stored(url: str, count: int) -> float:
    """Milliseconds of a trial in memory, stored with a hundred others."""
    storage = open_storage(url)
    spec = replace(SPEC, name="memory", objectives=("latency_ms",), data=None, trains=False, trials=count)
    spec = replace(spec, varied={k: v for k, v in spec.varied.items() if not k.startswith("train.")}, fixed={})
    start = time.perf_counter()
    for _ in run_study(replace(spec, sampler="nsga2"), storage, Nothing()):
        pass
    passed = time.perf_counter() - start
    close_storage(storage)
    return 1e3 * passed / count


def measured(name: str, url: str, trials: int, asked: int) -> float:
    """Prints what trials cost; the larger of the samplers' medians, in ms."""
    medians = []
    for sampler in ("tpe", "nsga2"):
        times = ours(url, sampler, trials, asked)
        medians.append(float(np.median(times)))
        print(f"{name:11} {sampler:6} {spread(times)} ms a trial")
    print(f"{name:11} tpe by Optuna's optimize: {spread(optunas(url, trials, max(asked // 3, 3)))} ms a trial")
    print(f"{name:11} nsga2 in memory, stored 100 at a time: {stored(url, trials):.2f} ms a trial")
    return max(medians)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 trials: figures mean nothing")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--asked", type=int, default=60)
    parser.add_argument("--url", help="of an empty PostgreSQL database")
    options = parser.parse_args()
    trials, asked = (60, 6) if options.quick else (options.trials, options.asked)

    print_machine("optuna", "sqlalchemy", "psycopg")
    print(f"{asked} trials up to number {trials:,}, seed 0; median and range")
    most = 1e3 * TRIAL_S * SHARE
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print_goal(
            "study-sqlite-ms",
            measured("SQLite", f"sqlite:///{folder / 'study.sqlite'}", trials, asked),
            most,
            at_least=False,
        )
        url = options.url or stack.enter_context(postgresql())
        if url is None:
            print("PostgreSQL is not installed here: not measured")
        else:
            print_goal(
                "study-postgresql-ms", measured("PostgreSQL", normal_url(url), trials, asked), most, at_least=False
            )


if __name__ == "__main__":
    main()
