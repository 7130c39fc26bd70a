"""BlockShape and Architecture: everything that decides the shape of a Vision Transformer's function.

Both are frozen and check themselves when built, so a value that exists is a model that can be built.
The names are timm's (`embed_dim`, `num_heads`, `mlp_dim`); QK and V sizes are free per block.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self

from vit.errors import ArchitectureError

MAX_SIZE = 65_536
"""No published Vision Transformer comes near; beyond it a size is a typing error, not a model."""


class Unit(StrEnum):
    """The five kinds of units that structural pruning can remove (Yang et al., NViT, poster)."""

    EMBED = "embed"
    HEAD = "head"
    QK = "qk"
    V = "v"
    MLP = "mlp"


BLOCK_UNITS = (Unit.HEAD, Unit.QK, Unit.V, Unit.MLP)
"""Units that every block has of its own; EMBED is shared by all blocks."""


def _check_size(name: str, size: object, least: int = 1) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise ArchitectureError(f"{name} must be a whole number, got {size!r}", name)
    if not least <= size <= MAX_SIZE:
        raise ArchitectureError(f"{name} must be from {least} to {MAX_SIZE}, got {size}", name)


@dataclass(frozen=True, slots=True)
class BlockShape:
    """Sizes of one block. `qk_dim` and `v_dim` count channels per head."""

    num_heads: int
    qk_dim: int
    v_dim: int
    mlp_dim: int

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_size(field.name, getattr(self, field.name))

    def size(self, unit: Unit) -> int:
        """Number of units of one kind in this block."""
        return int(getattr(self, SIZE_FIELD[unit]))


SIZE_FIELD = {
    Unit.EMBED: "embed_dim",
    Unit.HEAD: "num_heads",
    Unit.QK: "qk_dim",
    Unit.V: "v_dim",
    Unit.MLP: "mlp_dim",
}
"""The field of Architecture (EMBED) or BlockShape (the others) that counts a kind of unit."""

POOLS = ("token", "avg")
POS_EMBEDS = ("all", "patches", "none")
NORMS = ("layer", "rms")
FINAL_NORMS = ("before_pool", "after_pool", "none")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")

_CHOICES = {
    "pool": POOLS,
    "pos_embed": POS_EMBEDS,
    "norm": NORMS,
    "final_norm": FINAL_NORMS,
    "activation": ACTIVATIONS,
}
_FLAGS = (
    "class_token",
    "dist_token",
    "pool_include_prefix",
    "pre_norm",
    "patch_bias",
    "qkv_bias",
    "proj_bias",
    "qk_norm",
    "layer_scale",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A plain Vision Transformer with free head, QK, V and MLP sizes in every block.

    Attributes:
        image_size, patch_size: (height, width) in pixels; a last incomplete patch is dropped.
        in_chans, num_classes: image channels; outputs (0: no classifier, features come out).
        embed_dim: channels of the residual stream.
        blocks: one BlockShape per block, first to last.
        class_token, dist_token, reg_tokens: prefix tokens, in this order before the patches.
        pool: what the classifier reads, the class `token` or the `avg` over tokens.
        pool_include_prefix: whether `avg` also averages over the prefix tokens.
        pos_embed: learned positions for `all` tokens, for `patches` only, or `none`.
        norm, norm_eps: `layer` (LayerNorm) or `rms` (RMSNorm), and its epsilon.
        pre_norm: a norm between the embedding and the first block (CLIP).
        final_norm: `before_pool`, `after_pool` (timm's fc_norm) or `none`.
        patch_bias, qkv_bias, proj_bias: biases of the patch embedding, of Q, K, V, and of the
            attention projection and both MLP layers.
        qk_norm: a norm over the channels of every query and key (shared by the heads).
        layer_scale: a learned factor per channel on both branches of a block.
        activation: of the MLP.
        softmax_scale: factor on q·k per block; None means qk_dim**-0.5 of each block. A block whose
            QK was cut keeps the factor of its original size, or its function would change.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_classes: int
    embed_dim: int
    blocks: tuple[BlockShape, ...]
    class_token: bool = True
    dist_token: bool = False
    reg_tokens: int = 0
    pool: str = "token"
    pool_include_prefix: bool = False
    pos_embed: str = "all"
    norm: str = "layer"
    norm_eps: float = 1e-6
    pre_norm: bool = False
    final_norm: str = "before_pool"
    patch_bias: bool = True
    qkv_bias: bool = True
    proj_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    activation: str = "gelu"
    softmax_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            pair = getattr(self, name)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ArchitectureError(f"{name} must be (height, width), got {pair!r}", name)
            for size in pair:
                _check_size(name, size)
        for name in ("in_chans", "embed_dim"):
            _check_size(name, getattr(self, name))
        for name in ("num_classes", "reg_tokens"):
            _check_size(name, getattr(self, name), least=0)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ArchitectureError(f"{name} must be true or false, got {getattr(self, name)!r}", name)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ArchitectureError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}", name
                )
        if not isinstance(self.blocks, tuple) or not all(isinstance(b, BlockShape) for b in self.blocks):
            raise ArchitectureError("blocks must be a tuple of BlockShape", "blocks")
        if not self.blocks or len(self.blocks) > 1024:
            raise ArchitectureError(f"blocks must be 1 to 1024, got {len(self.blocks)}", "blocks")
        if any(i < p for i, p in zip(self.image_size, self.patch_size, strict=True)):
            raise ArchitectureError(
                f"image_size {self.image_size} is smaller than patch_size {self.patch_size}",
                "image_size",
            )
        if self.pool == "token" and not self.class_token:
            raise ArchitectureError(
                "pool 'token' reads the class token, and class_token is false; use pool 'avg'",
                "pool",
            )
        if self.dist_token and not (self.class_token and self.pool == "token"):
            raise ArchitectureError(
                "dist_token goes with class_token and pool 'token': its head is averaged with theirs",
                "dist_token",
            )
        if not (isinstance(self.norm_eps, float) and 0 < self.norm_eps < 1):
            raise ArchitectureError(f"norm_eps must be between 0 and 1, got {self.norm_eps!r}", "norm_eps")
        self._check_scale()

    def _check_scale(self) -> None:
        if self.softmax_scale is None:
            return
        if not isinstance(self.softmax_scale, tuple):
            raise ArchitectureError("softmax_scale must be a tuple of numbers or None", "softmax_scale")
        if len(self.softmax_scale) != len(self.blocks):
            raise ArchitectureError(
                f"softmax_scale has {len(self.softmax_scale)} entries for {len(self.blocks)} blocks",
                "softmax_scale",
            )
        if any(not (isinstance(s, float) and 0 < s < float("inf")) for s in self.softmax_scale):
            raise ArchitectureError("softmax_scale must hold positive numbers", "softmax_scale")
        # One spelling for one function: the default scale is always written as None.
        if self.softmax_scale == tuple(b.qk_dim**-0.5 for b in self.blocks):
            object.__setattr__(self, "softmax_scale", None)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def prefix_tokens(self) -> int:
        """Class, distillation and register tokens."""
        return int(self.class_token) + int(self.dist_token) + self.reg_tokens

    @property
    def patches(self) -> int:
        (height, width), (patch_h, patch_w) = self.image_size, self.patch_size
        return (height // patch_h) * (width // patch_w)

    @property
    def tokens(self) -> int:
        """Sequence length that every block sees."""
        return self.patches + self.prefix_tokens

    @property
    def scales(self) -> tuple[float, ...]:
        """The softmax scale of every block, defaults filled in."""
        return self.softmax_scale or tuple(b.qk_dim**-0.5 for b in self.blocks)

    @property
    def id(self) -> str:
        """A hash of the canonical JSON: equal ids, equal architectures."""
        return "arch-" + hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def replace(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        document["image_size"] = list(self.image_size)
        document["patch_size"] = list(self.patch_size)
        document["blocks"] = [{f.name: getattr(b, f.name) for f in fields(b)} for b in self.blocks]
        document["softmax_scale"] = None if self.softmax_scale is None else list(self.softmax_scale)
        return document

    def to_json(self) -> str:
        """Canonical: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, document: object) -> Self:
        """Build from a JSON object; unknown, missing and ill-typed fields are errors."""
        if not isinstance(document, Mapping):
            raise ArchitectureError(f"an architecture is a JSON object, got {type(document).__name__}")
        values = dict(_checked_fields(cls, document, "an architecture"))
        for name in ("image_size", "patch_size"):
            values[name] = _pair(name, values[name])
        blocks = values["blocks"]
        if isinstance(blocks, str) or not isinstance(blocks, Sequence):
            raise ArchitectureError("blocks must be a list of objects", "blocks")
        values["blocks"] = tuple(_block(block, index) for index, block in enumerate(blocks))
        if (scale := values.get("softmax_scale")) is not None:
            values["softmax_scale"] = _numbers("softmax_scale", scale)
        if isinstance(values.get("norm_eps"), int) and not isinstance(values["norm_eps"], bool):
            values["norm_eps"] = _numbers("norm_eps", [values["norm_eps"]])[0]
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers of 5,000 digits, 100,000 brackets
            raise ArchitectureError(f"not JSON: {error}") from None
        return cls.from_dict(document)


