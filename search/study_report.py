"""What studies found: how far they are, and their best trials."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.errors import StudyError
from search.study import ARCH, ERROR, METRICS_OF, SPEC, SURPLUS, quiet
from search.study_file import Value
from vit.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial that ended well.

    Attributes:
        feasible: whether it is within all constraints.
        retry_of: number of the trial that died with its worker, and that this one repeats.
    """

    number: int
    values: Mapping[str, Value]
    metrics: Mapping[str, float]
    arch: Architecture
    feasible: bool
    retry_of: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """
    Attributes:
        states: how many trials are `complete`, `pruned`, `failed`, `running`, `waiting`, and `died` with a worker.
        best: of one objective the best feasible trial, of several those that none other is better than in all.
    """

    name: str
    objectives: tuple[str, ...]
    states: Mapping[str, int]
    best: tuple[Trial, ...]
    identity: Mapping[str, Any]


def standing(name: str, storage: RDBStorage) -> Standing:
    """
    Raises:
        StudyError: no such study of vitfit's.
    """
    with quiet():
        study = _load(name, storage)
        spec = study.user_attrs[SPEC]
        trials: list[FrozenTrial] = study.get_trials(deepcopy=False)
        states = dict.fromkeys(("complete", "pruned", "failed", "running", "waiting", "died"), 0)
        for trial in trials:
            state = trial.state.name.lower()
            if trial.state == TrialState.FAIL:
                state = "failed" if ERROR in trial.user_attrs else "died"
                if SURPLUS in trial.user_attrs:
                    continue
            states[state] += 1
        signs = [1 if one == StudyDirection.MINIMIZE else -1 for one in study.directions]
    found = [_trial(one) for one in trials if one.state == TrialState.COMPLETE]
    within = [one for one in found if one.feasible]
    objectives = tuple(spec["objectives"])
    scored = [([sign * one.metrics[m] for sign, m in zip(signs, objectives, strict=True)], one) for one in within]
    best = [one for scores, one in scored if not any(_beats(other, scores) for other, _ in scored)]
    if len(objectives) == 1:
        best = best[:1]
    best.sort(key=lambda one: one.metrics[objectives[-1]])
    return Standing(name, objectives, states, tuple(best), spec["identity"])


def _beats(a: list[float], b: list[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def complete_trials(name: str, storage: RDBStorage) -> list[Trial]:
    """All trials of a study that ended well, each counted once.

    Raises:
        StudyError: no such study of vitfit's.
    """
    with quiet():
        trials = _load(name, storage).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [_trial(one) for one in trials]


def studies(storage: RDBStorage) -> list[Standing]:
    """Every study of vitfit's in the database, by name."""
    with quiet():
        found = optuna.get_all_study_summaries(storage, include_best_trial=False)
    return [
        standing(one.study_name, storage)
        for one in sorted(found, key=lambda one: one.study_name)
        if SPEC in one.user_attrs
    ]


def _load(name: str, storage: RDBStorage) -> optuna.Study:
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        study = None
    if study is None or SPEC not in study.user_attrs:
        known = [
            one.study_name
            for one in optuna.get_all_study_summaries(storage, include_best_trial=False)
            if SPEC in one.user_attrs
        ]
        raise StudyError(f"there is no study {name!r}; there are: {', '.join(sorted(known)) or 'none yet'}")
    return study


def _trial(trial: FrozenTrial) -> Trial:
    return Trial(
        trial.number,
        dict(trial.params),
        dict(trial.user_attrs[METRICS_OF]),
        Architecture.from_dict(trial.user_attrs[ARCH]),
        all(excess <= 0 for excess in trial.constraints.values()),
        trial.system_attrs.get("failed_trial"),  # as Optuna's RetryHeartbeatStaleTrialCallback notes it
    )
