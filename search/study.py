"""Studies: Optuna looks for what has no closed form. Here they are run; what a trial does is plugged in (`Evaluator`).

A worker keeps the study in memory, where sampling takes a millisecond or two, and tells the database what others must
know: that a trial began, that its worker lives, how it ended. (Trials that Optuna itself runs on a database take 20
commits each, most of them for single parameters.) Any number of workers may run a study; one that was killed leaves a
trial that goes silent, and another worker, or the next run, tries it again.

What counts: a trial that ended, pruned or failed for a reason of its own counts once, whoever ran it. One that died
with its worker does not count; its repetition does.
"""

import math
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.errors import StudyError
from search.study_file import METRICS, OneOf, StudySpec, Value
from search.study_storage import insert_trials
from vit.architecture import Architecture
from vit.errors import VitfitError

CHUNK = 100
"""Trials that are run in memory before they are stored; what a kill can cost."""

SPEC, ARCH, METRICS_OF, ERROR, SURPLUS = "vitfit:study", "architecture", "metrics", "error", "surplus"
MARK = "mark"
"""Unique to a trial in memory, by which its row in the database is known again."""


class PrunedError(Exception):
    """Raised by `Report` where a trial is not worth going on with."""


Report = Callable[[int, float], None]
"""Called during training with a step and the accuracy by then. Raises PrunedError."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a trial makes, and what is known of it before it is trained or measured.

    Attributes:
        metrics: by name in METRICS.
        handle: whatever `finish` needs to go on.
    """

    arch: Architecture
    metrics: Mapping[str, float]
    handle: Any = None


class Evaluator(Protocol):
    """What a trial does."""

    def make(self, values: Mapping[str, Value]) -> Made:
        """
        Raises:
            VitfitError: these values make nothing; the trial fails, and the study goes on.
        """

    def finish(self, values: Mapping[str, Value], made: Made, report: Report) -> Mapping[str, float]:
        """The metrics that `make` did not know: train, measure.

        Raises:
            PrunedError: as `report` did.
            VitfitError: it failed.
        """


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial that ended, or many of them.

    Attributes:
        done, total: trials finished in the whole study, by all workers; and wanted.
        state: `complete`, `pruned`, `failed` or `lost` (another worker took it over); of many: `stored`.
    """

    done: int
    total: int
    state: str
    number: int | None = None
    values: Mapping[str, Value] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Optuna's, of all that varies."""
    found: dict[str, BaseDistribution] = {}
    for name, choice in spec.varied.items():
        if isinstance(choice, OneOf):
            found[name] = CategoricalDistribution(choice.values)
        elif choice.whole:
            step = 1 if choice.step is None else int(choice.step)
            found[name] = IntDistribution(int(choice.low), int(choice.high), choice.log, step)
        else:
            found[name] = FloatDistribution(choice.low, choice.high, choice.log, choice.step)
    return found


