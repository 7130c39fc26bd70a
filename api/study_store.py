"""The studies' tables, which are Optuna's, in the database of the settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from api.catalogue_values import DatabaseError
from api.db import ALEMBIC, normal_url, shown, sqlite_path

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


@contextmanager
def closing_storage(storage: "RDBStorage") -> Iterator["RDBStorage"]:
    from search.study_storage import close_storage

    try:
        yield storage
    finally:
        close_storage(storage)


def open_studies(url: str, *, heartbeat_s: int | None = None, grace_s: int | None = None) -> "RDBStorage":
    """
    Raises:
        DatabaseError: it cannot be reached, or was made by another version of Optuna; says the upgrade command.
    """
    import sqlalchemy as sa

    from search.errors import StorageVersionError
    from search.study_storage import GRACE_S, HEARTBEAT_S, open_storage

    if (path := sqlite_path(url)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ALEMBIC:
            return open_storage(normal_url(url), heartbeat_s=heartbeat_s or HEARTBEAT_S, grace_s=grace_s or GRACE_S)
    except StorageVersionError as error:
        raise DatabaseError(
            f"the studies in {shown(url)} are of another version ({error}); run `vitfit db upgrade`, and where that "
            "says that they are newer, upgrade Optuna"
        ) from None
    except sa.exc.DBAPIError as error:
        raise DatabaseError(f"the database {shown(url)} cannot be used: {str(error.orig).splitlines()[0]}") from None


def upgrade_studies(url: str) -> str:
    """Bring Optuna's tables to the installed Optuna's version; what version they are of then.

    Raises:
        DatabaseError: they are of a newer Optuna, or cannot be reached.
    """
    import sqlalchemy as sa

    from search.study import quiet
    from search.study_storage import open_storage

    try:
        with ALEMBIC, quiet(), closing_storage(open_storage(normal_url(url), check=False)) as storage:
            known = storage.get_all_versions()
            if (current := storage.get_current_version()) not in known:
                raise DatabaseError(
                    f"the studies in {shown(url)} are of a newer Optuna (version {current}); "
                    "upgrade it: python -m pip install --upgrade optuna"
                )
            storage.upgrade()
            return str(storage.get_current_version())
    except sa.exc.DBAPIError as error:
        raise DatabaseError(
            f"the database {shown(url)} cannot be upgraded: {str(error.orig).splitlines()[0]}"
        ) from None
