"""The kinds of problems that the service answers with (RFC 9457), and their documentation.

`type` is stable and meant for programs, `detail` says what was asked, what is allowed and what to do, `field` names
the culprit in the request.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """RFC 9457 problem details. `field` and `hint` are left out where there is nothing to say."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="Stable name of the kind of problem, a URI reference.")
    title: str = Field(description="The kind of problem in a few words.")
    status: int = Field(ge=400, le=599, description="The HTTP status code.")
    detail: str = Field(description="What was asked, what is allowed and what to do.")
    instance: str = Field(description="Path of the request.")
    field: str | None = Field(None, description="The offending field of the request.")
    hint: str | None = Field(None, description="Where to look next.")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem; `example` and `field` show it in the documentation."""

    status: int
    name: str
    title: str
    example: str
    field: str | None = None
    hint: str | None = None

    @property
    def type(self) -> str:
        return f"/problems/{self.name}"

    def document(
        self, detail: str, instance: str, field: str | None = None, hint: str | None = None
    ) -> dict[str, object]:
        problem = Problem(
            type=self.type,
            title=self.title,
            status=self.status,
            detail=detail,
            instance=instance,
            field=field or None,
            hint=hint or self.hint,
        )
        return problem.model_dump(exclude_none=True)


SEE_OPENAPI = "GET /openapi.json describes every request"
SEE_TARGETS = "GET /v1/targets lists the targets with their bounds"

INVALID_JSON = Kind(400, "invalid-json", "The body is not JSON", "the request body is not JSON: Expecting value at 12")
NOT_FOUND = Kind(404, "not-found", "Nothing is there", "unknown target 'v100'; known: macs", hint=SEE_OPENAPI)
METHOD_NOT_ALLOWED = Kind(
    405, "method-not-allowed", "The method is not allowed", "PUT is not allowed here; allowed: GET", hint=SEE_OPENAPI
)
BODY_TOO_LARGE = Kind(
    413,
    "body-too-large",
    "The body is too large",
    "the request body may have at most 8388608 bytes",
    hint="split the request, or raise VITFIT_MAX_BODY_BYTES",
)
MEDIA_TYPE_UNSUPPORTED = Kind(
    415,
    "unsupported-media-type",
    "The body is of another type",
    "the request body must be application/json, got text/plain",
    hint="send the header Content-Type: application/json",
)
INVALID_REQUEST = Kind(
    422,
    "invalid-request",
    "The request is not understood",
    "architectures[0].blocks[2].qk_dim must be at least 1, got -4",
    "architectures[0].blocks[2].qk_dim",
    SEE_OPENAPI,
)
INVALID_ARCHITECTURE = Kind(
    422,
    "invalid-architecture",
    "The architecture describes no model",
    "image_size (8, 8) is smaller than patch_size (16, 16)",
    "architectures[0].image_size",
)
UNSUPPORTED_MODEL = Kind(
    422, "unsupported-model", "The model is no plain Vision Transformer", "swin_tiny has windowed attention"
)
INVALID_CHECKPOINT = Kind(422, "invalid-checkpoint", "The checkpoint cannot be read", "the checkpoint is truncated")
EXPORT_REFUSED = Kind(422, "export-refused", "The export was refused", "its outputs differ from the model's")
UNKNOWN_NAME = Kind(
    422, "unknown-name", "A name is not known", "unknown preset 'deit-x'; known: deit-s", "architectures[0].preset"
)
INVALID_TABLE = Kind(422, "invalid-table", "The latency table cannot be trusted", "2 of 9375 points have no valid time")
TARGET_MISMATCH = Kind(
    422,
    "target-mismatch",
    "The target was made for other models",
    "v100-eager-amp-b256-n197 was made for 197 tokens, the architecture has 198; profile a table for 198 tokens",
    "architectures[0]",
    SEE_TARGETS,
)
OUTSIDE_GRID = Kind(
    422,
    "outside-grid",
    "A size was not profiled",
    "qk_dim=80 is outside [8, 64], the range profiled in v100-eager-amp-b256-n197; profile a wider grid or bound the "
    "search",
    "architectures[0].blocks[2].qk_dim",
    SEE_TARGETS,
)
INVALID_IMAGES = Kind(
    422,
    "invalid-images",
    "The images teach nothing",
    "no calibration image was given",
)
INVALID_SALIENCY = Kind(422, "invalid-saliency", "The saliency cannot be used", "it holds NaN", "saliency")
BUDGET_OUT_OF_RANGE = Kind(
    422,
    "budget-out-of-range",
    "Nothing meets the budget, or everything does",
    "no architecture runs in 0.1 ms on v100-eager-amp-b256-n197: the smallest that the table covers takes 1.2 ms; ask "
    "for 1.2 to 21.3",
    "budget_ms",
)
INVALID_CONSTRAINTS = Kind(
    422,
    "invalid-constraints",
    "The constraints contradict each other or the model",
    "minimum mlp_dim 4096 is more than the model has (blocks.0.mlp: 3072)",
    "minimum",
)
INVALID_FRONTIER = Kind(
    422, "invalid-frontier", "The stored frontier cannot be used", "it was made for another table; build it again"
)
INVALID_SETTING = Kind(500, "invalid-setting", "The service is not set up", "VITFIT_PORT must be at most 65535")
LIMIT = Kind(
    422, "limit", "The request asks for too much at a time", "architectures may have at most 5000 entries, got 6000"
)
NOT_READY = Kind(
    503,
    "not-ready",
    "The service is not ready",
    "the data folder cannot be read: Permission denied",
    hint="make the folder readable, or name another one in VITFIT_DATA_DIR",
)
JOB_LOST = Kind(
    500,
    "job-lost",
    "The job was given up",
    "the process that did the job died 10 times while it did it",
    hint="where memory ran out, fewer images a batch (batch_size) help; the service's log has more",
)
JOB_TIMEOUT = Kind(
    500,
    "job-timeout",
    "The job took too long",
    "the job was stopped after 7200 seconds of work, the most that an export may take",
    hint="ask for less, or raise VITFIT_JOB_TIMEOUTS; a retry goes on after its last finished step",
)
STORAGE_FULL = Kind(
    507,
    "storage-full",
    "Nothing can be written",
    "No space left on device: compressed.safetensors",
    hint="make room in the data folder, or make it writable, and retry the job; it goes on after its last whole step",
)
JOB_STATE = Kind(
    409,
    "job-state",
    "The job is in another state",
    "job 019aa6f1c2d34e5f60718293a4b5c6d7 is running; cancel it first",
)
KEY_REUSED = Kind(
    409,
    "idempotency-key-reused",
    "The Idempotency-Key belongs to another request",
    "the Idempotency-Key 'x1' was used for another request, which became job 019aa6f1c2d34e5f60718293a4b5c6d7; send a "
    "new key, or the same body",
    "Idempotency-Key",
)
NAME_TAKEN = Kind(
    409, "name-taken", "The name is taken", "the library has a model 'small' already; choose another name", "save_as"
)
TOO_MANY_STREAMS = Kind(
    503,
    "too-many-streams",
    "Too many streams are open",
    "100 streams of events are open, as many as are allowed",
    hint="ask for the job (GET /v1/jobs/{id}) now and then instead, or raise VITFIT_MAX_EVENT_STREAMS",
)
UNAUTHORIZED = Kind(
    401,
    "unauthorized",
    "An API key is needed",
    "this service wants an API key: Authorization: Bearer vf_...",
    hint="the operator of the service makes keys with `vitfit keys create`",
)
FORBIDDEN = Kind(
    403, "forbidden", "The API key may not do this", "the API key vf_0123456789ab_... may read; this needs write"
)
WRONG_HOST = Kind(
    403,
    "wrong-host",
    "The service has another name",
    "this service answers to localhost, not to 'example.com'",
    hint="ask http://localhost, or bind another address, which wants API keys",
)
TOO_MANY_REQUESTS = Kind(
    429,
    "too-many-requests",
    "Too many requests",
    "too many requests at once; come again in 0.4 s",
    hint="the header Retry-After says when",
)
NOT_STORED = Kind(
    409,
    "not-stored",
    "Nobody uploaded this",
    "the table mine.parquet was put into the data folder by hand; it is removed there, not over REST",
)
CHANGED = Kind(
    412,
    "changed",
    "It is another one by now",
    "the model 'small' is another one by now: its ETag is \"5f70bf18a0860070\"",
    "If-Match",
    "read it again, and decide again",
)
INVALID_UPLOAD = Kind(
    422, "invalid-upload", "The upload cannot be used", "the file is empty; send it as the body of the request"
)
REFUSED = Kind(422, "refused", "The request cannot be carried out", "it cannot be carried out")
INTERNAL = Kind(
    500,
    "internal-error",
    "The service failed",
    "something went wrong inside the service; the fault is not in the request",
    hint="the service's log has more under this request's X-Request-ID",
)

ANY_BODY = (INVALID_JSON, BODY_TOO_LARGE, MEDIA_TYPE_UNSUPPORTED, INVALID_REQUEST)
"""What can be wrong with every request that has a body."""

ANY_FRONTIER = (
    *ANY_BODY,
    UNKNOWN_NAME,
    BUDGET_OUT_OF_RANGE,
    INVALID_CONSTRAINTS,
    TARGET_MISMATCH,
    OUTSIDE_GRID,
    INVALID_SALIENCY,
    LIMIT,
)
"""What can be wrong with a question to a frontier."""


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Documentation of an operation's problems, with an example of each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in (*kinds, INTERNAL):
        response = responses.setdefault(
            kind.status,
            {
                "description": HTTPStatus(kind.status).phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        example = kind.document(kind.example, "/v1/...", kind.field)
        response["content"][MEDIA_TYPE]["examples"][kind.name] = {"summary": kind.title, "value": example}
    return responses