SAMPLERS: Mapping[str, Callable[[StudySpec, int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda spec, seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=10),
    "nsga2": lambda spec, seed: optuna.samplers.NSGAIISampler(population_size=spec.population, seed=seed),
    "random": lambda spec, seed: optuna.samplers.RandomSampler(seed=seed),
}

PRUNERS: Mapping[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=2),
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna tells every trial, and warns of what is experimental; our callers tell what matters."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_study(spec: StudySpec, storage: RDBStorage) -> optuna.Study:
    """The study in the database, made where it is not there.

    Raises:
        StudyError: one of that name asks something else; says what differs.
    """
    directions = _directions(spec)
    with quiet():
        known = {one.study_name for one in optuna.get_all_study_summaries(storage, include_best_trial=False)}
        try:
            study = optuna.create_study(
                study_name=spec.name, storage=storage, directions=directions, load_if_exists=True
            )
        except ValueError as error:  # another number of objectives
            raise StudyError(f"the study {spec.name} is there with other objectives; choose another name") from error
        asked = spec.identity()
        given: dict[str, Any] = {"objectives": list(spec.objectives), "identity": asked}
        before = study.user_attrs.get(SPEC)
        if before is None and spec.name in known and study.get_trials(deepcopy=False):
            raise StudyError(f"the study {spec.name} in this database is none of vitfit's; choose another name")
        if before is None:
            _declare(study, given)
        elif before["identity"] != asked:
            differs = [key for key, value in asked.items() if before["identity"].get(key) != value]
            raise StudyError(
                f"the study {spec.name} was begun with another {', '.join(differs)}; go on with the file that it was "
                "begun with, or give the new one another name"
            )
    return study


def _declare(study: optuna.Study, given: dict[str, Any]) -> None:
    """Write down what the study asks, unless another worker is just doing so."""
    try:
        study.set_user_attr(SPEC, given)
    except sa.exc.IntegrityError:
        if study.user_attrs.get(SPEC) != given:
            raise


def _directions(spec: StudySpec) -> list[StudyDirection]:
    return [StudyDirection[METRICS[metric].upper()] for metric in spec.objectives]


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those that were asked for."""
    if trial.state == TrialState.FAIL:
        return ERROR in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def run_study(spec: StudySpec, storage: RDBStorage, evaluator: Evaluator, *, poll_s: float = 1.0) -> Iterator[Ended]:
    """Run a study, or go on with it, until as many trials are finished as its file says; one of any number of workers.

    Raises:
        StudyError: see `open_study`.
    """
    study = open_study(spec, storage)
    run = _in_memory if spec.in_memory else _one_by_one
    with quiet():
        steps = run(_Worker(spec, storage, study, evaluator), poll_s)
    while True:
        with quiet():
            step = next(steps, None)
        if step is None:
            return
        yield step


class _Worker:
    """The study in memory, and what connects it to the one in the database."""

    def __init__(self, spec: StudySpec, storage: RDBStorage, study: optuna.Study, evaluator: Evaluator) -> None:
        self.spec, self.storage, self.study, self.evaluator = spec, storage, study, evaluator
        self.study_id = storage.get_study_id_from_name(spec.name)
        self.space = distributions(spec)
        self.mirrored: set[int] = set()
        self.ours: set[str] = set()
        self.latest: list[FrozenTrial] = []
        known = study.get_trials(deepcopy=False)
        self.sampler = SAMPLERS[spec.sampler](spec, spec.seed + 7919 * len(known))
        self.begun = len(known)
        self.shared = any(trial.state == TrialState.RUNNING for trial in known)
        if self.shared:
            self.sampler.reseed_rng()
        self.memory = optuna.create_study(
            sampler=self.sampler, pruner=PRUNERS[spec.pruner](), directions=_directions(spec)
        )

    def sync(self) -> list[FrozenTrial]:
        """Take over what other workers finished; all trials of the database."""
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        if not self.shared and any(trial.user_attrs.get(MARK) not in self.ours for trial in trials[self.begun :]):
            self.sampler.reseed_rng()  # another worker began with the same seed: do not draw what it draws
            self.shared = True
        for trial in trials:
            if trial.number in self.mirrored or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                continue
            self.mirrored.add(trial.number)
            if trial.user_attrs.get(MARK) not in self.ours:
                self.memory.add_trial(trial)
        self.latest = trials
        return trials

    def done(self, trials: list[FrozenTrial]) -> int:
        return sum(map(counts, trials))

    def ask(self, fixed: Mapping[str, Value] | None = None) -> tuple[optuna.Trial, dict[str, Value]]:
        """A trial in memory, and its values with the fixed ones of the study."""
        if fixed is not None:
            self.memory.enqueue_trial(dict(fixed))
        trial = self.memory.ask(self.space)
        mark = uuid.uuid4().hex
        trial.set_user_attr(MARK, mark)
        self.ours.add(mark)
        return trial, {**self.spec.fixed, **trial.params}

    def frozen(self, trial: optuna.Trial) -> FrozenTrial:
        found: FrozenTrial = self.memory.get_trials(deepcopy=False)[trial.number]
        return found

    def make(self, trial: optuna.Trial, values: Mapping[str, Value]) -> Made:
        """Make it, and note what is known of it."""
        made = self.evaluator.make(values)
        trial.set_user_attr(ARCH, made.arch.to_dict())
        self.note(trial, made.metrics)
        return made

    def note(self, trial: optuna.Trial, metrics: Mapping[str, float]) -> None:
        known = {**self.frozen(trial).user_attrs.get(METRICS_OF, {}), **metrics}
        trial.set_user_attr(METRICS_OF, known)
        there = self.frozen(trial).constraints
        for limit in self.spec.constraints:
            if limit.metric in known and limit.metric not in there:
                trial.set_constraint(limit.metric, limit.excess(known[limit.metric]))

    def feasible(self, trial: optuna.Trial) -> bool:
        return all(excess <= 0 for excess in self.frozen(trial).constraints.values())

    def fail(self, trial: optuna.Trial, error: Exception) -> None:
        trial.set_user_attr(ERROR, f"{error}"[:500])
        self.memory.tell(trial, state=TrialState.FAIL)

    def complete(self, trial: optuna.Trial) -> None:
        metrics = self.frozen(trial).user_attrs[METRICS_OF]
        self.memory.tell(trial, [metrics[metric] for metric in self.spec.objectives])


# --- trials that are arithmetic ----------------------------------------------------------------------------------


def _in_memory(worker: _Worker, _poll_s: float) -> Iterator[Ended]:
    spec = worker.spec
    while (done := worker.done(worker.sync())) < spec.trials:
        chunk = []
        for _ in range(min(CHUNK, spec.trials - done)):
            trial, values = worker.ask()
            try:
                worker.make(trial, values)
            except VitfitError as error:
                worker.fail(trial, error)
            else:
                worker.complete(trial)
            chunk.append(worker.frozen(trial))
        insert_trials(worker.storage, worker.study_id, chunk, spec.trials)
        yield Ended(worker.done(worker.sync()), spec.trials, "stored")


# --- trials that take a while ------------------------------------------------------------------------------------


def _one_by_one(worker: _Worker, poll_s: float) -> Iterator[Ended]:
    spec, looked, trials = worker.spec, -math.inf, worker.sync()
    every_s = worker.storage.get_heartbeat_interval() or 1
    while True:
        if time.monotonic() - looked >= every_s:
            optuna.storages.fail_stale_trials(worker.study)
            looked, trials = time.monotonic(), worker.sync()
        done = worker.done(trials)
        if done >= spec.trials:
            return
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        claimed = next((one for one in waiting if _claim(worker, one)), None)
        busy = sum(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials)
        if claimed is None and done + busy >= spec.trials:
            time.sleep(poll_s)  # the last ones are being run; should their worker die, they come back
            trials = worker.sync()
            continue
        ended = _again(worker, claimed) if claimed is not None else _new(worker, len(trials))
        trials = worker.latest if ended is not None else worker.sync()
        if ended is not None:
            yield ended


def _claim(worker: _Worker, trial: FrozenTrial) -> bool:
    try:
        return worker.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    except optuna.exceptions.UpdateFinishedTrialError:
        return False


def _new(worker: _Worker, known: int) -> Ended | None:
    """A trial of the sampler's choice."""
    trial, values = worker.ask()
    try:
        made = worker.make(trial, values)
    except VitfitError as error:
        worker.fail(trial, error)
        return _store(worker, trial, "failed", str(error))
    if worker.spec.trains and not worker.feasible(trial):
        worker.memory.tell(trial, state=TrialState.PRUNED)  # known to be outside the limits: training is no use
        return _store(worker, trial, "pruned", "outside the constraints")
    begun = worker.frozen(trial)
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=begun.params,
        distributions=begun.distributions,
        user_attrs=begun.user_attrs,
        system_attrs=begun.system_attrs,
    )
    trial_id = worker.storage.create_new_trial(worker.study_id, template)
    number = worker.storage.get_trial_number_from_id(trial_id)
    if number != known and _is_surplus(worker, begun, number, known):
        worker.storage.set_trial_user_attr(trial_id, SURPLUS, True)
        worker.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        worker.memory.tell(trial, state=TrialState.FAIL)
        return None
    return _finish(worker, trial, values, made, trial_id, number)


