"""Bodies of the REST interface <-> domain values: architectures, targets, presets, saliencies.

One spelling of every field, the same as in files and in code. What is asked about them is in `api.questions`.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from api import examples
from api.library import SaliencyEntry
from latency.estimate import LatencyModel
from latency.table import Provenance
from vit.architecture import MAX_SIZE, Architecture
from vit.cost import macs, params
from vit.presets import PublishedResult, preset

Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Count = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Kind = Literal["measured", "partly-modelled", "imported", "modelled", "analytic"]
MsUnit = Literal["ms", "million MACs"]


def with_example(document: examples.Document) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [document]})


def request(document: examples.Document) -> ConfigDict:
    """Requests are taken at their word: no unknown fields, no '12' or true for a number."""
    return ConfigDict(json_schema_extra={"examples": [document]}, extra="forbid", strict=True)


# Architectures


class BlockBody(BaseModel):
    """Sizes of one block; `qk_dim` and `v_dim` are channels per head."""

    model_config = request(examples.BLOCK)

    num_heads: Size
    qk_dim: Size
    v_dim: Size
    mlp_dim: Size


def _pair_or_size(value: object) -> str:
    return "<pair>" if isinstance(value, list | tuple) else "<size>"


Pair = Annotated[
    Annotated[Size, Tag("<size>")]
    | Annotated[list[Size], Field(min_length=2, max_length=2, description="[height, width]"), Tag("<pair>")],
    Discriminator(_pair_or_size),
]


class ArchitectureBody(BaseModel):
    """A plain Vision Transformer with free head, QK, V and MLP sizes in every block. The names are timm's."""

    model_config = request(examples.ARCHITECTURE)

    image_size: Pair = Field(description="Pixels: one number, or [height, width].")
    patch_size: Pair = Field(description="Pixels: one number, or [height, width].")
    in_chans: Size
    num_classes: Count
    embed_dim: Size
    blocks: list[BlockBody] = Field(min_length=1, max_length=1024)
    class_token: bool = True
    dist_token: bool = False
    reg_tokens: Count = 0
    pool: Literal["token", "avg"] = "token"
    pool_include_prefix: bool = False
    pos_embed: Literal["all", "patches", "none"] = "all"
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = Field(1e-6, gt=0, lt=1, allow_inf_nan=False)
    pre_norm: bool = False
    final_norm: Literal["before_pool", "after_pool", "none"] = "before_pool"
    patch_bias: bool = True
    qkv_bias: bool = True
    proj_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    softmax_scale: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        None, description="Factor on q·k per block; null means qk_dim**-0.5 of each block."
    )

    def to_domain(self) -> Architecture:
        return Architecture.from_dict(self.model_dump())

    @classmethod
    def of(cls, arch: Architecture) -> Self:
        return cls.model_validate(arch.to_dict())


class PresetReference(BaseModel):
    """An architecture by name."""

    model_config = request({"preset": "deit-s"})

    preset: Name

    def to_domain(self) -> Architecture:
        return preset(self.preset)


def _architecture_tag(value: object) -> str:
    if isinstance(value, Mapping):
        return "<preset>" if "preset" in value else "<architecture>"
    return "<preset>" if isinstance(value, PresetReference) else "<architecture>"


AnyArchitecture = Annotated[
    Annotated[ArchitectureBody, Tag("<architecture>")] | Annotated[PresetReference, Tag("<preset>")],
    Discriminator(_architecture_tag),
]


class Described(BaseModel):
    """An architecture in full, with its costs."""

    id: str = Field(description="Hash of the architecture: equal ids, equal architectures.")
    architecture: ArchitectureBody
    params: int = Field(description="Learned parameters.")
    macs: int = Field(description="Multiply-adds for one image; papers often call them FLOPs.")


def described(arch: Architecture) -> dict[str, Any]:
    return {"id": arch.id, "architecture": ArchitectureBody.of(arch), "params": params(arch), "macs": macs(arch)}


# Targets


