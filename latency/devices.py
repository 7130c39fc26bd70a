"""Modelled targets: GPUs that nobody here owns, in closed form from published figures.

    block ms = max(launch, constant + batch · Σ_t c_t · x_t),  c_t >= 0

with x_t the MACs and bytes that one image costs a block (`block_terms`) and c_t what each costs on the device, found in
`latency.calibration`. No x_t falls when a size grows, so a bigger block never takes less time.

No published figure varies QK, V or H apart from EMBED. How a block's time is split between them rests on the MACs and
bytes of each, not on data.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from latency.components import Components
from latency.errors import TargetError
from latency.grid import AXES, Grid
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target
from vit.architecture import MAX_SIZE, Architecture
from vit.errors import UnknownNameError
from vit.fingerprint import fingerprint

Array = npt.NDArray[np.float64]

TERMS = (
    "gemm",
    "attention",
    "softmax",
    "traffic",
    "tokens",
    "layer_scale",
    "no_prefix",
    "no_pre_norm",
    "stem",
    "pixels",
)
"""What time is spent on, and the unit of its coefficient:

gemm, attention, stem: matrix products of the linear layers, of the attention, of the patch embedding; ms per GMAC.
softmax: attention scores on their way through memory, where attention is not fused; ms per MB.
traffic: everything else that the blocks move through memory; ms per MB.
tokens: rows, whatever their width (row reductions, the last tile of narrow matrix products); ms per thousand.
layer_scale, no_prefix, no_pre_norm: three traits that published figures show (see `Traits`); ms per MB.
pixels: the image, read and rearranged; ms per MB.
"""

_HEAD_STEP, _QUERY_TILE = 32, 128
"""FlashAttention (Dao 2023) pads heads to a multiple of 32 channels and works on tiles of 128 queries."""

_TRAIT_BYTES = 16
"""Per token and EMBED channel: LayerScale multiplies in fp32, twice a block, reads 2 and writes 4 bytes, and the
addition after it reads 4 in place of 2. The other two traits are measured in the same unit."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a runtime executes blocks.

    Attributes:
        embed_bytes, head_bytes, mlp_bytes: through memory per token and channel of EMBED, of H·(QK + V), of MLP.
        score_bytes: per attention score; 0 where attention is fused and no score reaches memory.
        block_ms: of every block at any batch: start and end of its kernels.
        launch_ms: a block takes at least that long, since the host starts its kernels one by one.

    Bytes are counted kernel by kernel. Mixed precision, eager: the stream is fp32, so a norm reads and writes 4 and its
    cast reads 4 and writes 2 (14), an addition reads 4 and 2 and writes 4 (10), a matrix product reads or writes 2 on
    the EMBED side (4 in all, twice): 2·(14 + 10 + 4) = 56. Q, K, V and the attention's output are written and read once
    (2 + 2 bytes for each of two H·QK and two H·V). MLP: fc1 writes, GELU reads and writes, fc2 reads. Scores: written,
    scaled, softmax with its casts to fp32 and back, read.
    """

    embed_bytes: int
    head_bytes: int
    mlp_bytes: int
    score_bytes: int
    block_ms: float
    launch_ms: float

    @property
    def fused(self) -> bool:
        return self.score_bytes == 0


EXECUTIONS: dict[str, Execution] = {
    "fp32": Execution(56, 16, 16, 24, block_ms=0.1, launch_ms=0.44),
    "fp16": Execution(28, 8, 8, 12, block_ms=0.1, launch_ms=0.44),
    "amp": Execution(56, 8, 8, 20, block_ms=0.1, launch_ms=0.44),
    "amp-fused": Execution(56, 8, 8, 0, block_ms=0.1, launch_ms=0.44),
    "amp-compiled": Execution(32, 8, 8, 0, block_ms=0.1, launch_ms=0.0),
}
"""Constants of eager execution are read off the A100's figures at batches 1 to 8 and taken to hold elsewhere;
the launch of compiled blocks (fewer kernels) is an assumption. They matter for small batches only."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What, besides its sizes, shows in a model's published latency.

    Attributes:
        layer_scale: a learned factor on both branches of a block.
        prefix: whether there are class, distillation or register tokens. Without them eager PyTorch keeps the stream in
            the transposed layout of the patch convolution, and all that adds to it is slower.
        pre_norm: a norm before the first block (CLIP); with it some runs kept the stream in fp16.
    """

    layer_scale: bool = False
    prefix: bool = True
    pre_norm: bool = False

    @classmethod
    def of(cls, arch: Architecture) -> Self:
        return cls(arch.layer_scale, arch.prefix_tokens > 0, arch.pre_norm)


def block_terms(execution: Execution, tokens: int, traits: Traits, points: npt.ArrayLike) -> Array:
    """What one image costs one block, in the units of TERMS.

    Args:
        points: shape (..., 5), sizes in the order of `grid.AXES`.

    Returns:
        Shape (..., len(TERMS)), >= 0; no entry falls when a size grows.
    """
    embed, heads, qk_dim, v_dim, mlp = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
    n, none = float(tokens), np.zeros_like(embed)
    pairs, widths = n * n, qk_dim + v_dim
    if execution.fused:
        pairs = n * math.ceil(n / _QUERY_TILE) * _QUERY_TILE
        widths = _HEAD_STEP * (np.ceil(qk_dim / _HEAD_STEP) + np.ceil(v_dim / _HEAD_STEP))
    traffic = (
        execution.embed_bytes * embed + execution.head_bytes * heads * (qk_dim + v_dim) + execution.mlp_bytes * mlp
    )
    stream = _TRAIT_BYTES * n * embed / 1e6
    terms = {
        "gemm": 2 * n * embed * (heads * (qk_dim + v_dim) + mlp) / 1e9,
        "attention": pairs * heads * widths / 1e9,
        "softmax": n * n * heads * execution.score_bytes / 1e6,
        "traffic": n * traffic / 1e6,
        "tokens": none + n / 1e3,
        "layer_scale": stream * traits.layer_scale,
        "no_prefix": stream * (not traits.prefix),
        "no_pre_norm": stream * (not traits.pre_norm),
    }
    return np.stack([terms.get(name, none) for name in TERMS], axis=-1)


def outside_terms(outside: Outside, embed_dims: npt.ArrayLike) -> Array:
    """What one image costs outside the blocks, in the units of TERMS; shape of `embed_dims` + (len(TERMS),).

    The patch embedding of whole images (a multiply-add per pixel, channel of the image and channel of EMBED) and the
    pixels in fp32. The last norm and the classifier work on one token and are left out.
    """
    embed = np.asarray(embed_dims, dtype=np.float64)
    values = float(np.prod(outside.image_size)) * outside.in_chans
    terms = {"stem": values * embed / 1e9, "pixels": np.full_like(embed, 4 * values / 1e6)}
    return np.stack([terms.get(name, np.zeros_like(embed)) for name in TERMS], axis=-1)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One modelled target of any batch and tokens, as the calibration left it.

    Attributes:
        device, runtime, dtype: as in Target.
        execution: a name of EXECUTIONS.
        coefficients: by name of TERMS, ms per unit, >= 0.
        interval, quality, method, source, created_at: for its tables' Provenance.
    """

    device: str
    runtime: str
    dtype: str
    execution: str
    coefficients: Mapping[str, float]
    interval: tuple[float, float]
    quality: Mapping[str, float]
    method: str
    source: str
    created_at: str

    @property
    def name(self) -> str:
        return f"{self.device}-{self.runtime}-{self.dtype}"

    @property
    def weights(self) -> Array:
        """Coefficients in the order of TERMS."""
        return np.array([self.coefficients[name] for name in TERMS])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        values = {field.name: document[field.name] for field in fields(cls)}
        return cls(**values | {"interval": tuple(values["interval"])})


