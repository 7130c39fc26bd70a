"""Bodies of the jobs' part of the REST interface."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from api import examples, examples_jobs
from api.job_requests import JobRequest
from api.jobs import Job, State, path_of
from api.problems import Problem
from api.questions import INTERVAL
from api.schemas import ArchitectureBody, Described, Kind, ProvenanceBody, with_example

JobKind = Literal["profile", "saliency", "compress", "prune", "finetune", "sparsify", "study", "export"]


class ProgressBody(BaseModel):
    """How much of a stage is done."""

    stage: str
    done: int
    total: int


class ListedJob(BaseModel):
    """A job without its result."""

    model_config = with_example(examples.JOB)

    id: str
    kind: JobKind
    state: State
    request: JobRequest
    progress: ProgressBody | None = Field(None, description="Null before the start.")
    created_at: datetime = Field(description="UTC, to the second.")
    finished_at: datetime | None = None
    error: Problem | None = Field(None, description="Why a job failed.")
    retry_of: str | None = Field(None, description="The job that this one goes on with.")

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
            "retry_of": job.retry_of,
        }


class JobList(BaseModel):
    model_config = with_example({"jobs": [examples.FAILED_JOB, examples.JOB]})

    jobs: list[ListedJob] = Field(description="The newest first.")
    next: str | None = Field(None, description="`cursor` of the page with older ones; null: there are none.")


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


class ProfileResult(BaseModel):
    model_config = with_example(examples_jobs.PROFILED)

    target: str
    provenance: ProvenanceBody
    points: int = Field(description="Of the table's grid.")


class SaliencyResult(BaseModel):
    model_config = with_example(examples_jobs.SCORED)

    criterion: str
    batches: int
    id: str = Field(description="Of the architecture.")
    data: str


class PruneResult(BaseModel):
    model_config = with_example(examples_jobs.PRUNED)

    architecture: ArchitectureBody
    id: str
    target: str
    budget_ms: float
    latency_ms: float
    rounds: int
    eta: float | None = None
    accuracy: float = Field(description="Top-1 on held-out images, in [0, 1].")


class FinetuneResult(BaseModel):
    model_config = with_example(examples_jobs.FINETUNED)

    loss: float
    best: float | None = Field(None, description="Accuracy on the images held out of training, where some were.")
    recipe: dict[str, Any] = Field(description="As it was used.")
    accuracy: float = Field(description="Top-1 on held-out images, in [0, 1].")


class SparseCheckpoint(BaseModel):
    file: str
    removed: int
    of: int
    sparsity: float
    by_layer: dict[str, float]
    skipped: list[str] = Field(description="Layers that kept all: their gradients are zero.")


class SparsifyResult(BaseModel):
    model_config = with_example(examples_jobs.SPARSIFIED)

    checkpoints: list[SparseCheckpoint]


class TrialBody(BaseModel):
    """A trial that ended well."""

    model_config = with_example(examples_jobs.TRIAL)

    number: int
    values: dict[str, str | int | float | bool]
    metrics: dict[str, float]
    architecture_id: str
    architecture: ArchitectureBody
    retry_of: int | None = Field(None, description="The trial that died with its worker, and that this one repeats.")


class StudyBody(BaseModel):
    """How far a study is, and its best trials."""

    model_config = with_example(examples_jobs.STUDY)

    study: str
    objectives: list[str]
    states: dict[str, int] = Field(description="Trials by state.")
    best: list[TrialBody] = Field(
        description="Of one objective the best within all constraints; of several those that none beats in all."
    )
    asks: dict[str, Any]


class ExportResult(BaseModel):
    model_config = with_example(examples_jobs.EXPORTED)

    format: str
    difference: float = Field(description="Largest one from the model's own outputs.")


Result = (
    CompressReport
    | ProfileResult
    | SaliencyResult
    | PruneResult
    | FinetuneResult
    | SparsifyResult
    | StudyBody
    | ExportResult
)
RESULTS: Mapping[str, type[BaseModel]] = {
    "compress": CompressReport,
    "profile": ProfileResult,
    "saliency": SaliencyResult,
    "prune": PruneResult,
    "finetune": FinetuneResult,
    "sparsify": SparsifyResult,
    "study": StudyBody,
    "export": ExportResult,
}


class JobBody(ListedJob):
    """A job with all that is known of it."""

    model_config = with_example(examples.DONE_JOB)

    result: Result | None = Field(None, description="Of a job that is done.")
    files: dict[str, str] = Field(description="Where to download what was made, by kind; of a job that is done.")

    @classmethod
    def of(cls, job: Job) -> Self:
        links = {name: f"{path_of(job.id)}/files/{file}" for name, file in downloads(job).items()}
        result = None if job.result is None else RESULTS[job.kind].model_validate(job.result)
        return cls.model_validate({**cls._fields_of(job), "result": result, "files": links})


def downloads(job: Job) -> dict[str, str]:
    """Kind -> the name that it is downloaded by."""
    if job.result is None:
        return {}
    names: Mapping[str, str] = job.result.get("files", {})
    folder = folder_in(names)
    found = {kind: name for kind, name in names.items() if name != folder}
    if folder:
        found |= {"torch_model": "model.py", "torch_weights": "model.safetensors"}
    return found


def download_paths(job: Job) -> dict[str, str]:
    """The name that a file is downloaded by -> where it is in the job's folder."""
    folder = folder_in(job.result.get("files", {})) if job.result else ""
    return {name: f"{folder}/{name}" if kind.startswith("torch_") else name for kind, name in downloads(job).items()}


def folder_in(names: Mapping[str, str]) -> str:
    """The one that holds a model that needs torch alone; "" where there is none."""
    return next((name for name in names.values() if name.endswith("-torch")), "")
