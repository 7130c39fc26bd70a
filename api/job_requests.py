"""What jobs can be asked for, told apart by `kind`. Torch-free: what cannot work is refused before there is a job."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from api import examples_jobs as examples
from api.jobs import NORMAL, PRIORITIES
from api.questions import (
    Budget,
    EqualBlocks,
    FixEmbedDim,
    Minimum,
    Multiples,
    Protect,
    ProtectSizes,
    Speedup,
    check_one_budget,
)
from api.schemas import AnyArchitecture, Name, PresetReference, request
from api.settings import QueueName

MAX_IMAGES = 10_000_000
Criterion = Literal["gates", "nvit", "fisher", "taylor-abs", "magnitude", "random"]
Labels = Literal["model", "data"]
Device = Literal["cpu", "cuda"]
Method = Literal["ovit", "woodfisher", "mfac", "diagonal", "grw", "magnitude"]
RecipeName = Literal["short", "after-refit", "int8", "nvit", "prune", "deit", "light1", "dynamicvit", "ovit-deit"]

Seed = Annotated[int, Field(ge=0, lt=2**63, description="Of every random choice.")]
Steps = Annotated[int, Field(ge=1, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
MicroBatch = Annotated[
    int | None, Field(ge=1, le=65_536, description="Images at a time, if a batch does not fit into memory.")
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
_TAGS: dict[type, str] = {bool: "<bool>", int: "<number>", float: "<number>", type(None): "<none>"}
RecipeValue = Annotated[
    Annotated[bool, Tag("<bool>")]
    | Annotated[int | float, Tag("<number>")]
    | Annotated[str, Field(max_length=200), Tag("<text>")]
    | Annotated[None, Tag("<none>")],
    Discriminator(lambda value: _TAGS.get(type(value), "<text>")),
]
Changes = Annotated[
    dict[Annotated[str, Field(max_length=60)], RecipeValue],
    Field(default_factory=dict, max_length=60, description="Other numbers of the recipe, by name."),
]
NewName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name under which what was made is added to the library, for later jobs; a name that is free.",
    ),
]


class _Job(BaseModel):
    """What all jobs have."""

    queue: QueueName | None = Field(
        None, description="Which workers do it, one of the service's `queues`; by default that of its device."
    )
    priority: int = Field(
        NORMAL, ge=PRIORITIES[0], le=PRIORITIES[1], description="9 goes first, 0 last; of equals the older."
    )


class Sized(BaseModel):
    """A budget, and what the sizes have to be. Give exactly one of `budget_ms` and `speedup`."""

    budget_ms: Budget | None = None
    speedup: Speedup | None = None
    multiples: Multiples
    minimum: Minimum
    fix_embed_dim: FixEmbedDim = None
    equal_blocks: EqualBlocks = False
    protect: Protect
    protect_sizes: ProtectSizes

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        check_one_budget(self.budget_ms, self.speedup)
        return self


Model = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        description="A checkpoint of the library: `models/<model>.safetensors` in the data folder.",
    ),
]
Data = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        description="`digits`, `gratings[:noise=1.2,seed=0]`, `plaids`, or a folder of images of the library: "
        "`datasets/<data>/` with train/ and val/ (or test/) of one folder a class.",
    ),
]


class ProfileJobRequest(_Job):
    """Measure a latency table of a worker's device. Nothing else runs on the device meanwhile."""

    model_config = request(examples.PROFILE_JOB)

    kind: Literal["profile"]
    architecture: AnyArchitecture = Field(
        default_factory=lambda: PresetReference(preset="deit-b"),
        description="Its image and norm; without a `grid`, all that can be cut out of it is covered.",
    )
    runtime: Name = Field("eager", description="eager, compile, onnxruntime, openvino or tensorrt.")
    dtype: Name = Field("fp32", description="fp32, bf16, fp16 or amp.")
    batch: int = Field(1, ge=1, le=65_536)
    device: Device = "cpu"
    threads: int = Field(1, ge=1, le=1024, description="CPU threads.")
    grid: Literal["vitfit", "nvit"] | None = None
    points: int | Literal["auto"] | None = Field(
        None, description="Time so many points and model the rest; `auto`: as many as `error` needs; null: all."
    )
    error: float = Field(0.03, gt=0, lt=1, description="Mean held-out error at which `points` `auto` stops.")
    rounds: int = Field(3, ge=1, le=1000, description="Visits of every point.")
    seed: Seed = 0
    save_as: NewName | None = None