def _is_surplus(worker: _Worker, begun: FrozenTrial, number: int, known: int) -> bool:
    """Whether others began trials since we looked, and with them there are enough, or they drew the same."""
    earlier = [one for one in worker.study.get_trials(deepcopy=False) if one.number < number]
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    drawn_twice = any(one.params == begun.params for one in earlier if one.number >= known)
    return drawn_twice or sum(counts(one) or one.state in unfinished for one in earlier) >= worker.spec.trials


def _again(worker: _Worker, waiting: FrozenTrial) -> Ended | None:
    """A trial whose worker died, from its start."""
    trial, values = worker.ask(waiting.params)
    try:
        made = worker.make(trial, values)
    except VitfitError as error:
        worker.storage.set_trial_user_attr(waiting._trial_id, ERROR, f"{error}"[:500])
        worker.storage.set_trial_state_values(waiting._trial_id, TrialState.FAIL)
        worker.fail(trial, error)
        return _ended(worker, trial, waiting.number, "failed", str(error))
    return _finish(worker, trial, values, made, waiting._trial_id, waiting.number)


def _finish(
    worker: _Worker, trial: optuna.Trial, values: Mapping[str, Value], made: Made, trial_id: int, number: int
) -> Ended:
    """Train and measure, with a sign of life every so often; then tell the database."""
    storage, spec = worker.storage, worker.spec

    def report(step: int, accuracy: float) -> None:
        if spec.pruner == "none":
            return
        trial.report(accuracy, step)
        storage.set_trial_intermediate_value(trial_id, step, accuracy)
        if trial.should_prune():
            raise PrunedError

    state, why = TrialState.COMPLETE, None
    before = worker.frozen(trial).system_attrs.keys() | set()
    with _heartbeat(storage, trial_id):
        try:
            worker.note(trial, worker.evaluator.finish(values, made, report))
        except PrunedError:
            state = TrialState.PRUNED
        except VitfitError as error:
            state, why = TrialState.FAIL, str(error)
            trial.set_user_attr(ERROR, why[:500])
    try:
        found = worker.frozen(trial)
        if why is not None:
            storage.set_trial_user_attr(trial_id, ERROR, why[:500])
        elif found.user_attrs[METRICS_OF] != made.metrics:
            storage.set_trial_user_attr(trial_id, METRICS_OF, found.user_attrs[METRICS_OF])
        for key in found.system_attrs.keys() - before:  # constraints on what is known now, rungs of the pruner
            storage.set_trial_system_attr(trial_id, key, found.system_attrs[key])
        metrics = found.user_attrs[METRICS_OF]
        numbers = [metrics[one] for one in spec.objectives] if state == TrialState.COMPLETE else None
        storage.set_trial_state_values(trial_id, state, numbers)
    except optuna.exceptions.UpdateFinishedTrialError:
        worker.memory.tell(trial, state=TrialState.FAIL)  # taken for dead; its repetition counts
        return _ended(worker, trial, number, "lost", "another worker took the trial over")
    if state == TrialState.COMPLETE:
        worker.complete(trial)
    else:
        worker.memory.tell(trial, state=state)
    words = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return _ended(worker, trial, number, words[state], why)


def _store(worker: _Worker, trial: optuna.Trial, state: str, why: str) -> Ended:
    """A trial that ended before it was announced."""
    insert_trials(worker.storage, worker.study_id, [worker.frozen(trial)])
    return _ended(worker, trial, None, state, why)


def _ended(worker: _Worker, trial: optuna.Trial, number: int | None, state: str, error: str | None) -> Ended:
    found = worker.frozen(trial)
    done = worker.done(worker.sync())
    return Ended(
        done,
        worker.spec.trials,
        state,
        number,
        dict(found.params),
        dict(found.user_attrs.get(METRICS_OF, {})),
        error,
    )


@contextmanager
def _heartbeat(storage: RDBStorage, trial_id: int) -> Iterator[None]:
    """Says every so often that the trial is being run."""
    stop = threading.Event()
    interval = storage.get_heartbeat_interval()

    def beat() -> None:
        while not stop.wait(interval):
            storage.record_heartbeat(trial_id)

    storage.record_heartbeat(trial_id)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
