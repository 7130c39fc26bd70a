"""Bodies of the jobs' part of the REST interface."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from api import examples
from api.jobs import Job, State, path_of
from api.problems import Problem
from api.questions import (
    INTERVAL,
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
from api.schemas import Described, Kind, Name, ProvenanceBody, request, with_example

MAX_IMAGES = 10_000_000
Criterion = Literal["gates", "nvit", "fisher", "taylor-abs", "magnitude", "random"]
Labels = Literal["model", "data"]


class CompressJobRequest(BaseModel):
    """Fit a model to a latency budget without training. Give exactly one of `budget_ms` and `speedup`."""

    model_config = request(examples.COMPRESS_JOB)

    kind: Literal["compress"]
    model: Name = Field(description="A checkpoint of the library: `models/<model>.safetensors` in the data folder.")
    data: Name = Field(
        description="`digits`, `gratings[:noise=1.2,seed=0]`, `plaids`, or a folder of images of the library: "
        "`datasets/<data>/` with train/ and val/ (or test/) of one folder a class."
    )
    target: Name = Field(description="Slug of a target, or `macs`.")
    budget_ms: Budget | None = None
    speedup: Speedup | None = None
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
    exports: bool = Field(True, description="Also write ONNX and stand-alone PyTorch.")
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


JobRequest = CompressJobRequest
"""What can be asked for, told apart by `kind`: a union as soon as there are two."""


class ProgressBody(BaseModel):
    """How much of a stage is done."""

    stage: str
    done: int
    total: int


class ListedJob(BaseModel):
    """A job without its result."""

    model_config = with_example(examples.JOB)

    id: str
    kind: Literal["compress"]
    state: State
    request: JobRequest
    progress: ProgressBody | None = Field(None, description="Null before the start.")
    created_at: datetime = Field(description="UTC, to the second.")
    finished_at: datetime | None = None
    error: Problem | None = Field(None, description="Why a job failed.")

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls.model_validate(cls._fields_of(job))

    @staticmethod
    def _fields_of(job: Job) -> dict[str, Any]:
        noted = job.progress
        return {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "request": job.request,
            "progress": None if noted is None else ProgressBody(stage=noted.stage, done=noted.done, total=noted.total),
            "created_at": job.created_at,
            "finished_at": job.finished_at,
            "error": job.problem,
        }


class JobList(BaseModel):
    model_config = with_example({"jobs": [examples.FAILED_JOB, examples.JOB]})

    jobs: list[ListedJob] = Field(description="The newest first.")


class Calibration(BaseModel):
    data: str
    fingerprint: str
    images: int


class Refit(BaseModel):
    """Of one layer: relative error of its outputs before and after."""

    layer: str
    before: float
    after: float


class Accuracy(BaseModel):
    """Top-1 on held-out images, in [0, 1]."""

    before: float
    after: float
    images: int


class MeasuredModel(BaseModel):
    """A whole model timed on the service's machine, beside the estimate."""

    model: Literal["before", "after"]
    measured_ms: float
    iqr_ms: float
    predicted_ms: float | None
    error: float | None = Field(description="(predicted - measured) / measured.")
    drift: float | None = Field(description="How much slower the machine is than when the table was made; 1: the same.")


class PromisedOnTarget(BaseModel):
    """What a target's latency model promises for the small model, and on what evidence."""

    target: str
    kind: Kind
    provenance: ProvenanceBody
    budget_ms: float
    latency_ms: float
    interval_ms: tuple[float, float] | None = Field(description=INTERVAL)
    notes: list[str]


class CompressReport(PromisedOnTarget):
    """What was asked for, what is promised on what evidence, and what came of it. The same document as the report file,
    whose `files` are names."""

    model_config = with_example(examples.COMPRESSED)

    model: str
    criterion: str
    labels: str
    constraints: dict[str, Any]
    ridge: float
    finetune: int
    calibration: Calibration
    before: Described
    after: Described
    full_ms: float = Field(description="The uncut model.")
    also: list[PromisedOnTarget] = Field(description="Further targets that the model meets.")
    kept: float = Field(description="Share of the model's saliency that stays.")
    bound: float | None = Field(description="No architecture within the budget keeps a larger share.")
    gap: float | None = Field(description="How much more the best architecture could keep at most.")
    skipped: list[str] = Field(description="Changes of basis that the model does not allow, with the reason.")
    warnings: list[str]
    refits: list[Refit]
    accuracy: Accuracy
    measured: list[MeasuredModel] | None = Field(None, description="Where the target is of the service's machine.")
    seconds: dict[str, float] = Field(description="By stage.")
    files: dict[str, str] = Field(description="Names by kind.")


class JobBody(ListedJob):
    """A job with all that is known of it."""

    model_config = with_example(examples.DONE_JOB)

    result: CompressReport | None = Field(None, description="Of a job that is done.")
    files: dict[str, str] = Field(description="Where to download what was made, by kind; of a job that is done.")

    @classmethod
    def of(cls, job: Job) -> Self:
        links = {name: f"{path_of(job.id)}/files/{file}" for name, file in downloads(job).items()}
        return cls.model_validate({**cls._fields_of(job), "result": job.result, "files": links})


def downloads(job: Job) -> dict[str, str]:
    """Kind -> the name that it is downloaded by."""
    if job.result is None:
        return {}
    names: Mapping[str, str] = job.result["files"]
    found = {kind: name for kind, name in names.items() if kind != "torch"}
    if "torch" in names:
        found |= {"torch_model": "model.py", "torch_weights": "model.safetensors"}
    return found


def download_paths(job: Job) -> dict[str, str]:
    """The name that a file is downloaded by -> where it is in the job's folder."""
    folder = job.result["files"].get("torch", "") if job.result else ""
    return {name: f"{folder}/{name}" if kind.startswith("torch_") else name for kind, name in downloads(job).items()}