class SaliencyJobRequest(_Job):
    """Score every unit of a model on training images."""

    model_config = request(examples.SALIENCY_JOB)

    kind: Literal["saliency"]
    model: Model
    data: Data
    criterion: Criterion = "fisher"
    labels: Labels = "data"
    batches: int = Field(16, ge=1, le=1_000_000)
    batch_size: BatchSize = 64
    micro_batch: MicroBatch = None
    amp: Literal["bf16"] | None = Field(None, description="Mixed precision.")
    device: Device = "cpu"
    seed: Seed = 0
    save_as: NewName | None = None


class CompressJobRequest(_Job, Sized):
    """Fit a model to a latency budget without training. Give exactly one of `budget_ms` and `speedup`."""

    model_config = request(examples.COMPRESS_JOB)

    kind: Literal["compress"]
    model: Model
    data: Data
    target: Name = Field(description="Slug of a target, or `macs`.")
    images: int = Field(1024, ge=1, le=MAX_IMAGES, description="Calibration images at most, of the training split.")
    batch_size: int | None = Field(None, ge=1, le=65_536, description="Images at a time; by default by memory.")
    seed: int = Field(0, ge=0, lt=2**63, description="Order of the images, and the labels that are drawn.")
    criterion: Criterion = Field("gates", description="What saliency is computed by.")
    labels: Labels = Field("model", description="Drawn from the `model`'s own predictions, or those of the `data`.")
    saliency: Name | None = Field(
        None, description="A saliency of the library, of a `model` that is in its basis already (`vitfit rebase`)."
    )
    ridge: float = Field(
        1e-3, gt=0, allow_inf_nan=False, description="Of the refit, over its inputs' mean second moment."
    )
    finetune: int = Field(0, ge=0, le=1_000_000, description="Steps of a short distillation after the refit.")
    device: Literal["cpu"] = "cpu"
    exports: bool = Field(True, description="Also write ONNX and stand-alone PyTorch.")
    save_as: NewName | None = None


class PruneJobRequest(_Job, Sized):
    """NViT: score, cut the lowest, train on, until the budget is met."""

    model_config = request(examples.PRUNE_JOB)

    kind: Literal["prune"]
    model: Model
    data: Data
    target: Name = Field(description="Slug of a target, or `macs`.")
    rounds: int | None = Field(None, ge=1, le=10_000, description="By default 5 % of the latency each.")
    interval: int | None = Field(
        None, ge=0, le=10**7, description="Training steps between rounds; by default by the model's size; 0: none."
    )
    criterion: Criterion = "nvit"
    labels: Labels = "data"
    batches: int = Field(16, ge=1, le=1_000_000)
    batch_size: BatchSize = 64
    micro_batch: MicroBatch = None
    selection: Literal["greedy", "frontier"] = "greedy"
    eta: float | None = Field(None, ge=0, allow_inf_nan=False, description="Weight of latency in the greedy ranking.")
    smoothing: Share = Field(0.0, description="Weight of earlier rounds' saliency.")
    recipe: RecipeName = "prune"
    settings: Changes
    amp: Literal["none", "bf16"] = "none"
    device: Device = "cpu"
    seed: Seed = 0
    save_as: NewName | None = None


class FinetuneJobRequest(_Job):
    """Train a checkpoint on, with distillation if there is a teacher. Weights that were removed stay zero."""

    model_config = request(examples.FINETUNE_JOB)

    kind: Literal["finetune"]
    model: Model
    data: Data
    recipe: RecipeName = "short"
    steps: Steps | None = Field(None, description="Of the optimiser; or give `epochs`.")
    epochs: Steps | None = None
    settings: Changes
    teacher: Model | None = Field(None, description="Checkpoint of the library to distil from, best the uncut model.")
    token_ratio: float | None = Field(
        None, gt=0, lt=1, description="Train it to drop this share of its patch tokens, three times on the way."
    )
    token_after: list[Annotated[int, Field(ge=1, le=1024)]] | None = Field(
        None, max_length=64, description="After which blocks."
    )
    save_every: int = Field(100, ge=1, le=10**6, description="Steps between two states to go on from.")
    device: Device = "cpu"
    seed: Seed = 0
    save_as: NewName | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        check_length(self.steps, self.epochs)
        if self.token_after is not None and self.token_ratio is None:
            raise ValueError("token_after needs token_ratio")
        return self