_PRODUCTS = np.isin(TERMS, ("attention", "softmax"))
"""Terms of q·k, softmax and attention·v; what else grows with QK, V or MLP are projections."""

LICENSE = "published figures, which are facts; no file of their sources is copied"


class DeviceModel:
    """A LatencyModel of a modelled target, for any batch and any geometry; answers for every size.

    Attributes:
        target, outside, norm, provenance: as in LatencyTable.
        calibration: where the coefficients come from.
        traits: of the models that are asked about.
    """

    kind = "modelled"
    norm = "layer"

    def __init__(self, calibration: Calibration, batch: int, tokens: int, outside: Outside, traits: Traits) -> None:
        c = calibration
        self.calibration, self.outside, self.traits = c, outside, traits
        self.target = Target(c.device, c.runtime, c.dtype, batch, tokens)
        self.provenance = Provenance(
            kind="modelled",
            created_at=c.created_at,
            method=c.method,
            device=c.device,
            source=c.source,
            license=LICENSE,
            quality=c.quality,
            interval=c.interval,
        )
        self._execution = EXECUTIONS[c.execution]

    def like(self, arch: Architecture) -> "DeviceModel":
        """The same target for models like another one."""
        return device_model(self.calibration.name, arch, self.target.batch, self.target.tokens)

    @property
    def monotone(self) -> Self:
        """Itself: no size costs less than a smaller one."""
        return self

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        return dict.fromkeys(AXES, (1, MAX_SIZE))

    @property
    def fingerprint(self) -> str:
        execution, traits = asdict(self._execution), asdict(self.traits)
        weights = self.calibration.weights.tolist()
        return fingerprint([self.target.to_dict(), self.outside.to_dict(), execution, traits, weights])

    def block_times(self, points: npt.ArrayLike) -> Array:
        terms = block_terms(self._execution, self.target.tokens, self.traits, points)
        busy = self._execution.block_ms + self.target.batch * (terms @ self.calibration.weights)
        return np.maximum(self._execution.launch_ms, busy)

    def components(self, points: npt.ArrayLike) -> Components:
        """Of blocks, shape (blocks, 5), in the order of `grid.AXES`: each term's MACs and bytes go to who has them."""
        sizes = np.asarray(points, dtype=np.float64)

        def busy(which: npt.NDArray[np.bool_], *without: str) -> Array:
            kept = np.where(np.isin(AXES, without), 0.0, sizes)
            terms = block_terms(self._execution, self.target.tokens, self.traits, kept)
            return np.asarray(self.target.batch * (terms[..., which] @ self.calibration.weights[which]))

        linear = busy(~_PRODUCTS)
        qk, v, mlp = (linear - busy(~_PRODUCTS, name) for name in ("qk_dim", "v_dim", "mlp_dim"))
        products = busy(_PRODUCTS)
        return Components.closed(
            "modelled",
            "split by the closed form of the device: the MACs and bytes of each part; no figure times parts",
            qk=qk,
            v=v,
            products=products,
            mlp=mlp,
            rest=self.block_times(sizes) - qk - v - products - mlp,
        )

    def outside_times(self, embed_dims: npt.ArrayLike) -> Array:
        terms = outside_terms(self.outside, embed_dims)
        return self._execution.block_ms + self.target.batch * (terms @ self.calibration.weights)


