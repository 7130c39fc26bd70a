"""The first bytes of a checkpoint: its architecture and lineage, without its weights and without torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vit.architecture import Architecture
from vit.errors import CheckpointError
from vit.token_plan import TokenPlan

FORMAT = "vitfit-checkpoint"
VERSION = "1"


@dataclass(frozen=True, slots=True)
class MaskedWeights:
    """Of the weights that have a mask, how many are removed.

    Raises:
        ValueError: no whole numbers, or more removed than there are.
    """

    total: int
    zeros: int

    def __post_init__(self) -> None:
        if type(self.total) is not int or type(self.zeros) is not int or not 0 <= self.zeros <= self.total:
            raise ValueError(f"{self.zeros!r:.40} of {self.total!r:.40} weights cannot be removed")

    @property
    def sparsity(self) -> float:
        """Fraction removed of the weights that have a mask, in [0, 1]."""
        return self.zeros / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.zeros} of {self.total}"


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """
    Attributes:
        arch: of the model.
        lineage: one JSON object per step that made it, each with a "step" name, oldest first.
        masked: of a sparse model, how many weights are removed; None where there are no masks.
        tokens: where tokens are dropped; None where none are.
    """

    arch: Architecture
    lineage: tuple[Mapping[str, Any], ...]
    masked: MaskedWeights | None = None
    tokens: TokenPlan | None = None

    def to_metadata(self) -> dict[str, str]:
        masked = {} if self.masked is None else {"masked": json.dumps(asdict(self.masked))}
        return {
            "format": FORMAT,
            "version": VERSION,
            "architecture": self.arch.to_json(),
            "lineage": json.dumps(list(self.lineage)),
            **masked,
            **({} if self.tokens is None else {"tokens": self.tokens.to_json()}),
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
        masked = MaskedWeights(**json.loads(metadata["masked"])) if "masked" in metadata else None
        tokens = TokenPlan.from_json(metadata["tokens"]) if "tokens" in metadata else None
        if tokens is not None:
            tokens.check(arch)
    except (KeyError, ValueError, TypeError, RecursionError) as error:  # bad JSON and ArchitectureError are ValueErrors
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    if not isinstance(lineage, list) or not all(isinstance(step, dict) for step in lineage):
        raise CheckpointError(f"{path} has a damaged header: the lineage is no list of objects")
    return CheckpointHeader(arch, tuple(lineage), masked, tokens)


def is_rebased(lineage: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last thing that was done to a model is its change of basis."""
    return bool(lineage) and lineage[-1].get("step") == "rebase"
