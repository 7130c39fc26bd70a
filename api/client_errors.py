"""What can go wrong when a service is asked from elsewhere. Loads no HTTP library: the service names these, too."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from api.problems import Problem
from vit.errors import VitfitError


class ClientError(VitfitError, RuntimeError):
    """A question to a service that got no answer of use."""


class ServiceError(ClientError):
    """The service refused, and said why.

    Attributes:
        problem: its problem document (RFC 9457), or one made of the status where something on the way answered.
        request_id: what the service's log knows the request by.
        retry_after: seconds that the service asked to wait, where it did.
    """

    def __init__(self, problem: Problem, request_id: str = "", retry_after: float | None = None) -> None:
        where = f"{problem.field}: " if problem.field and problem.field not in problem.detail else ""
        hint = f" ({problem.hint})" if problem.hint else ""
        super().__init__(f"{where}{problem.detail}{hint}")
        self.problem, self.request_id, self.retry_after = problem, request_id, retry_after

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def kind(self) -> str:
        """The stable name of the kind of problem: `unknown-name`, `outside-grid` and so on."""
        return self.problem.type.rpartition("/")[2]


class ServiceUnreachableError(ClientError):
    """Nothing answered, again and again."""


class UnexpectedAnswerError(ClientError):
    """An answer that this client cannot read: no service of ours, or one of another version."""


def problem_of(document: object, status: int, phrase: str, path: str) -> Problem:
    """The problem that a body holds; of anything else (a proxy's page, say), one that says the status."""
    if isinstance(document, Mapping):
        known: dict[str, Any] = {name: document[name] for name in Problem.model_fields if name in document}
        try:
            return Problem.model_validate(known)
        except ValidationError:
            pass
    return Problem(
        type="about:blank",
        title=phrase,
        status=status,
        detail=f"{path} was answered with {status} {phrase}, and not by a service of vitfit's",
        instance=path,
    )