def _checked_fields(cls: type, document: Mapping[str, Any], what: str, where: str = "") -> Mapping[str, Any]:
    known = {f.name: f for f in fields(cls)}
    for name in document:
        if name not in known:
            raise ArchitectureError(
                f"{what} has no field {where}{name}; its fields are {', '.join(known)}",
                f"{where}{name}",
            )
    for name, field in known.items():
        if field.default is MISSING and name not in document:
            raise ArchitectureError(f"{what} needs the field {where}{name}", f"{where}{name}")
    return document


def _block(document: object, index: int) -> BlockShape:
    where = f"blocks[{index}]."
    if not isinstance(document, Mapping):
        raise ArchitectureError(f"{where[:-1]} must be an object", where[:-1])
    try:
        return BlockShape(**_checked_fields(BlockShape, document, "a block", where))
    except ArchitectureError as error:
        if error.field is None or error.field.startswith(where):
            raise
        raise ArchitectureError(f"{where}{error}", f"{where}{error.field}") from None


def _pair(name: str, value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        return (value[0], value[1])
    raise ArchitectureError(f"{name} must be a number or [height, width], got {value!r}", name)


def _numbers(name: str, value: object) -> tuple[float, ...]:
    numbers: Sequence[Any] = value if isinstance(value, Sequence) and not isinstance(value, str) else [None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        raise ArchitectureError(f"{name} must be a list of numbers", name)
    try:
        return tuple(float(v) for v in numbers)
    except OverflowError:
        raise ArchitectureError(f"{name} is too large", name) from None
