"""`vitfit keys`: API keys of a service, made and revoked on its machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from api.console import JsonOption, err, out, print_json, print_table

if TYPE_CHECKING:
    from api.keys import Keys

app = typer.Typer(help="API keys of the service: create, list, revoke.", no_args_is_help=True)


@contextmanager
def _keys() -> "Iterator[Keys]":
    from api.db import Database, database_url
    from api.keys import Keys
    from api.settings import Settings

    database = Database(database_url(Settings()))
    try:
        yield Keys(lambda: database)
    finally:
        database.close()


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    scope: Annotated[str, typer.Option(help="read, write (jobs and uploads, too) or admin (the audit, too).")] = "read",
    days: Annotated[float | None, typer.Option(min=0, help="Until it expires (default: never).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once: the service keeps a hash of it."""
    from api.keys import SCOPES
    from vit.errors import UnknownNameError

    if scope not in SCOPES:
        raise UnknownNameError("scope", scope, SCOPES)
    with _keys() as keys:
        key, text = keys.create(name, scope, days)
    if as_json:
        print_json({**key.to_dict(), "key": text})
        return
    out.print(text, highlight=False, soft_wrap=True)
    err.print(
        f"may {key.scope}; send it as `Authorization: Bearer {key.prefix}...`; it is not shown again", highlight=False
    )


@app.command(name="list")
def list_keys(as_json: JsonOption = False) -> None:
    """Every key, without its secret."""
    with _keys() as keys:
        found = [key.to_dict() for key in keys.all()]
    if as_json:
        print_json({"keys": found})
        return
    rows = [
        (
            f"{one['prefix']}...",
            one["name"],
            one["scope"],
            one["state"],
            *(_time(one[at]) for at in ("created_at", "expires_at", "used_at")),
        )
        for one in found
    ]
    print_table("API keys", ("key", "name", "scope", "state", "created", "expires", "last used"), rows)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, or what it begins with.")], as_json: JsonOption = False
) -> None:
    """Revoke a key: a service that knew it takes it for five seconds more at most."""
    with _keys() as keys:
        found = keys.revoke(key)
    if as_json:
        print_json(found.to_dict())
        return
    err.print(f"revoked {found.prefix}... ({found.name})", highlight=False)


def _time(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