class ProvenanceBody(BaseModel):
    """How a target's numbers came about. Modelled numbers always say so."""

    kind: Kind
    created_at: str
    method: str
    device: str
    driver: str
    clocks: str
    versions: dict[str, str]
    created_by: str
    source: str
    license: str
    quality: dict[str, float | None]
    interval: tuple[float, float] | None = Field(
        description="Multiples of a modelled table's numbers between which nine in ten held-out latencies lay."
    )

    @staticmethod
    @lru_cache(64)  # a latency model is what it is, and every answer says what it rests on
    def of(latency: LatencyModel) -> "ProvenanceBody":
        provenance: Provenance = latency.provenance
        quality = {name: value if math.isfinite(value) else None for name, value in provenance.quality.items()}
        return ProvenanceBody.model_validate(provenance.to_dict() | {"kind": latency.kind, "quality": quality})


class TargetBody(BaseModel):
    """What a latency belongs to, and what its table covers."""

    model_config = with_example(examples.TARGET)

    target: str = Field(description="The slug that requests use.")
    device: str
    runtime: str
    dtype: str
    batch: int
    tokens: int | None = Field(description="Sequence length that the target was made for; null: any.")
    kind: Kind
    unit: MsUnit = Field(description="What *_ms fields count on this target.")
    norm: str | None = Field(description="Norm of the blocks that were timed; null: any.")
    bounds: dict[str, tuple[int, int]] = Field(description="Smallest and largest size that can be asked for.")
    provenance: ProvenanceBody
    file: str | None = Field(
        description="The table's file in the library; `shipped/...`: it comes with vitfit; null: a closed form."
    )

    @classmethod
    def of(cls, latency: LatencyModel, file: str | None) -> Self:
        target, analytic = latency.target, latency.target.is_analytic
        return cls(
            target=latency.target.slug,
            device=target.device,
            runtime=target.runtime,
            dtype=target.dtype,
            batch=target.batch,
            tokens=None if analytic else target.tokens,
            kind=latency.kind,
            unit=unit_of(latency),
            norm=None if analytic else latency.norm,
            bounds=dict(latency.bounds),
            provenance=ProvenanceBody.of(latency),
            file=file,
        )


def unit_of(latency: LatencyModel) -> MsUnit:
    return "million MACs" if latency.target.is_analytic else "ms"


class UnreadableFile(BaseModel):
    """A file of the library that cannot be used, and why."""

    file: str
    error: str


class TargetList(BaseModel):
    model_config = with_example(examples.TARGETS)

    targets: list[TargetBody]
    modelled_devices: list[str] = Field(description="Each is also a target at any `-b<batch>-n<tokens>`.")
    unreadable: list[UnreadableFile]


# Presets and saliencies


class PresetBody(Described):
    preset: str


class PublishedBody(BaseModel):
    """A row of a published table, as printed."""

    name: str
    params_m: float = Field(description="Millions of parameters.")
    macs_g: float | None = Field(description="Billions of multiply-adds; null: not printed.")
    top1: float = Field(description="ImageNet-1K top-1 accuracy in percent.")
    speedup: dict[str, float] = Field(description="Over DeiT-B, by device.")
    source: str
    preset: str | None = Field(description="The preset with these dimensions, where they are published.")

    @classmethod
    def of(cls, row: PublishedResult) -> Self:
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class PresetList(BaseModel):
    model_config = with_example(examples.PRESETS)

    presets: list[PresetBody]
    published: list[PublishedBody]


class SaliencyBody(Described):
    """A saliency of the library, without its numbers, and the model that it is of."""

    model_config = with_example(examples.SALIENCIES["saliencies"][0])

    saliency: str = Field(description="The name that requests use.")
    criterion: str
    model: str = Field(description="Id of the weights.")
    data: str = Field(description="Fingerprint of the data.")
    num_batches: int
    file: str

    @classmethod
    def of(cls, entry: SaliencyEntry) -> Self:
        assert entry.saliency is not None
        found = entry.saliency
        return cls(
            saliency=entry.name,
            criterion=found.criterion,
            model=found.model,
            data=found.data,
            num_batches=found.num_batches,
            file=entry.file,
            **described(found.arch),
        )


class SaliencyList(BaseModel):
    model_config = with_example(examples.SALIENCIES)

    saliencies: list[SaliencyBody]
    unreadable: list[UnreadableFile]


class Health(BaseModel):
    model_config = with_example({"status": "ok"})

    status: Literal["ok"]
