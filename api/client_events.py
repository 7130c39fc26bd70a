"""Server-sent events, as WHATWG's HTML standard (9.2.6) has them read."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from api.client_errors import UnexpectedAnswerError


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened to a job.

    Attributes:
        kind: `step`, `log`, `state`, `progress` or `end`.
        data: what it says.
        id: after which a stream that was cut off goes on; None of what only counts while it is new.
    """

    kind: str
    data: dict[str, Any]
    id: str | None = None


def lines_of(texts: Iterable[str]) -> Iterator[str]:
    """Whole lines of text that comes in any pieces. Only the standard's line ends split: \\r\\n, \\n and \\r."""
    rest = ""
    for text in texts:
        rest += text
        held = "\r" if rest.endswith("\r") else ""  # the \n that belongs to it may be in the next piece
        whole = rest[: len(rest) - len(held)].replace("\r\n", "\n").replace("\r", "\n")
        *lines, rest = whole.split("\n")
        rest += held
        yield from lines


def events_of(texts: Iterable[str]) -> Iterator[JobEvent]:
    """
    Raises:
        UnexpectedAnswerError: an event whose data is no JSON object.
    """
    kind, number, data = "message", None, list[str]()
    for line in lines_of(texts):
        if not line:  # ends an event; one without data is none
            if data:
                yield JobEvent(kind, _object("\n".join(data)), number)
            kind, number, data = "message", None, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                kind = value
            case "data":
                data.append(value)
            case "id":
                number = value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UnexpectedAnswerError(f"an event's data is no JSON object: {text!r:.100}")
    return value
