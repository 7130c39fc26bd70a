"""Architecture, weights and lineage in one file: safetensors with a JSON document in its metadata.

Reading runs no code from the file. The lineage is the list of what was done to the model, oldest first.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit.architecture import Architecture
from vit.errors import CheckpointError
from vit.files import write_atomically
from vit.model import VisionTransformer

FORMAT = "vitfit-checkpoint"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk.

    Attributes:
        arch: its architecture.
        weights: state dict of `VisionTransformer(arch)`.
        lineage: one JSON object per step that made it, each with a "step" name, oldest first.
    """

    arch: Architecture
    weights: Mapping[str, Tensor]
    lineage: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, model: VisionTransformer, lineage: tuple[Mapping[str, Any], ...] = ()) -> "Checkpoint":
        weights = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
        return cls(model.arch, weights, lineage)

    def model(self) -> VisionTransformer:
        """The model, in eval mode."""
        model = VisionTransformer(self.arch).to(next(iter(self.weights.values())).dtype)
        model.load_state_dict(dict(self.weights))
        return model.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "architecture": checkpoint.arch.to_json(),
        "lineage": json.dumps(list(checkpoint.lineage)),
    }
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
    write_atomically(path, lambda temporary: save_file(weights, temporary, metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """
    Raises:
        CheckpointError: no such file, truncated, of another format, or weights that do not fit its architecture.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no readable checkpoint (truncated or another format): {error}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file but no vitfit checkpoint; "
            "for a timm model give its timm name, for raw weights `--timm NAME --weights FILE`"
        )
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(f"{path} has checkpoint version {metadata.get('version')}, this vitfit reads {VERSION}")
    try:
        arch = Architecture.from_json(metadata["architecture"])
        lineage = json.loads(metadata["lineage"])
    except (KeyError, ValueError, RecursionError) as error:  # ArchitectureError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    if not isinstance(lineage, list) or not all(isinstance(step, dict) for step in lineage):
        raise CheckpointError(f"{path} has a damaged header: the lineage is no list of objects")
    _check_weights(path, arch, weights)
    return Checkpoint(arch, weights, tuple(lineage))


def _check_weights(path: Path, arch: Architecture, weights: Mapping[str, Tensor]) -> None:
    import torch

    with torch.device("meta"):
        expected = {n: tuple(t.shape) for n, t in VisionTransformer(arch).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: weight {name} holds {tensor.dtype}, not floating-point numbers")
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: weight {name} has shape {found.get(name)}, its architecture says {expected.get(name)}"
            )
