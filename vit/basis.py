"""The same function in a better basis: channels sorted by what they carry, so that the ones to drop carry little.

A Vision Transformer computes the same function in many bases. Four changes, each of them exact (docs/equations.md has
the proofs):

    fold      layer scale and the norms' scale and shift move into the linear layers beside them
    centre    LayerNorm subtracts the stream's mean; subtracted from all that writes to the stream instead, an RMS norm
              is left, and that does not change under rotations (SliceGPT, Ashkboos et al. 2024, arXiv 2401.15024)
    rotate    the stream into the principal components of what its readers see, one rotation for the whole model
    balance   Q and K of a head by T and T⁻ᵀ such that both have the same diagonal second moment, likewise V and proj:
              dropping the last channels then is the best low-rank approximation of q·k (of proj·mixed) under the
              calibration images (balanced truncation, Moore 1981). What all keys of an image share, and the mean of the
              mixed values, need no channels: softmax ignores the one, the other goes to proj's bias.

A model that came with LayerNorm can be given LayerNorm again, for one channel more (`with_layer_norm`).
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vit.architecture import Architecture
from vit.errors import UnknownNameError
from vit.groups import EMBED, Part, is_stream_norm, parts
from vit.model import VisionTransformer
from vit.moments import BlockMoments, Sensitivity, collect_moments
from vit.surgery import view
from vit.tokens import refuse_token_pruned

State = dict[str, Tensor]

DAMP = 1e-6
"""Share of a second moment's mean diagonal that is added to it, so that channels without any signal have an inverse."""


CHANGES = ("stream", "qk", "v")
"""Rotate the residual stream; balance Q with K; balance V with proj."""


@dataclass(frozen=True, eq=False)
class Rebased:
    """
    Attributes:
        model: the same function in the new basis; may have biases that the original had not, an RMS norm in place of
            LayerNorm, and no layer scale.
        skipped: changes that would have changed this model's function, each with the reason.
        images: calibration images that the basis was chosen on.
        sensitivity: that it was weighted by.
    """

    model: VisionTransformer
    skipped: tuple[str, ...]
    images: int
    sensitivity: Sensitivity | None = None


@torch.no_grad()
def rebase(
    model: VisionTransformer,
    batches: Iterable[Tensor],
    weigh: Callable[[VisionTransformer], Sensitivity] | None = None,
    changes: Collection[str] = CHANGES,
) -> Rebased:
    """`model` in the basis of its calibration images; `model` is untouched.

    Args:
        batches: images (B, C, height, width); no labels are needed.
        weigh: gives how much the loss feels each token of the folded model (`search.sensitivity`); without it all
            tokens count alike.
        changes: which of CHANGES to make; folding is always done.

    Raises:
        UnknownNameError: a change that is none of CHANGES.
        UnsupportedModelError: a model that drops tokens.
        CalibrationError: no image, a pixel or an output that is not finite, or flat images only.
    """
    refuse_token_pruned(model, "a change of basis")
    for change in changes:
        if change not in CHANGES:
            raise UnknownNameError("change of basis", change, CHANGES)
    skipped = []
    arch, state = _folded(model)
    obstacle = _stream_obstacle(arch)
    if obstacle is not None:
        skipped.append(f"the stream is not rotated: {obstacle}")
    rotate = "stream" in changes and obstacle is None
    if rotate:
        arch, state = _centred(arch, state)
    folded = _at_least_float32(_model(arch, state, model))
    sensitivity = None if weigh is None else weigh(folded)
    moments = collect_moments(folded, batches, sensitivity)
    if rotate:
        state = _rotated(arch, state, _principal_components(moments.stream, centred=model.arch.norm == "layer"))
    if arch.qk_norm:
        skipped.append(
            "Q and K keep their channels: a norm over them (qk-norm) does not commute with a change of basis"
        )
    for index, block in enumerate(moments.blocks):
        if "qk" in changes and not arch.qk_norm:
            _balance_qk(arch, state, index, block)
        if "v" in changes:
            _balance_v(arch, state, index, block)
    return Rebased(_model(arch, state, model), tuple(skipped), moments.images, sensitivity)


def _model(arch: Architecture, state: State, like: VisionTransformer) -> VisionTransformer:
    model = VisionTransformer(arch).to(next(like.parameters()))  # device, dtype
    model.load_state_dict(state)
    return model.train(like.training)


def _at_least_float32(model: VisionTransformer) -> VisionTransformer:
    return model if next(model.parameters()).dtype == torch.float64 else model.float()


# --- fold and centre ---------------------------------------------------------------------------------------------


def _heads(arch: Architecture) -> tuple[str, ...]:
    if not arch.num_classes:
        return ()
    return ("head", "head_dist") if arch.dist_token else ("head",)


