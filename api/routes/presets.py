"""Architectures by name, and what was published about them."""

from fastapi import APIRouter

from api.problems import documented
from api.schemas import PresetBody, PresetList, PublishedBody, described
from vit.presets import PRESETS, PUBLISHED

router = APIRouter(prefix="/v1/presets", tags=["presets"])


@router.get("", responses=documented())
def list_presets() -> PresetList:
    """Presets with their costs in closed form, and the rows of published tables as printed, with their source."""
    return PresetList(
        presets=[PresetBody(preset=name, **described(arch)) for name, arch in PRESETS.items()],
        published=[PublishedBody.of(row) for row in PUBLISHED],
    )
