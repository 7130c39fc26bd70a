"""Cutting units out: pure functions from a model and what stays to a new model.

Shrinking equals masking for heads, QK, V and MLP: a unit whose every slice is zero contributes nothing. For EMBED it
does in models with RMS norms, whose scale takes up that fewer channels are averaged over. It does not with LayerNorm,
which also subtracts the mean of the channels that remain, nor for QK under qk-norm.
"""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from vit.architecture import Architecture
from vit.groups import EMBED, Keep, Part, is_stream_norm, parts
from vit.masks import SparsityMask
from vit.model import VisionTransformer
from vit.tokens import refuse_token_pruned


def view(part: Part, tensors: Mapping[str, Tensor]) -> Tensor:
    """A part of the tensors that are laid out like the parameters, with the part's axes; no copy."""
    return tensors[part.parameter][part.start : part.stop].reshape(part.shape)


@torch.no_grad()
def shrink(model: VisionTransformer, keep: Keep) -> VisionTransformer:
    """A smaller model that holds copies of the kept slices; `model` is untouched.

    Softmax scales are those of the original QK sizes.

    Raises:
        UnsupportedModelError: a model that drops tokens.
    """
    refuse_token_pruned(model, "cutting units out")
    state, arch = model.state_dict(), model.arch
    # The RMS over kept channels is smaller than over all with the dropped ones at zero (`resize` sees to the epsilon).
    norm_scale = math.sqrt(arch.embed_dim / len(keep.indices[EMBED])) if arch.norm == "rms" else 1.0
    if norm_scale != 1.0:
        state = {name: t * norm_scale if is_stream_norm(name) else t for name, t in state.items()}
    small = VisionTransformer(keep.architecture(arch)).to(next(model.parameters()))  # device, dtype
    small.load_state_dict(cut_tensors(arch, keep, state))
    return small.train(model.training)


@torch.no_grad()
def cut_tensors(arch: Architecture, keep: Keep, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the kept slices of tensors that are laid out like the parameters of `arch`, by their names: weights as
    they are, gradients, an optimiser's moments, masks; of all parameters or some."""
    kept: dict[str, list[Tensor]] = defaultdict(list)
    for part in parts(arch):
        if part.parameter not in tensors:
            continue
        piece = view(part, tensors)
        for axis, group in enumerate(part.axes):
            if group is not None:
                index = torch.tensor(keep.indices[group].tolist(), device=piece.device)
                piece = piece.index_select(axis, index)
        kept[part.parameter].append(piece.flatten(0, part.lead - 1))
    with torch.device("meta"):
        empty = VisionTransformer(keep.architecture(arch)).state_dict()
    return {name: torch.cat(kept[name]).reshape(tensor.shape) for name, tensor in empty.items() if name in kept}


def cut_masks(arch: Architecture, keep: Keep, masks: SparsityMask) -> SparsityMask:
    """Masks of `shrink(model, keep)` from those of its model: a kept weight is removed where it was before."""
    return SparsityMask(cut_tensors(arch, keep, masks.keep))


def kept_rows(arch: Architecture, keep: Keep, parameter: str) -> Tensor:
    """Indices of the rows of a parameter (its first axis) that stay."""
    rows = []
    for part in parts(arch):
        if part.parameter == parameter:
            index = torch.arange(part.start, part.stop).reshape(part.shape[: part.lead])
            for axis, group in enumerate(part.axes[: part.lead]):
                if group is not None:
                    index = index.index_select(axis, torch.tensor(keep.indices[group].tolist()))
            rows.append(index.flatten())
    return torch.cat(rows)