def _folded(model: VisionTransformer) -> tuple[Architecture, State]:
    """Layer scale and the norms' affine parts folded into the linear layers, which all have biases then; float64."""
    arch = model.arch
    state = {name: tensor.detach().to(torch.float64, copy=True) for name, tensor in model.state_dict().items()}
    new = arch.replace(qkv_bias=True, proj_bias=True, layer_scale=False)
    for index in range(arch.depth):
        block = f"blocks.{index}"
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            weight = state[f"{block}.{name}.weight"]
            state.setdefault(f"{block}.{name}.bias", weight.new_zeros(len(weight)))
        _fold_norm(state, f"{block}.norm1", [f"{block}.attn.qkv"])
        _fold_norm(state, f"{block}.norm2", [f"{block}.mlp.fc1"])
        if arch.layer_scale:
            for scale, name in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
                gamma = state.pop(f"{block}.{scale}.gamma")
                state[f"{block}.{name}.weight"] = gamma[:, None] * state[f"{block}.{name}.weight"]
                state[f"{block}.{name}.bias"] = gamma * state[f"{block}.{name}.bias"]
    if arch.final_norm != "none" and _heads(arch):
        _fold_norm(state, "norm" if arch.final_norm == "before_pool" else "fc_norm", _heads(arch))
    return new, state


def _fold_norm(state: State, norm: str, readers: Iterable[str]) -> None:
    """W (s∘x + t) + b = (W∘s) x + (W t + b)."""
    scale = state[f"{norm}.weight"]
    shift = state.get(f"{norm}.bias", torch.zeros_like(scale))
    for reader in readers:
        weight = state[f"{reader}.weight"]
        state[f"{reader}.bias"] = state[f"{reader}.bias"] + weight @ shift
        state[f"{reader}.weight"] = weight * scale
    state[f"{norm}.weight"] = torch.ones_like(scale)
    if f"{norm}.bias" in state:
        state[f"{norm}.bias"] = torch.zeros_like(scale)


def _stream_obstacle(arch: Architecture) -> str | None:
    """Why the residual stream cannot be rotated, if so."""
    if arch.pre_norm:
        return "a norm with a scale of its own writes to it (pre-norm), and that does not commute with a rotation"
    if not arch.num_classes:
        return "it is what the model gives out (no classifier)"
    if arch.norm == "layer" and arch.final_norm == "none":
        return "the classifier reads it without a norm, so its mean matters"
    if arch.norm == "layer" and arch.qk_norm:
        return "its LayerNorms cannot become RMS norms while those over Q and K (qk-norm) stay"
    return None


def _writers(arch: Architecture) -> list[str]:
    names = ["patch_embed.proj"]
    for index in range(arch.depth):
        names += [f"blocks.{index}.attn.proj", f"blocks.{index}.mlp.fc2"]
    return names


def _centred(arch: Architecture, state: State) -> tuple[Architecture, State]:
    """LayerNorm -> RMS norm: everything that writes to the stream writes nothing along (1, ..., 1)."""
    if arch.norm == "rms":
        return arch, state
    state = {name: tensor for name, tensor in state.items() if not (is_stream_norm(name) and name.endswith("bias"))}
    for name in _writers(arch):
        state[f"{name}.weight"] = state[f"{name}.weight"] - state[f"{name}.weight"].mean(dim=0, keepdim=True)
        if f"{name}.bias" in state:
            state[f"{name}.bias"] = state[f"{name}.bias"] - state[f"{name}.bias"].mean()
    for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        if name in state:
            state[name] = state[name] - state[name].mean(dim=-1, keepdim=True)
    return arch.replace(norm="rms"), state


# --- rotate the stream -------------------------------------------------------------------------------------------


def _principal_components(second_moment: Tensor, centred: bool) -> Tensor:
    """Orthonormal columns, the strongest first; shape (E, E).

    Args:
        centred: the stream has nothing along (1, ..., 1); that is the last column then, exactly.
    """
    if not centred:
        return torch.linalg.eigh(second_moment).eigenvectors.flip(1)
    plane = _hyperplane(len(second_moment)).to(second_moment)
    vectors = torch.linalg.eigh(plane.mT @ second_moment @ plane).eigenvectors.flip(1)
    ones = torch.full((len(plane), 1), len(plane) ** -0.5).to(second_moment)
    return torch.cat([plane @ vectors, ones], dim=1)


def _rotated(arch: Architecture, state: State, columns: Tensor) -> State:
    """Every parameter's channels of the stream, x of shape (E,), become columnsᵀ x; norms are left out.

    One rule for writers and readers: orthonormal columns are undone by their transpose.

    Args:
        columns: shape (E, E'), of any E' for which columns columnsᵀ leaves the stream alone.
    """
    rotated = dict(state)
    for name, axis in {part.parameter: _stream_axis(part) for part in parts(arch) if EMBED in part.axes}.items():
        if not is_stream_norm(name):
            rotated[name] = torch.tensordot(state[name], columns, dims=([axis], [0])).movedim(-1, axis).contiguous()
    return rotated


def _stream_axis(part: Part) -> int:
    """The axis of the parameter itself that counts the channels of the stream."""
    axis = part.axes.index(EMBED)
    return 0 if axis < part.lead else axis - part.lead + 1


# --- balance Q with K, and V with proj ---------------------------------------------------------------------------


