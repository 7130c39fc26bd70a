"""Cutting units out: pure functions from a model and what stays to a new model.

Shrinking equals masking for heads, QK, V and MLP: a unit whose every slice is zero contributes nothing. It does not
for EMBED, because a norm averages over the channels that remain, nor for QK under qk-norm, for the same reason.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from vit.groups import Keep, Part, parts
from vit.model import VisionTransformer


def view(part: Part, tensors: Mapping[str, Tensor]) -> Tensor:
    """A part of the tensors that are laid out like the parameters, with the part's axes; no copy."""
    return tensors[part.parameter][part.start : part.stop].reshape(part.shape)


@torch.no_grad()
def shrink(model: VisionTransformer, keep: Keep) -> VisionTransformer:
    """A smaller model that holds copies of the kept slices; `model` is untouched.

    Softmax scales are those of the original QK sizes.
    """
    state = model.state_dict()
    kept_rows: dict[str, list[Tensor]] = defaultdict(list)
    for part in parts(model.arch):
        piece = view(part, state)
        for axis, group in enumerate(part.axes):
            if group is not None:
                index = torch.tensor(keep.indices[group].tolist(), device=piece.device)
                piece = piece.index_select(axis, index)
        kept_rows[part.parameter].append(piece.flatten(0, part.lead - 1))
    small = VisionTransformer(keep.architecture(model.arch)).to(next(model.parameters()))  # device, dtype
    small.load_state_dict(
        {name: torch.cat(kept_rows[name]).reshape(empty.shape) for name, empty in small.state_dict().items()}
    )
    return small.train(model.training)
