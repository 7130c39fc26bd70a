"""API keys: `vf_<id>_<secret>`, shown once, kept as a hash.

The secret has 256 random bits, so that a plain sha256 cannot be guessed back; a slow hash, which passwords need, would
cost every request milliseconds and gain nothing.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from vit.errors import UnknownNameError, VitfitError

if TYPE_CHECKING:
    from api.db import Database

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""Each may do what those before it may."""

REMEMBERED_SECONDS = 5.0
"""How long a key that was looked up is taken for what it was: a revoked one works no longer than that."""

USED_SECONDS = 60
"""Between two notes of when a key was used last."""

_KEY = re.compile(r"vf_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class KeyRefusedError(VitfitError, ValueError):
    """No key, one that nobody has, or one that may not do this."""

    def __init__(self, message: str, status: Literal[401, 403]) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Key:
    """
    Attributes:
        id: public; the key begins with it.
        scope: the most that it may do.
        created_at, expires_at, revoked_at, used_at: seconds since 1970.
    """

    id: str
    name: str
    scope: Scope
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    used_at: int | None

    @property
    def prefix(self) -> str:
        return f"vf_{self.id}_"

    def state(self, now: float) -> Literal["valid", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"

    def may(self, scope: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def to_dict(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in self.__slots__}
        return document | {"prefix": self.prefix, "state": self.state(time.time())}


class Keys:
    """All methods may be called from many threads.

    Raises:
        DatabaseError: from every method.
    """

    def __init__(self, database: "Callable[[], Database]", clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock, self._lock = database, clock, Lock()
        self._known: dict[str, tuple[float, Key]] = {}

    def create(self, name: str, scope: Scope, days: float | None = None) -> tuple[Key, str]:
        """A new key, and the text that is shown this once.

        Args:
            days: until it expires; None: never.
        """
        from api.db_keys import api_keys

        if scope not in SCOPES:
            raise UnknownNameError("scope", scope, SCOPES)
        now = int(self._clock())
        key = Key(
            secrets.token_hex(6),
            name[:100],
            scope,
            now,
            None if days is None else now + round(days * 86_400),
            None,
            None,
        )
        text = f"{key.prefix}{secrets.token_urlsafe(32)}"
        values = {field: getattr(key, field) for field in key.__slots__}
        with self._database().writing() as connection:
            connection.execute(api_keys.insert().values(**values, digest=_digest(text)))
        return key, text

    def all(self) -> list[Key]:
        """The newest first."""
        import sqlalchemy as sa

        from api.db_keys import api_keys

        with self._database().reading() as connection:
            rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id))
            return [_key(row) for row in rows]

    def revoke(self, id: str) -> Key:
        """
        Args:
            id: or the key's prefix, or the whole key.

        Raises:
            UnknownNameError: no key has it.
        """
        from api.db_keys import api_keys

        plain = id.removeprefix("vf_").partition("_")[0]
        found = {key.id: key for key in self.all()}
        if plain not in found:
            raise UnknownNameError("key", plain[:40], sorted(found))
        with self._database().writing() as connection:
            revoked = api_keys.c.revoked_at.is_(None)
            connection.execute(
                api_keys.update().where(api_keys.c.id == plain, revoked).values(revoked_at=int(self._clock()))
            )
        with self._lock:
            self._known.clear()
        return next(key for key in self.all() if key.id == plain)

    def check(self, text: str) -> Key:
        """The key that a caller sent; quick where it was looked up a moment ago.

        Raises:
            KeyRefusedError: it is none that is valid.
        """
        digest, now = _digest(text), self._clock()
        with self._lock:
            known = self._known.get(digest)
        if known is None or not now - REMEMBERED_SECONDS < known[0] <= now:
            known = now, self._look_up(text, digest, int(now))
            with self._lock:
                if len(self._known) > 10_000:
                    self._known.clear()
                self._known[digest] = known
        key = known[1]
        if (state := key.state(now)) != "valid":
            raise KeyRefusedError(f"the API key {key.prefix}... is {state}; ask the operator for another one", 401)
        return key

    def _look_up(self, text: str, digest: str, now: int) -> Key:
        import sqlalchemy as sa

        from api.db_keys import api_keys

        parts = _KEY.fullmatch(text)
        if parts is not None:
            with self._database().reading() as connection:
                row = connection.execute(sa.select(api_keys).where(api_keys.c.id == parts[1])).first()
            if row is not None and hmac.compare_digest(row.digest, digest):
                key = _key(row)
                if key.used_at is None or key.used_at + USED_SECONDS < now:
                    with self._database().writing() as connection:
                        connection.execute(api_keys.update().where(api_keys.c.id == key.id).values(used_at=now))
                return key
        raise KeyRefusedError("this is no API key of this service; `vitfit keys create` makes one", 401)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _key(row: Any) -> Key:
    return Key(**{name: row._mapping[name] for name in Key.__slots__})
