"""What can be asked of the service, and its answers: estimates, searches, ReViT."""

from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from api import examples
from api.schemas import (
    AnyArchitecture,
    Described,
    Kind,
    MsUnit,
    Name,
    ProvenanceBody,
    Size,
    request,
    unit_of,
    with_example,
)
from latency.components import Components
from latency.estimate import Estimate, LatencyModel
from search.constraints import Constraints
from vit.architecture import SIZE_FIELD, Unit

Budget = Annotated[
    float,
    Field(
        gt=0,
        allow_inf_nan=False,
        description="Milliseconds per batch; for the target `macs` millions of MACs for one image.",
    ),
]


INTERVAL = "What the latency may be, where the table is modelled: nine in ten held-out latencies lay inside."


class EstimateRequest(BaseModel):
    model_config = request(examples.ESTIMATE_REQUEST)

    targets: list[Name] = Field(min_length=1, description="Slugs of targets, or `macs`.")
    architectures: list[AnyArchitecture] = Field(min_length=1)
    components: bool = Field(False, description="Also what attention, MLP and the rest of each block take.")


class ComponentsBody(BaseModel):
    """What the parts of each block take, in the unit of the latency: `attn_ms + mlp_ms + rest_ms` is `block_ms`.

    `exact`: multiply-adds. `modelled`: by the closed form of a device, whose parts nobody timed. `differences`: an
    estimated split of a table's whole blocks, by what each branch adds to the table's smallest block; noise may take
    one a little below zero.
    """

    basis: Literal["exact", "modelled", "differences"]
    method: str = Field(description="What the split rests on, in a sentence.")
    attn_ms: list[float] = Field(description="The attention branch.")
    mlp_ms: list[float] = Field(description="The MLP branch.")
    rest_ms: list[float] = Field(description="Norms, additions, and what a block takes whatever its size.")
    qk_ms: list[float] | None = Field(None, description="Of `attn_ms`, in closed forms: projections to Q and K.")
    v_ms: list[float] | None = Field(None, description="Likewise: projections to V and back.")
    products_ms: list[float] | None = Field(None, description="Likewise: q·k, softmax and attention·v.")

    @classmethod
    def of(cls, found: Components) -> Self:
        return cls(**found.to_dict())


class EstimateBody(BaseModel):
    """One architecture on one target."""

    target: str
    kind: Kind
    latency_ms: float = Field(description="The whole model, per batch.")
    interval_ms: tuple[float, float] | None = Field(description=INTERVAL)
    block_ms: list[float]
    outside_ms: float = Field(description="Patch embedding, tokens, final norm and classifier.")
    notes: list[str] = Field(description="Where the architecture differs from what was timed.")
    components: ComponentsBody | None = Field(
        None,
        description="Where asked for; null if the table has no two sizes of MLP, or of H, QK or V, to tell parts by.",
    )

    @classmethod
    def of(cls, slug: str, estimate: Estimate) -> Self:
        components = estimate.components
        return cls(
            target=slug,
            kind=estimate.kind,
            latency_ms=estimate.latency_ms,
            interval_ms=estimate.interval_ms,
            block_ms=list(estimate.block_ms),
            outside_ms=estimate.outside_ms,
            notes=list(estimate.notes),
            components=None if components is None else ComponentsBody.of(components),
        )


class EstimatedArchitecture(BaseModel):
    id: str
    params: int
    macs: int
    estimates: list[EstimateBody] = Field(description="One entry per target, in the order of the request.")


class TargetEvidence(BaseModel):
    """What a target's numbers rest on."""

    target: str
    batch: int
    kind: Kind
    unit: MsUnit
    provenance: ProvenanceBody

    @classmethod
    def of(cls, latency: LatencyModel) -> Self:
        return cls(
            target=latency.target.slug,
            batch=latency.target.batch,
            kind=latency.kind,
            unit=unit_of(latency),
            provenance=ProvenanceBody.of(latency),
        )


