"""The first bytes of a checkpoint: its architecture and lineage, without its weights and without torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vit.architecture import Architecture
from vit.errors import CheckpointError

FORMAT = "vitfit-checkpoint"
VERSION = "1"


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """
    Attributes:
        arch: of the model.
        lineage: one JSON object per step that made it, each with a "step" name, oldest first.
    """

    arch: Architecture
    lineage: tuple[Mapping[str, Any], ...]

    def to_metadata(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "architecture": self.arch.to_json(),
            "lineage": json.dumps(list(self.lineage)),
        }


def read_header(path: Path) -> CheckpointHeader:
    """
    Raises:
        CheckpointError: no such file, truncated, or of another format or version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no readable checkpoint (truncated or another format): {error}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file but no vitfit checkpoint; "
            "bring weights of a timm model (vit_*, deit_*, deit3_*) in with `vitfit import TIMM_NAME --weights FILE`"
        )
    if metadata.get("version") != VERSION:
        raise CheckpointError(f"{path} has checkpoint version {metadata.get('version')}, this vitfit reads {VERSION}")
    try:
        arch = Architecture.from_json(metadata["architecture"])
        lineage = json.loads(metadata["lineage"])
    except (KeyError, ValueError, RecursionError) as error:  # bad JSON and ArchitectureError are ValueErrors
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    if not isinstance(lineage, list) or not all(isinstance(step, dict) for step in lineage):
        raise CheckpointError(f"{path} has a damaged header: the lineage is no list of objects")
    return CheckpointHeader(arch, tuple(lineage))


def is_rebased(lineage: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last thing that was done to a model is its change of basis."""
    return bool(lineage) and lineage[-1].get("step") == "rebase"