class SparsifyJobRequest(_Job):
    """Zero single weights by second-order information (oViT): at once to a `sparsity` or `pattern`; or in a `sweep`
    with training in between, which gives a checkpoint at each of its targets."""

    model_config = request(examples.SPARSIFY_JOB)

    kind: Literal["sparsify"]
    model: Model
    data: Data
    sparsity: float | None = Field(None, gt=0, lt=1, description="Fraction to remove.")
    sweep: list[Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None, min_length=1, max_length=100, description="Targets of one run, rising."
    )
    pattern: str = Field("unstructured", max_length=20, description="unstructured; 2:4; or tiles, 1x8.")
    layers: Literal["vit", "all"] = "vit"
    include: list[Name] = Field(default_factory=list, max_length=100, description="Only weights of such names.")
    exclude: list[Name] = Field(default_factory=list, max_length=100, description="No weights of such names.")
    scope: Literal["global", "uniform"] = "global"
    method: Method = "ovit"
    block_size: int | None = Field(None, ge=1, le=65_536)
    damp: Positive | None = None
    merge: Literal["marginal", "cumulative"] = "marginal"
    gradients: int = Field(512, ge=1, le=10**6)
    batch_size: BatchSize = 16
    recomputations: int = Field(1, ge=1, le=1000)
    silent: Literal["stop", "skip"] = "stop"
    first: Share = Field(0.4, description="Sparsity of the sweep's first phase.")
    phases: int | None = Field(None, ge=2, le=1000)
    recipe: RecipeName = "light1"
    steps: Steps | None = Field(None, description="Of all phases; or give `epochs`.")
    epochs: Steps | None = None
    tail_steps: Steps | None = Field(None, description="Fine-tune each target on; or give `tail_epochs`.")
    tail_epochs: Steps | None = None
    train_batch: BatchSize | None = None
    settings: Changes
    teacher: Model | None = None
    device: Device = "cpu"
    seed: Seed = 0
    save_as: NewName | None = Field(None, description="Of a sweep, the targets are `<save_as>-50`, `<save_as>-75`, ...")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.sparsity is not None and self.sweep is not None:
            raise ValueError("give sparsity or sweep, not both")
        if self.sweep is None and self.sparsity is None and ":" not in self.pattern:
            raise ValueError("give sparsity, sweep, or a pattern that says it, as 2:4")
        if self.sweep is not None and sorted(set(self.sweep)) != self.sweep:
            raise ValueError("the targets of sweep must rise")
        check_length(self.steps, self.epochs)
        check_length(self.tail_steps, self.tail_epochs, "tail_")
        return self


class StudyJobRequest(_Job):
    """Run a study, or go on with it; several jobs on one study share its trials."""

    model_config = request(examples.STUDY_JOB)

    kind: Literal["study"]
    study: dict[str, Any] = Field(
        description="As a study file has it: study, make, target, objectives, space and so on. Its `model` is a preset "
        "or a checkpoint of the library, its `data` as in other jobs."
    )
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of training.")
    device: Literal["cpu"] = "cpu"


class ExportJobRequest(_Job):
    """Write a model for other runtimes, checked against the original."""

    model_config = request(examples.EXPORT_JOB)

    kind: Literal["export"]
    model: Model
    format: Literal["onnx", "torch", "standalone"] = Field(
        "onnx", description="onnx, torch (torch.export) or standalone (model.py that needs torch alone)."
    )
    device: Literal["cpu"] = "cpu"


def check_length(steps: int | None, epochs: int | None, prefix: str = "") -> None:
    """
    Raises:
        ValueError: both are given.
    """
    if steps is not None and epochs is not None:
        raise ValueError(f"give {prefix}steps or {prefix}epochs, not both")


AnyJob = (
    ProfileJobRequest
    | SaliencyJobRequest
    | CompressJobRequest
    | PruneJobRequest
    | FinetuneJobRequest
    | SparsifyJobRequest
    | StudyJobRequest
    | ExportJobRequest
)
JobRequest = Annotated[AnyJob, Field(discriminator="kind")]

REQUESTS: dict[str, type[BaseModel]] = {
    "profile": ProfileJobRequest,
    "saliency": SaliencyJobRequest,
    "compress": CompressJobRequest,
    "prune": PruneJobRequest,
    "finetune": FinetuneJobRequest,
    "sparsify": SparsifyJobRequest,
    "study": StudyJobRequest,
    "export": ExportJobRequest,
}


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """The one in its documentation."""
    extra: Any = model.model_config["json_schema_extra"]
    found: dict[str, Any] = extra["examples"][0]
    return found
