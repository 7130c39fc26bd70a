"""An architecture as PyTorch code, to train from scratch; any architecture, known here or not."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from api.dependencies import JSON_ONLY
from api.errors import at
from api.problems import ANY_BODY, INVALID_ARCHITECTURE, UNKNOWN_NAME, documented
from api.schemas import ArchitectureBody
from vit.standalone_source import standalone_source

router = APIRouter(prefix="/v1/architectures", tags=["architectures"])


@router.post(
    "/code",
    dependencies=[JSON_ONLY],
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "model.py",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "examples": {"code": {"value": '"""Vision Transformer of 12 blocks, whose sizes ..."""\n'}},
                }
            },
        },
        **documented(*ANY_BODY, UNKNOWN_NAME, INVALID_ARCHITECTURE),
    },
)
def architecture_code(body: ArchitectureBody) -> PlainTextResponse:
    """The modules of an architecture, every size a literal, in one file that needs torch alone."""
    with at(""):
        return PlainTextResponse(standalone_source(body.to_domain()))