@cache
def calibrations() -> Mapping[str, Calibration]:
    """The modelled targets by name, as `lut_data/make_modelled.py` left them."""
    documents = json.loads(files("lut_data").joinpath("modelled.json").read_text(encoding="utf-8"))
    return {c.name: c for c in map(Calibration.from_dict, documents)}


def device_model(name: str, arch: Architecture, batch: int, tokens: int | None = None) -> DeviceModel:
    """The modelled target `name`, for models like `arch` (its image, patches, tokens and traits).

        device_model("rtx-4090-eager-pt2.9-amp", preset("deit-s"), batch=64)

    Args:
        tokens: of the target, where they are not those of `arch`. The image is then the largest square whose patches
            are no more than that, and what is over are prefix tokens: 577 are 24 x 24 patches and a class token.

    Raises:
        UnknownNameError: there is no such target.
    """
    known = calibrations()
    if name not in known:
        raise UnknownNameError("modelled target", name, known)
    image_size, traits = arch.image_size, Traits.of(arch)
    if tokens is None:
        tokens = arch.tokens
    elif tokens != arch.tokens:
        side = math.isqrt(tokens)
        image_size = (side * arch.patch_size[0], side * arch.patch_size[1])
        traits = replace(traits, prefix=tokens > side * side)
    outside = Outside(image_size, arch.patch_size, arch.in_chans, arch.num_classes)
    return DeviceModel(known[name], batch, tokens, outside, traits)


def table_of(model: DeviceModel, grid: Grid) -> LatencyTable:
    """A model's times at every point of a grid, as a table.

    Raises:
        TargetError: the model was made for models with a trait that a table cannot carry.
    """
    if model.traits != Traits():
        raise TargetError(f"a table is of plain models with a class token, this model is for {model.traits}")
    points = np.stack(np.meshgrid(*grid.axes, indexing="ij"), axis=-1)
    return LatencyTable(
        target=model.target,
        grid=grid,
        block_ms=model.block_times(points),
        block_iqr_ms=np.zeros(grid.shape),
        outside=model.outside,
        outside_ms=model.outside_times(grid.embed_dim),
        outside_iqr_ms=np.zeros(len(grid.embed_dim)),
        norm=model.norm,
        provenance=model.provenance,
    )