class EstimateResponse(BaseModel):
    model_config = with_example(examples.ESTIMATE_RESPONSE)

    targets: list[TargetEvidence]
    architectures: list[EstimatedArchitecture] = Field(description="In the order of the request.")


# Architectures for a budget


class UnitSizes(BaseModel):
    """A size per unit, where named."""

    model_config = request({"mlp_dim": 32})

    embed_dim: Size | None = None
    num_heads: Size | None = None
    qk_dim: Size | None = None
    v_dim: Size | None = None
    mlp_dim: Size | None = None

    def to_domain(self) -> dict[Unit, int]:
        named = {unit: getattr(self, field) for unit, field in SIZE_FIELD.items()}
        return {unit: size for unit, size in named.items() if size is not None}


def _whole_or_size(value: object) -> str:
    return "<whole>" if isinstance(value, str) else "<size>"


WholeOrSize = Annotated[
    Annotated[Size, Tag("<size>")] | Annotated[Literal["whole"], Tag("<whole>")], Discriminator(_whole_or_size)
]


Speedup = Annotated[float, Field(gt=1, allow_inf_nan=False, description="Over the whole model.")]
Multiples = Annotated[
    UnitSizes,
    Field(
        default_factory=UnitSizes,
        description="Steps in which sizes are cut; what is not named is 8, and 1 for heads.",
    ),
]
Minimum = Annotated[UnitSizes, Field(default_factory=UnitSizes, description="Smallest sizes.")]
FixEmbedDim = Annotated[WholeOrSize | None, Field(description="`whole` keeps embed_dim, a size cuts it to that one.")]
EqualBlocks = Annotated[bool, Field(description="All blocks get the same sizes, if the model's are equal.")]
Protect = Annotated[
    list[Annotated[int, Field(ge=0, lt=1024)]],
    Field(default_factory=list, max_length=1024, description="Indices of blocks that keep their sizes."),
]

ProtectSizes = Annotated[
    list[Annotated[str, Field(max_length=40)]],
    Field(
        default_factory=list,
        max_length=8192,
        description="Sizes that stay as they are, by name: `qk_dim` in all blocks, `3.mlp_dim` in block 3.",
    ),
]


class HasConstraints(Protocol):
    """A request with the fields that constrain a search."""

    multiples: UnitSizes
    minimum: UnitSizes
    fix_embed_dim: int | Literal["whole"] | None
    equal_blocks: bool
    protect: list[int]
    protect_sizes: list[str]


def constraints_of(body: HasConstraints) -> Constraints:
    """
    Raises:
        ConstraintError: two that contradict each other.
    """
    return Constraints(
        multiples=body.multiples.to_domain(),
        minimum=body.minimum.to_domain(),
        fix_embed_dim=body.fix_embed_dim,
        equal_blocks=body.equal_blocks,
        protect=tuple(body.protect),
        protect_sizes=tuple(body.protect_sizes),
    )


def check_one_budget(budget_ms: float | None, speedup: float | None) -> None:
    """
    Raises:
        ValueError: none or both.
    """
    if (budget_ms is None) == (speedup is None):
        given = "neither" if budget_ms is None else "both"
        raise ValueError(f"give exactly one of budget_ms and speedup, got {given}")


class TargetBudget(BaseModel):
    model_config = request(examples.SEARCH_TARGETS[0])

    target: Name
    budget_ms: Budget


