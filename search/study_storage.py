"""Where studies are kept: Optuna's tables on SQLite or PostgreSQL, and the fast way in for many trials at once."""

import fcntl
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from search.errors import StorageVersionError

HEARTBEAT_S, GRACE_S = 10, 40
"""How often a worker says that it is alive, and after how long a silent one is taken for dead."""

MOST_RETRIES = 3
"""How often a trial is tried again whose worker died."""

DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def close_storage(storage: RDBStorage) -> None:
    """Give its connections back."""
    storage.remove_session()
    storage.engine.dispose()


def open_storage(url: str, *, heartbeat_s: int = HEARTBEAT_S, grace_s: int = GRACE_S, check: bool = True) -> RDBStorage:
    """
    Args:
        url: of SQLAlchemy.
        check: refuse tables of another version of Optuna.

    Raises:
        StorageVersionError: those.
    """
    sqlite = sa.make_url(url).get_backend_name() == "sqlite"
    # A commit that is not waited for survives kill -9 of everything of ours, not a power cut; that costs a trial.
    connect = {"timeout": 60} if sqlite else {"options": "-c synchronous_commit=off"}
    options: dict[str, Any] = {"connect_args": connect, **({} if sqlite else {"pool_recycle": 300})}
    with warnings.catch_warnings(), _one_at_a_time(url):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = RDBStorage(
            url,
            engine_kwargs=options,
            skip_compatibility_check=True,
            heartbeat_interval=heartbeat_s,
            grace_period=grace_s,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MOST_RETRIES),
        )
    if check and (current := storage.get_current_version()) != (head := storage.get_head_version()):
        close_storage(storage)
        raise StorageVersionError(f"the studies' tables are of version {current}, the installed Optuna's of {head}")
    if sqlite:
        sa.event.listen(storage.engine, "connect", _quick_sqlite)
        storage.engine.dispose()
    return storage


@contextmanager
def _one_at_a_time(url: str) -> Iterator[None]:
    """Optuna makes its tables where they are missing, and does not expect that somebody else does at that moment."""
    found = sa.make_url(url)
    if found.get_backend_name() == "postgresql":
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection, connection.begin():
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(727458)"))
            yield
        return
    path = None if found.database in (None, "", ":memory:") else Path(f"{found.database}.lock")
    if path is None:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _quick_sqlite(connection: Any, _record: object) -> None:
    """A write-ahead log that is not waited for."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def insert_trials(storage: RDBStorage, study_id: int, trials: Sequence[FrozenTrial], most: int | None = None) -> int:
    """Finished trials in one transaction, a statement a table; the same rows as one `study.add_trial` after another.

    Args:
        most: trials that the study shall have finished at the end; what is over is left out.

    Returns:
        How many were inserted.
    """
    with Session(storage.engine) as session, session.begin():
        session.scalars(sa.select(models.StudyModel).where(models.StudyModel.study_id == study_id).with_for_update())
        of_study = models.TrialModel.study_id == study_id
        if storage.engine.dialect.name == "sqlite":  # no row locks; a write takes the lock of the whole file
            touch = sa.update(models.StudyModel).where(models.StudyModel.study_id == study_id)
            session.execute(touch.values(study_name=models.StudyModel.study_name))
        number = session.scalar(sa.select(sa.func.count()).select_from(models.TrialModel).where(of_study)) or 0
        if most is not None:
            done = sa.select(sa.func.count()).select_from(models.TrialModel)
            finished = session.scalar(done.where(of_study, models.TrialModel.state.in_(DONE))) or 0
            trials = trials[: max(most - finished, 0)]
        rows = [
            models.TrialModel(
                study_id=study_id,
                number=number + index,
                state=trial.state,
                datetime_start=trial.datetime_start,
                datetime_complete=trial.datetime_complete,
            )
            for index, trial in enumerate(trials)
        ]
        session.add_all(rows)
        session.flush()
        for model, values in _parts(list(zip(rows, trials, strict=True))):
            if values:
                session.execute(sa.insert(model), values)
    return len(trials)


def _parts(pairs: Sequence[tuple[models.TrialModel, FrozenTrial]]) -> list[tuple[Any, list[dict[str, Any]]]]:
    """By table its rows."""
    params, values, users, systems, steps = [], [], [], [], []
    for row, trial in pairs:
        at = {"trial_id": row.trial_id}
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            params.append(
                at
                | {
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(value),
                    "distribution_json": optuna.distributions.distribution_to_json(distribution),
                }
            )
        for objective, value in enumerate(trial.values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            values.append(at | {"objective": objective, "value": stored, "value_type": kind})
        users += [at | {"key": key, "value_json": json.dumps(value)} for key, value in trial.user_attrs.items()]
        systems += [at | {"key": key, "value_json": json.dumps(value)} for key, value in trial.system_attrs.items()]
        for step, value in trial.intermediate_values.items():
            stored_step, kind_step = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
            steps.append(at | {"step": step, "intermediate_value": stored_step, "intermediate_value_type": kind_step})
    return [
        (models.TrialParamModel, params),
        (models.TrialValueModel, values),
        (models.TrialUserAttributeModel, users),
        (models.TrialSystemAttributeModel, systems),
        (models.TrialIntermediateValueModel, steps),
    ]
