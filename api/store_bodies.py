"""Bodies of what is stored: tables, models, saliencies and frontiers."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from api import examples_store as examples
from api.examples import STAIRCASE_REQUEST
from api.questions import EqualBlocks, FixEmbedDim, Minimum, Multiples, Protect, ProtectSizes
from api.schemas import (
    ArchitectureBody,
    Described,
    Kind,
    MsUnit,
    Name,
    ProvenanceBody,
    UnreadableFile,
    request,
    with_example,
)
from latency.compare import Comparison
from latency.table import LatencyTable

Origin = Literal["shipped", "folder", "uploaded"]
ORIGIN = "`shipped` with vitfit, put into the data `folder` by its operator (or the command line), or `uploaded`."
DIGEST = "sha256 of the file; its ETag."


class TableBody(BaseModel):
    """A latency table: what it is of, how it came about, and what it covers."""

    model_config = with_example(examples.TABLE)

    id: str = Field(description="First 16 digits of `digest`: the same file, the same id.")
    digest: str = Field(description=DIGEST)
    target: str
    device: str
    runtime: str
    dtype: str
    batch: int
    tokens: int
    kind: Kind
    norm: str
    points: int
    bytes: int
    file: str
    origin: Origin = Field(description=ORIGIN)
    answers: bool = Field(description="Whether it is the one that answers for its target.")
    note: str | None = Field(None, description="Why it does not, where it does not.")
    created_at: str
    bounds: dict[str, tuple[int, int]]
    interval: tuple[float, float] | None = None


class TableDetail(TableBody):
    """A table in full, but for its points."""

    model_config = with_example(examples.TABLE_DETAIL)

    grid: dict[str, list[int]] = Field(description="Sizes that were timed, by axis.")
    fastest: dict[str, float]
    slowest: dict[str, float]
    outside_ms: dict[str, float] = Field(description="Outside the blocks, by embed_dim.")
    provenance: ProvenanceBody


class TableList(BaseModel):
    model_config = with_example({"tables": [examples.TABLE], "unreadable": [], "next": None})

    tables: list[TableBody]
    unreadable: list[UnreadableFile]
    next: str | None = Field(None, description="`after` of the next page; null: this is the last.")


class TableCheck(BaseModel):
    """Whether an upload would be taken, and what it would become."""

    model_config = with_example(examples.TABLE_CHECK)

    valid: bool
    problem: str | None = Field(None, description="The first offending point or field.")
    target: str | None = None
    kind: Kind | None = None
    points: int | None = None
    bounds: dict[str, list[int]] = Field(default_factory=dict, description="Smallest and largest size.")
    negative_steps: dict[str, float] | None = Field(
        None, description="Share of the steps from one size to the next that get faster: noise of measuring, by axis."
    )
    replaces: str | None = Field(None, description="The table that answers for its target now.")


class CompareTablesRequest(BaseModel):
    """Two tables by id."""

    model_config = request({"a": "5f70bf18a0860070", "b": "a1b2c3d4e5f60718"})

    a: str = Field(max_length=64)
    b: str = Field(max_length=64)


class ComparedPreset(BaseModel):
    preset: str
    a_ms: float
    b_ms: float


class CompareTablesResponse(BaseModel):
    """Latency per image of `b` over `a`, on the blocks that both answer for."""

    model_config = with_example(examples.COMPARED_TABLES)

    a: str
    b: str
    bounds: dict[str, tuple[int, int]]
    points: int
    ratio: dict[str, float] = Field(description="By percentile.")
    rank_correlation: float | None
    presets: list[ComparedPreset] = Field(description="ms per batch, where both cover them.")

    @classmethod
    def of(cls, a: str, b: str, found: Comparison, presets: list[ComparedPreset]) -> Self:
        return cls(
            a=a,
            b=b,
            bounds=dict(found.bounds),
            points=found.points,
            ratio={str(percent): value for percent, value in found.ratio.items()},
            rank_correlation=found.rank_correlation,
            presets=presets,
        )


class ModelBody(Described):
    """A checkpoint of the library, without its weights."""

    model_config = with_example(examples.MODEL)

    model: str = Field(description="The name that requests use.")
    digest: str | None = Field(
        None, description="sha256 of an uploaded file, its ETag; null: the file of the operator's."
    )
    bytes: int
    origin: Origin = Field(description=ORIGIN)
    created_at: str | None = None
    lineage: list[dict[str, Any]] = Field(description="The steps that made it, oldest first.")
    sparsity: float | None = Field(None, description="Share of the masked weights that is removed; null: no masks.")
    rebased: bool = Field(description="In its basis already (`vitfit rebase`).")


class ModelList(BaseModel):
    model_config = with_example({"models": [examples.MODEL], "unreadable": []})

    models: list[ModelBody]
    unreadable: list[UnreadableFile]


class StaircaseRequest(BaseModel):
    """A search without its budget."""

    model_config = request(STAIRCASE_REQUEST)

    saliency: Name
    target: Name
    multiples: Multiples
    minimum: Minimum
    fix_embed_dim: FixEmbedDim = None
    equal_blocks: EqualBlocks = False
    protect: Protect
    protect_sizes: ProtectSizes


class FrontierRequest(StaircaseRequest):
    """Every budget of one saliency on one target."""

    model_config = request(examples.FRONTIER_REQUEST)

    most: int = Field(500, ge=2, le=20_000, description="Points at most, spread over the latencies.")


class FrontierPoint(BaseModel):
    latency_ms: float
    kept: float = Field(description="Share of the saliency.")
    bound: float = Field(description="No architecture as fast keeps more.")
    embed_dim: int
    blocks: list[tuple[int, int, int, int]] = Field(description="[num_heads, qk_dim, v_dim, mlp_dim] of each block.")


class FrontierBody(BaseModel):
    """A frontier: each point is the answer to budgets from its latency to the next one's."""

    model_config = with_example(examples.FRONTIER)

    saliency: str
    target: str
    unit: MsUnit
    kind: Kind
    interval: tuple[float, float] | None = None
    full_ms: float = Field(description="The uncut model.")
    smallest_ms: float = Field(description="Nothing is promised below.")
    answers: int = Field(description="All points that there are.")
    architecture: ArchitectureBody = Field(description="The uncut model, whose other fields all points have.")
    points: list[FrontierPoint]


class KnownArchitecture(Described):
    """An architecture that the catalogue has."""

    model_config = with_example({name: examples.MODEL[name] for name in ("id", "architecture", "params", "macs")})


class DeletedBody(BaseModel):
    model_config = with_example({"deleted": True})

    deleted: bool


def table_fields(table: LatencyTable) -> Mapping[str, Any]:
    return {
        "target": table.target.slug,
        **table.target.to_dict(),
        "kind": table.kind,
        "norm": table.norm,
        "points": len(table.grid),
        "created_at": table.provenance.created_at,
        "bounds": dict(table.bounds),
        "interval": table.provenance.interval,
    }
