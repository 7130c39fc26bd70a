"""Architecture, weights, masks and lineage in one file: safetensors with a JSON document in its metadata.

Reading runs no code from the file. The lineage is the list of what was done to the model, oldest first. Weights that
have a mask are stored as bits and the values that stay (`vit.sparse_storage`), so sparse models make small files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit.architecture import Architecture
from vit.checkpoint_header import CheckpointHeader, MaskedWeights, read_header
from vit.errors import CheckpointError, MaskError
from vit.files import write_atomically
from vit.masks import SparsityMask
from vit.model import VisionTransformer
from vit.sparse_storage import check_masks, pack, stored_bytes, unpack
from vit.token_plan import TokenPlan
from vit.tokens import build, plan_of

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel of pixels between 0 and 1; fewer entries than channels repeat."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk.

    Attributes:
        arch: its architecture.
        weights: state dict of `VisionTransformer(arch)`.
        lineage: one JSON object per step that made it, each with a "step" name, oldest first.
        masks: which single weights stay, of a sparse model; the others are zero.
        tokens: where tokens are dropped, of a model with token pruning (`vit.tokens`), whose weights are among these.

    Raises:
        MaskError: masks that do not fit the weights, or that remove a weight that is not zero.
    """

    arch: Architecture
    weights: Mapping[str, Tensor]
    lineage: tuple[Mapping[str, Any], ...] = ()
    masks: SparsityMask | None = None
    tokens: TokenPlan | None = None

    def __post_init__(self) -> None:
        if self.masks is not None:
            check_masks(self.weights, self.masks.keep)

    @classmethod
    def of(
        cls,
        model: VisionTransformer,
        lineage: tuple[Mapping[str, Any], ...] = (),
        masks: SparsityMask | None = None,
    ) -> "Checkpoint":
        weights = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
        return cls(model.arch, weights, lineage, masks, plan_of(model))

    def model(self) -> VisionTransformer:
        """The model, in eval mode."""
        model = build(self.arch, self.tokens).to(next(iter(self.weights.values())).dtype)
        model.load_state_dict(dict(self.weights))
        return model.eval()

    def normalisation(self) -> Normalisation | None:
        """What the model was trained with, where the lineage knows it: where the weights are imported ones.

        Raises:
            CheckpointError: the lineage holds something else under these names.
        """
        for step in reversed(self.lineage):
            if "mean" in step and "std" in step:
                return _numbers("mean", step["mean"]), _numbers("std", step["std"])
        return None


def _numbers(name: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not values:
        raise CheckpointError(f"the checkpoint's lineage has a {name} that is no list of numbers: {values!r:.80}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"the checkpoint's lineage has a {name} with {value!r:.80}, which is no number")
    return tuple(float(value) for value in values)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    header = CheckpointHeader(checkpoint.arch, checkpoint.lineage, _masked(checkpoint.masks), checkpoint.tokens)
    metadata = header.to_metadata()
    weights = {name: tensor.contiguous() for name, tensor in _packed(checkpoint).items()}
    write_atomically(path, lambda temporary: save_file(weights, temporary, metadata))


def _packed(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    return checkpoint.weights if checkpoint.masks is None else pack(checkpoint.weights, checkpoint.masks.keep)


def _masked(masks: SparsityMask | None) -> MaskedWeights | None:
    return None if masks is None else MaskedWeights(masks.total, masks.zeros)


def storage_bytes(checkpoint: Checkpoint) -> tuple[int, int]:
    """Bytes of the weights in a file, and what they would be without masks."""
    return stored_bytes(_packed(checkpoint)), stored_bytes(checkpoint.weights)


def load_checkpoint(path: Path) -> Checkpoint:
    """
    Raises:
        CheckpointError: no such file, truncated, of another format, weights that do not fit its architecture, or
            damaged masks.
    """
    header = read_header(path)
    try:
        weights, keep = unpack(load_file(path)) if header.masked is not None else (load_file(path), {})
    except MaskError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _check_weights(path, header, weights)
    masks = None if header.masked is None else SparsityMask(keep)
    if _masked(masks) != header.masked:
        raise CheckpointError(
            f"{path}: its header says that {header.masked} weights are removed, its masks say {_masked(masks)}"
        )
    return Checkpoint(header.arch, weights, header.lineage, masks, header.tokens)


def _check_weights(path: Path, header: CheckpointHeader, weights: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = {n: tuple(t.shape) for n, t in build(header.arch, header.tokens).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: weight {name} holds {tensor.dtype}, not floating-point numbers")
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: weight {name} has shape {found.get(name)}, its architecture says {expected.get(name)}"
            )
