"""The database: SQLite in the data folder, or the PostgreSQL that VITFIT_DATABASE_URL names. One chain of migrations.

Studies are in the same database, in tables of Optuna's own (`api.study_store`). A database that is older or newer than
this code is refused with the command that helps; a new one is made as it has to be.

SQLite runs with a write-ahead log, so that readers and one writer do not wait for each other, and every transaction
that writes takes its lock at the start: one that began by reading could not get it later.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event

from api.catalogue_values import DatabaseError

if TYPE_CHECKING:
    from api.settings import Settings

VERSION_TABLE = "vitfit_version"
"""Optuna's tables have an `alembic_version` of their own."""

HEAD = "0004"
"""Newest of `api/migrations/versions`."""

DATABASE = "vitfit.sqlite"

metadata = sa.MetaData()

architectures = sa.Table(
    "catalogue_architectures",
    metadata,
    sa.Column("serial", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("depth", sa.Integer, nullable=False),
    sa.Column("embed_dim", sa.Integer, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
)

entries = sa.Table(
    "catalogue_entries",
    metadata,
    sa.Column("serial", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(200), nullable=False, unique=True),
    sa.Column("architecture", sa.Integer, sa.ForeignKey("catalogue_architectures.serial")),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("parent", sa.String(64)),
    sa.Column("params", sa.BigInteger),
    sa.Column("macs", sa.BigInteger),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("lineage", sa.Text, nullable=False),
    sa.Column("figures", sa.Text, nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Index("catalogue_entries_architecture", "architecture"),
    sa.Index("catalogue_entries_kind", "kind"),
    sa.Index("catalogue_entries_parent", "parent"),
    sa.Index("catalogue_entries_name", "name"),
)

accuracies = sa.Table(
    "catalogue_accuracies",
    metadata,
    sa.Column("serial", sa.Integer, primary_key=True),
    sa.Column("entry", sa.Integer, sa.ForeignKey("catalogue_entries.serial"), nullable=False),
    sa.Column("data", sa.String(200), nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("evidence", sa.String(20), nullable=False),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("seeds", sa.Text, nullable=False),
    sa.Column("images", sa.Integer),
    sa.UniqueConstraint("entry", "data", "evidence", "recipe", "seeds", name="catalogue_accuracies_once"),
    sa.Index("catalogue_accuracies_value", "data", "value"),
)

targets = sa.Table(
    "catalogue_targets",
    metadata,
    sa.Column("target", sa.String(200), primary_key=True),
    sa.Column("fingerprint", sa.String(100), nullable=False),
    sa.Column("upto", sa.Integer, nullable=False),
)
"""Whose latencies are in `points`, of which table, and up to which entry."""

points = sa.Table(
    "catalogue_points",
    metadata,
    sa.Column("target", sa.String(200), primary_key=True),
    sa.Column("data", sa.String(200), primary_key=True),
    sa.Column("entry", sa.Integer, sa.ForeignKey("catalogue_entries.serial"), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("params", sa.BigInteger, nullable=False),
    sa.Column("macs", sa.BigInteger, nullable=False),
    sa.Column("ms", sa.Float, nullable=False),
    sa.Column("accuracy", sa.Float),
    sa.Index("catalogue_points_ms", "target", "data", "ms", "accuracy", "kind", "entry", "params", "macs"),
    sa.Index("catalogue_points_accuracy", "target", "data", "accuracy", "ms", "kind", "entry", "params", "macs"),
)
"""What queries by budget scan, without a join: every entry with latency on a target, once with data '' and once for
each data set that its accuracy is known on. Derived from the other tables; may be emptied, with `targets`."""


def database_url(settings: "Settings") -> str:
    """Of SQLAlchemy, with the driver that is there."""
    if settings.database_url:
        return normal_url(settings.database_url)
    return f"sqlite:///{settings.data_dir / DATABASE}"


def normal_url(url: str) -> str:
    """
    Raises:
        DatabaseError: no URL of SQLite or PostgreSQL.
    """
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            url = "postgresql+psycopg://" + url.removeprefix(prefix)
    try:
        backend = sa.make_url(url).get_backend_name()
    except (sa.exc.ArgumentError, ValueError):
        raise DatabaseError("VITFIT_DATABASE_URL is no URL; give postgresql://user@host/name") from None
    if backend not in ("postgresql", "sqlite"):
        raise DatabaseError(f"VITFIT_DATABASE_URL is of {backend}; give a URL of postgresql or sqlite")
    return url


def shown(url: str) -> str:
    """A URL without its password, for messages."""
    return sa.make_url(url).render_as_string(hide_password=True)


def make_engine(url: str, *, pool: bool = False) -> sa.Engine:
    """An engine with the habits of this file. Connects to nothing yet.

    Args:
        pool: keep connections for the next question, as a service should.
    """
    options: dict[str, Any] = {} if pool else {"poolclass": sa.NullPool}
    if sa.make_url(url).get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True, **options)
    engine = sa.create_engine(url, **options)
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own transactions begin too late
    for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class Database:
    """One database, checked once. Methods may be called from many threads.

    Raises:
        DatabaseError: it cannot be reached, or is of another version.
    """

    def __init__(self, url: str, *, pool: bool = False) -> None:
        """Open it; a database without our tables gets them.

        Args:
            pool: as in `make_engine`.
        """
        self.url = url
        if (path := sqlite_path(url)) is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseError(f"the folder of {path} cannot be made: {error.strerror or error}") from None
        self.engine = make_engine(url, pool=pool)
        try:
            version = version_of(self.engine)
            if version is None:
                upgrade(url, self.engine)
            elif version != HEAD:
                raise DatabaseError(mismatch(url, version))
        except sa.exc.DBAPIError as error:
            raise DatabaseError(f"the database {shown(url)} cannot be used: {_reason(error)}") from None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end."""
        with (
            self._translated(),
            self.engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise DatabaseError(f"the database {shown(self.url)} failed: {_reason(error)}") from error

    def close(self) -> None:
        self.engine.dispose()


def sqlite_path(url: str) -> Path | None:
    found = sa.make_url(url)
    if found.get_backend_name() != "sqlite" or not found.database or found.database == ":memory:":
        return None
    return Path(found.database)


def version_of(engine: sa.Engine) -> str | None:
    """Of the tables that are there; None: none of ours are."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def versions() -> tuple[str, ...]:
    """All versions, oldest first."""
    from alembic.script import ScriptDirectory

    return tuple(reversed([step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions()]))


def mismatch(url: str, version: str) -> str:
    if version in versions():
        return (
            f"the database {shown(url)} is older than this vitfit (version {version}, needed is {HEAD}); "
            "run `vitfit db upgrade`"
        )
    return (
        f"the database {shown(url)} is newer than this vitfit (version {version}, known up to {HEAD}); "
        "upgrade vitfit (python -m pip install --upgrade vitfit), or name another database in VITFIT_DATABASE_URL"
    )


ALEMBIC = Lock()
"""Held while Alembic works, Optuna's too: its `op` is one for the process, so that of two upgrades at once one would
write into the other's database."""


def upgrade(url: str, engine: sa.Engine | None = None) -> tuple[str | None, str]:
    """Bring a database to this code's version, in one transaction; several may try at once.

    Returns:
        The version before (None: there was none) and after.

    Raises:
        DatabaseError: it is newer than this code, or cannot be reached.
    """
    from alembic import command

    engine = engine or make_engine(url)
    try:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(727457)"))
            before = None
            if sa.inspect(connection).has_table(VERSION_TABLE):
                query = sa.text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608
                before = connection.execute(query).scalar()
            if before is not None and before not in versions():
                raise DatabaseError(mismatch(url, before))
            if before != HEAD:
                config = _config()
                config.attributes["connection"] = connection
                with ALEMBIC:
                    command.upgrade(config, "head")
    except sa.exc.DBAPIError as error:
        raise DatabaseError(f"the database {shown(url)} cannot be upgraded: {_reason(error)}") from None
    return before, HEAD


def _config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _reason(error: sa.exc.DBAPIError) -> str:
    return str(error.orig).strip().split("\n")[0]
