"""Logs: lines to read, or an object of JSON a line (VITFIT_LOG=json), of the service, its workers and their jobs.

Requests are logged without their query, headers and body: what is secret travels there.
"""

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

from api.settings import Settings

access = logging.getLogger("api.access")


class JsonLines(logging.Formatter):
    """`time` (RFC 3339), `level`, `process`, `pid`, `logger`, `message`, a record's own `fields`, and `exception`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        document |= getattr(record, "fields", {})
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def configure(settings: Settings, process: str, level: int = logging.WARNING) -> None:
    """All that this process logs goes to stderr.

    Args:
        process: who writes: service, worker or job.
        level: below which nothing is said.
    """
    handler = logging.StreamHandler()
    lines = logging.Formatter(f"%(levelname)s: {process}: %(message)s")
    handler.setFormatter(JsonLines(process) if settings.log == "json" else lines)
    logging.basicConfig(level=level, handlers=[handler])


def request(scope: Any, status: int, seconds: float) -> None:
    """One request that was answered."""
    if not access.isEnabledFor(logging.INFO):
        return
    state, client = scope.get("state", {}), scope.get("client") or ("?",)
    fields = {
        "request_id": state.get("request_id", ""),
        "client": client[0],
        "key": state.get("key"),
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(1000 * seconds, 3),
    }
    access.info(
        '%s "%s %s" %d %.1f ms %s',
        client[0],
        scope["method"],
        scope["path"].encode("unicode_escape").decode(),
        status,
        1000 * seconds,
        fields["request_id"],
        extra={"fields": fields},
    )