class SearchRequest(BaseModel):
    """Give `target` with exactly one of `budget_ms` and `speedup`, or `targets`, each with its budget."""

    model_config = request(examples.SEARCH_REQUEST)

    saliency: Name
    target: Name | None = None
    budget_ms: Budget | None = None
    speedup: Speedup | None = None
    targets: list[TargetBudget] | None = Field(
        None,
        min_length=1,
        description="The architecture has to be within every one of these budgets.",
        examples=[examples.SEARCH_TARGETS],
    )
    multiples: Multiples
    minimum: Minimum
    fix_embed_dim: FixEmbedDim = None
    equal_blocks: EqualBlocks = False
    protect: Protect
    protect_sizes: ProtectSizes

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.target is None) == (self.targets is None):
            given = "neither" if self.target is None else "both"
            raise ValueError(f"give exactly one of target and targets, got {given}")
        if self.targets is not None:
            if self.budget_ms is not None or self.speedup is not None:
                raise ValueError("each of targets has its own budget_ms; leave budget_ms and speedup out")
            return self
        check_one_budget(self.budget_ms, self.speedup)
        return self


class SearchedTarget(BaseModel):
    """What a search found, on one target."""

    target: str
    unit: MsUnit
    latency_ms: float
    interval_ms: tuple[float, float] | None = Field(description=INTERVAL)
    budget_ms: float
    full_ms: float = Field(description="The uncut model.")
    kind: Kind
    provenance: ProvenanceBody
    notes: list[str]


class SearchResponse(Described, SearchedTarget):
    """The architecture that keeps the most saliency within the budget, and what is known of it.

    Of several targets the fields of one are the first one's.
    """

    model_config = with_example(examples.SEARCH_RESPONSE)

    saliency: str
    kept: float = Field(description="Share of the model's saliency that stays.")
    bound: float | None = Field(description="No architecture within the budget keeps a larger share.")
    targets: list[SearchedTarget] = Field(description="Every target, in the order of the request.")


class RedistributeRequest(BaseModel):
    """Give `embed_dim` (with `target` for its latency there), or `target` and `budget_ms`, or `targets`, each with its
    budget, or `architecture` and `target`: the same latency in the profile's shape."""

    model_config = request(examples.REDISTRIBUTE_REQUEST)

    embed_dim: Size | None = None
    target: Name | None = None
    budget_ms: Budget | None = None
    targets: list[TargetBudget] | None = Field(
        None,
        min_length=1,
        description="The architecture has to be within every one of these budgets.",
        examples=[examples.SEARCH_TARGETS],
    )
    architecture: AnyArchitecture | None = Field(None, description="What is to be redistributed.")
    profile: Name = Field("nvidia", description="The rule: nvidia, poster, deit, or one of the data folder.")
    depth: int | None = Field(None, ge=6, le=1024, description="Number of blocks; 12, or the architecture's.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = ("embed_dim", "budget_ms", "targets", "architecture")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) != 1:
            if set(given) <= {"embed_dim", "budget_ms"}:
                either = "neither" if not given else "both"
                raise ValueError(f"give exactly one of embed_dim and budget_ms, got {either}")
            raise ValueError(f"give exactly one of {', '.join(ways)}, got {' and '.join(given)}")
        if self.budget_ms is not None and self.target is None:
            raise ValueError("budget_ms needs a target to be counted on; add target")
        if self.architecture is not None and self.target is None:
            raise ValueError("architecture needs a target on which its latency stays; add target")
        if self.targets is not None and self.target is not None:
            raise ValueError("each of targets has its own budget_ms; leave target out")
        return self


class RedistributedLatency(BaseModel):
    target: str
    unit: MsUnit
    latency_ms: float
    interval_ms: tuple[float, float] | None = Field(description=INTERVAL)
    budget_ms: float | None
    kind: Kind
    provenance: ProvenanceBody
    notes: list[str]


class RedistributeResponse(Described):
    model_config = with_example(examples.REDISTRIBUTE_RESPONSE)

    profile: str = Field(description="The rule.")
    note: str | None = Field(None, description="What to know of the rule at this width.")
    latency: RedistributedLatency | None = Field(
        description="On the target that was named, or on the first of several."
    )
    targets: list[RedistributedLatency] = Field(description="On every target, in the order of the request.")
    before: Described | None = Field(None, description="The architecture that was redistributed.")
    before_ms: float | None = Field(None, description="Its latency on the target.")