def _root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """(L, L⁻¹) with L Lᵀ the second moments (H, D, D), damped to be definite.

    By eigenvectors and not by Cholesky, which a moment that rounding has left with a negative eigenvalue would stop.
    """
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(0)
    scale = values.mean(dim=1, keepdim=True)
    values = values + DAMP * torch.where(scale > 0, scale, 1.0)  # without any signal every basis is as good
    root = values.sqrt()
    return vectors * root[:, None, :], (vectors / root[:, None, :]).mT


def _balance(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(T, S) with Sᵀ T = 1 such that T first Tᵀ = S second Sᵀ = a diagonal, the largest entries first.

    With first = L Lᵀ, second = M Mᵀ and the singular values Lᵀ M = U D Vᵀ: T = D^½ Uᵀ L⁻¹, S = D^½ Vᵀ M⁻¹.

    Args:
        first, second: second moments by head, shape (H, D, D).

    Returns:
        By head, shape (H, D, D) each. Their product is the identity whatever the damping.
    """
    (left, left_inverse), (right, right_inverse) = _root(first), _root(second)
    u, d, vh = torch.linalg.svd(left.mT @ right)
    root = d.sqrt()[:, :, None]
    return root * (u.mT @ left_inverse), root * (vh @ right_inverse)


def _pieces(arch: Architecture, state: State, index: int, name: str) -> list[tuple[Part, Tensor]]:
    """The parts of one parameter of a block as views into `state`."""
    full = f"blocks.{index}.attn.{name}"
    return [(part, view(part, state)) for part in parts(arch) if part.parameter == full]


def _balance_qk(arch: Architecture, state: State, index: int, moments: BlockMoments) -> None:
    """q -> T q and k -> S k, in place. K's bias goes: softmax ignores what all keys share."""
    to_query, to_key = _balance(moments.query, moments.key)
    for name in ("qkv.weight", "qkv.bias"):
        (_, query), (_, key), _ = _pieces(arch, state, index, name)
        query.copy_(torch.einsum("hdc,hc...->hd...", to_query, query))
        key.copy_(torch.einsum("hdc,hc...->hd...", to_key, key) if name == "qkv.weight" else torch.zeros_like(key))


def _balance_v(arch: Architecture, state: State, index: int, moments: BlockMoments) -> None:
    """v -> T (v - E[m]), proj -> proj S ᵀ, in place; proj's bias takes what E[m] adds. Attention's rows sum to one, so
    what is taken from every value is taken from every mix."""
    (_, proj), *_ = _pieces(arch, state, index, "proj.weight")  # E H V
    to_value, to_proj = _balance(moments.mixed, torch.einsum("ehc,ehd->hcd", proj, proj))
    state[f"blocks.{index}.attn.proj.bias"] += torch.einsum("ehd,hd->e", proj, moments.mixed_mean)
    (_, weight), (_, bias) = (_pieces(arch, state, index, name)[-1] for name in ("qkv.weight", "qkv.bias"))
    weight.copy_(torch.einsum("hdc,hce->hde", to_value, weight))
    bias.copy_(torch.einsum("hdc,hc->hd", to_value, bias - moments.mixed_mean))
    proj.copy_(torch.einsum("ehc,hdc->ehd", proj, to_proj))


# --- back to LayerNorm -------------------------------------------------------------------------------------------


@torch.no_grad()
def with_layer_norm(model: VisionTransformer) -> VisionTransformer:
    """The same function with LayerNorm and one channel more in the stream; `model` has RMS norms.

    Its channels become coordinates in the hyperplane that is orthogonal to (1, ..., 1), where the mean that LayerNorm
    subtracts is zero. LayerNorm is what every runtime has a fused kernel for, and what tables were timed with.
    """
    arch = model.arch
    assert arch.norm == "rms", arch.norm
    assert not arch.pre_norm, "a norm with a scale of its own writes to the stream"
    assert not arch.qk_norm, "the norms over Q and K would change, too"
    assert arch.num_classes, "the stream itself is the output"
    narrow, state = _folded(model)
    width = arch.embed_dim + 1
    columns = _hyperplane(width).to(next(model.parameters()).device)
    state = _rotated(narrow, state, columns.mT)
    wide = narrow.replace(
        embed_dim=width,
        norm="layer",
        norm_eps=arch.norm_eps * arch.embed_dim / width,
    )
    for name in [name for name in state if is_stream_norm(name)]:
        state[name] = state[name].new_full((width,), math.sqrt(arch.embed_dim / width))
        state[name.replace("weight", "bias")] = state[name].new_zeros(width)
    return _model(wide, state, model)


def _hyperplane(width: int) -> Tensor:
    """Orthonormal columns that are orthogonal to (1, ..., 1): Helmert's; shape (width, width - 1), float64."""
    columns = torch.zeros(width, width - 1, dtype=torch.float64)
    for index in range(1, width):
        columns[:index, index - 1] = 1 / math.sqrt(index * (index + 1))
        columns[index, index - 1] = -index / math.sqrt(index * (index + 1))
    return columns
