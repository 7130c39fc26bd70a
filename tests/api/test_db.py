"""One chain of migrations on both databases; what is older or newer is refused with the command that helps."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from api.catalogue_values import DatabaseError
from api.db import (
    HEAD,
    VERSION_TABLE,
    Database,
    entries,
    make_engine,
    metadata,
    normal_url,
    shown,
    upgrade,
    version_of,
    versions,
)
from api.db import (
    database_url as url_of,
)
from api.settings import Settings
from api.study_store import closing_storage, open_studies, upgrade_studies
from search.study_storage import close_storage


def set_version(database: Database, version: str) -> None:
    with database.writing() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = :v"), {"v": version})


def test_the_migrations_make_what_the_code_uses(database_url):
    database = Database(normal_url(database_url))
    options = {
        "version_table": VERSION_TABLE,
        "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
    }
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    assert version_of(database.engine) == HEAD == versions()[-1]
    database.close()


def test_studies_and_catalogue_share_a_database(database_url):
    url = normal_url(database_url)
    close_storage(open_studies(url))
    database = Database(url)
    with database.reading() as connection:
        tables = set(sa.inspect(connection).get_table_names())
    assert {"trials", "alembic_version", VERSION_TABLE, "catalogue_entries"} <= tables
    assert upgrade(url)[0] == HEAD
    with closing_storage(open_studies(url)) as storage:
        assert upgrade_studies(url) == storage.get_current_version()
    database.close()


def test_an_older_database_is_refused_with_the_command_and_upgraded_by_it(database_url, monkeypatch, run_cli):
    url = normal_url(database_url)
    Database(url).close()
    monkeypatch.setattr("api.db.HEAD", "9999")
    with pytest.raises(DatabaseError, match=r"is older than this vitfit .*run `vitfit db upgrade`"):
        Database(url)
    monkeypatch.undo()
    monkeypatch.setenv("VITFIT_DATABASE_URL", database_url)
    status, out, _ = run_cli("db", "upgrade")
    assert status == 0
    assert HEAD in out
    status, out, _ = run_cli("db", "status")
    assert f"version {HEAD}, needed {HEAD}" in out


def test_a_newer_database_is_refused_and_left_alone(database_url, monkeypatch, run_cli):
    database = Database(normal_url(database_url))
    set_version(database, "7777")
    with pytest.raises(DatabaseError, match=r"is newer than this vitfit .*upgrade vitfit"):
        Database(normal_url(database_url))
    with pytest.raises(DatabaseError, match="is newer than this vitfit"):
        upgrade(normal_url(database_url))
    assert version_of(database.engine) == "7777"
    monkeypatch.setenv("VITFIT_DATABASE_URL", database_url)
    status, _, err = run_cli("catalogue", "list")
    assert status == 1
    assert "newer than this vitfit" in err
    database.close()


def test_studies_of_another_version_are_refused_with_the_command(database_url):
    url = normal_url(database_url)
    storage = open_studies(url)
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v99.a'"))
    close_storage(storage)
    with pytest.raises(DatabaseError, match="run `vitfit db upgrade`"):
        open_studies(url)
    with pytest.raises(DatabaseError, match="newer Optuna"):
        upgrade_studies(url)


def test_several_may_make_a_new_database_at_once(database_url):
    url, failures = normal_url(database_url), []

    def make() -> None:
        try:
            Database(url).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_several_databases_may_be_made_at_once_in_one_process(tmp_path):
    urls = [f"sqlite:///{tmp_path / name}.sqlite" for name in "abcdefgh"]
    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(lambda url: Database(url).close(), urls))
    expected = sorted(sa.inspect(make_engine(urls[0])).get_table_names())
    assert "api_keys" in expected
    for url in urls:
        assert sorted(sa.inspect(make_engine(url)).get_table_names()) == expected
        assert version_of(make_engine(url)) == HEAD


def test_a_failed_write_leaves_nothing(database_url):
    database = Database(normal_url(database_url))
    row = {"key": "k", "name": "n", "kind": "told", "source": "", "lineage": "[]", "figures": "{}", "created_at": ""}

    def twice() -> None:
        with database.writing() as connection:
            connection.execute(entries.insert(), row)
            connection.execute(entries.insert(), row)

    with pytest.raises(DatabaseError, match="failed"):
        twice()
    with database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(entries)).scalar() == 0
    database.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [("mysql://x", "is of mysql; give a URL of postgresql or sqlite"), ("nonsense", "is no URL")],
)
def test_other_databases_are_refused(url, says):
    with pytest.raises(DatabaseError, match=says):
        normal_url(url)


def test_a_server_that_is_not_there_is_one_line_without_the_password():
    with pytest.raises(DatabaseError, match="cannot be used") as caught:
        Database(normal_url("postgresql://me:secret@127.0.0.1:1/none"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert shown("postgresql+psycopg://me:secret@host/name") == "postgresql+psycopg://me:***@host/name"


def test_the_default_is_a_file_of_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("VITFIT_DATABASE_URL", raising=False)
    assert url_of(Settings(data_dir=tmp_path)) == f"sqlite:///{tmp_path / 'vitfit.sqlite'}"
    assert url_of(Settings(database_url="postgres://h/n")) == "postgresql+psycopg://h/n"
