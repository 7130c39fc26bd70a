"""Saliency: the estimated loss increase from removing each unit of a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from search.errors import SaliencyError
from vit.architecture import Architecture
from vit.errors import ArchitectureError
from vit.files import write_atomically
from vit.fingerprint import fingerprint
from vit.groups import Group, Keep, groups, size

FORMAT = "vitfit-saliency"
VERSION = "1"
MAX_BYTES = 64 * 2**20

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Saliency:
    """Saliency per unit, in units of the criterion (of the loss for criteria that estimate it).

    Attributes:
        arch: the model's architecture.
        values: for every group a vector with one entry a unit, >= 0.
        criterion: name in `search.criteria.CRITERIA`.
        model: id of the weights.  data: fingerprint of the data.  num_batches: batches averaged over.
    """

    arch: Architecture
    values: Mapping[Group, Array]
    criterion: str
    model: str
    data: str
    num_batches: int

    def __post_init__(self) -> None:
        for name in ("criterion", "model", "data"):
            if not isinstance(getattr(self, name), str):
                raise SaliencyError(f"saliency {name} must be text, got {getattr(self, name)!r:.100}")
        if isinstance(self.num_batches, bool) or not isinstance(self.num_batches, int) or self.num_batches < 0:
            raise SaliencyError(f"saliency num_batches must be a whole number from 0, got {self.num_batches!r:.100}")
        frozen = {}
        for group in groups(self.arch):
            if group not in self.values:
                raise SaliencyError(f"saliency of {group} is missing")
            vector = np.array(self.values[group], dtype=np.float64)
            if vector.shape != (size(self.arch, group),):
                raise SaliencyError(
                    f"saliency of {group} has shape {vector.shape}, the model has {size(self.arch, group)} units"
                )
            if not (np.isfinite(vector).all() and (vector >= 0).all()):
                raise SaliencyError(f"saliency of {group} holds NaN, infinite or negative numbers")
            vector.setflags(write=False)
            frozen[group] = vector
        object.__setattr__(self, "values", frozen)

    def kept(self, group: Group) -> Array:
        """Saliency that stays when the n most salient units stay, for n = 0 to all; shape (units + 1,)."""
        return np.concatenate([[0.0], np.cumsum(np.sort(self.values[group])[::-1])])

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any value, and with what the values are of."""
        return fingerprint(self.document(), *(self.values[group] for group in groups(self.arch)))

    @cached_property
    def total(self) -> float:
        return float(sum(vector.sum() for vector in self.values.values()))

    def order(self, group: Group) -> npt.NDArray[np.int64]:
        """Units from the most salient to the least; ties go to the lower index."""
        return np.argsort(-self.values[group], kind="stable")

    def keep(self, sizes: Mapping[Group, int]) -> Keep:
        """The most salient units, as many as `sizes` says."""
        return Keep.of(
            self.arch,
            {group: np.sort(self.order(group)[:count]) for group, count in sizes.items()},
        )

    def document(self) -> dict[str, Any]:
        """All but the numbers."""
        return {
            "architecture": self.arch.to_dict(),
            "criterion": self.criterion,
            "model": self.model,
            "data": self.data,
            "num_batches": self.num_batches,
        }


def smoothed(previous: Saliency | None, new: Saliency, decay: float = 0.9, keep: Keep | None = None) -> Saliency:
    """decay · previous + (1 - decay) · new, the moving average between pruning steps (NViT takes 0.9).

    Args:
        previous: of the model before the last cut; without one, `new` is all there is.
        new: of what is left.
        decay: from 0 (`new` alone) to below 1.
        keep: the units of the previous model that are left; None: all of them.

    Raises:
        SaliencyError: a decay out of range, another criterion, or other units.
    """
    if not 0 <= decay < 1:
        raise SaliencyError(f"decay must be from 0 to below 1, got {decay}")
    if previous is None:
        return new
    if previous.criterion != new.criterion:
        raise SaliencyError(f"saliency of {previous.criterion} and of {new.criterion} cannot be averaged; score anew")
    if len(previous.values) != len(new.values):
        raise SaliencyError(f"saliency of {previous.arch.depth} and of {new.arch.depth} blocks cannot be averaged")
    values = {}
    for group, vector in new.values.items():
        before = previous.values[group]
        left = np.arange(len(before)) if keep is None else keep.indices.get(group, np.arange(0))
        if len(left) != len(vector) or left[-1] >= len(before):
            raise SaliencyError(
                f"{len(left)} of {len(before)} units of {group} are said to be left, the new saliency has "
                f"{len(vector)}; give what was kept of the previous model"
            )
        values[group] = decay * before[left] + (1 - decay) * vector
    return Saliency(new.arch, values, new.criterion, new.model, new.data, previous.num_batches + new.num_batches)


def save_saliency(saliency: Saliency, path: Path) -> None:
    tensors = {str(group): vector.copy() for group, vector in saliency.values.items()}
    metadata = {"format": FORMAT, "version": VERSION, "document": json.dumps(saliency.document())}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_saliency(path: Path) -> Saliency:
    """
    Raises:
        SaliencyError: missing, truncated, another format or version, or numbers that do not fit the architecture.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if path.stat().st_size > MAX_BYTES:  # a checkpoint, say: its weights are not to be read
                raise SaliencyError(f"{path} is larger than {MAX_BYTES // 2**20} MiB; no saliency is")
            vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise SaliencyError(f"no saliency at {path}") from None
    except (SafetensorError, OSError) as error:
        raise SaliencyError(f"{path} is no readable saliency (truncated or another format): {error}") from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise SaliencyError(f"{path} is no vitfit saliency of version {VERSION}")
    try:
        document = json.loads(metadata["document"])
        arch = Architecture.from_dict(document["architecture"])
        values = {group: vectors[str(group)] for group in groups(arch) if str(group) in vectors}
        return Saliency(
            arch, values, document["criterion"], document["model"], document["data"], document["num_batches"]
        )
    except (KeyError, TypeError, ValueError, ArchitectureError, RecursionError) as error:
        raise SaliencyError(f"{path} is damaged: {error!s:.300}") from None
