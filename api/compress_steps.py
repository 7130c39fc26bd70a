"""`compress` as a job: in steps that leave files, so that a job that was killed goes on after the last whole one.

    basis       rebased.safetensors       the model in its basis
    saliency    saliency.safetensors      of its units
    refit       refitted.safetensors      cut and refitted
    report      compressed.safetensors    with its exports and the report beside it

Each step gets the JSON document that the one before returned, and says in `leaves` which files it leaves for the next
ones and for good. A step may run twice: killed between its file and the note that it is done, it writes the same file
again.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.catalogue_sources import compressed_accuracy
from api.compress import Progress
from api.compress_job import (
    CompressRequest,
    Prepared,
    basis_of,
    choose,
    cut,
    finish,
    prepare,
    rebase_checkpoint,
    scored,
)
from api.compress_report import Clock, paths_beside
from api.job_inputs import data_source, model_path, saliency_path
from api.job_requests import CompressJobRequest
from api.job_saving import Context, Step, paths_left, save_as
from api.library import Library
from api.questions import constraints_of
from search.saliency import load_saliency, save_saliency
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.checkpoint_header import is_rebased

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CompressJob:
    """
    Attributes:
        folder: of the job's files.
        exports: also write ONNX and stand-alone PyTorch.
    """

    request: CompressRequest
    exports: bool
    library: Library
    folder: Path

    @classmethod
    def of(cls, document: Document, library: Library, folder: Path) -> "CompressJob":
        """From what was posted; names become files relative to the data folder."""
        body = CompressJobRequest.model_validate(document)
        request = CompressRequest(
            model=str(model_path(body.model)),
            data=data_source(body.data),
            target=body.target,
            budget_ms=body.budget_ms,
            speedup=body.speedup,
            images=body.images,
            batch_size=body.batch_size,
            seed=body.seed,
            criterion=body.criterion,
            labels=body.labels,
            saliency=None if body.saliency is None else str(saliency_path(body.saliency)),
            constraints=constraints_of(body),
            ridge=body.ridge,
            finetune=body.finetune,
        )
        return cls(request, body.exports, library, folder)

    @property
    def rebased(self) -> Path:
        return self.folder / "rebased.safetensors"

    @property
    def saliency(self) -> Path:
        return self.folder / "saliency.safetensors"

    @property
    def refitted(self) -> Path:
        return self.folder / "refitted.safetensors"

    @property
    def out(self) -> Path:
        return self.folder / "compressed.safetensors"

    def in_its_basis(self, prepared: Prepared) -> Checkpoint:
        """The model as it is, where it came in its basis."""
        given = prepared.checkpoint
        return given if is_rebased(given.lineage) else load_checkpoint(self.rebased)


def basis(context: Context, made: Document, progress: Progress) -> Document:
    job = CompressJob.of(context.document, context.library, context.folder)
    clock, prepared = Clock(), prepare(job.request, job.library)
    if not is_rebased(prepared.checkpoint.lineage):
        checkpoint = rebase_checkpoint(prepared.checkpoint, prepared.data, prepared.calibration, progress)
        save_checkpoint(checkpoint, job.rebased)
    clock.lap("basis")
    return {"seconds": clock.seconds, "leaves": [job.rebased.name] if job.rebased.exists() else []}


def saliency(context: Context, made: Document, progress: Progress) -> Document:
    job = CompressJob.of(context.document, context.library, context.folder)
    clock, prepared = Clock(), prepare(job.request, job.library)
    save_saliency(scored(prepared, job.in_its_basis(prepared), progress), job.saliency)
    clock.lap("saliency")
    return {"seconds": made["seconds"] | clock.seconds, "leaves": [job.saliency.name]}


def refit(context: Context, made: Document, progress: Progress) -> Document:
    job = CompressJob.of(context.document, context.library, context.folder)
    clock, prepared = Clock(), prepare(job.request, job.library)
    units = load_saliency(job.saliency)
    choice = choose(prepared, units, job.library, progress)
    clock.lap("frontier")
    checkpoint = job.in_its_basis(prepared)
    based = basis_of(checkpoint, prepared.calibration, progress)
    small = cut(prepared, checkpoint, based, units, choice, progress)
    save_checkpoint(small.checkpoint, job.refitted)
    clock.lap("refit")
    return {"seconds": made["seconds"] | clock.seconds, "report": small.report, "leaves": [job.refitted.name]}


def report(context: Context, made: Document, progress: Progress) -> Document:
    job = CompressJob.of(context.document, context.library, context.folder)
    clock = Clock(made["seconds"])
    prepared, result = prepare(job.request, job.library), load_checkpoint(job.refitted)
    shutil.rmtree(paths_beside(job.out)["torch"], ignore_errors=True)  # of an attempt that was killed
    found = finish(prepared, result, made["report"], job.out, clock, progress=progress, exports=job.exports)
    save_as(context, "model", job.out, accuracies=[compressed_accuracy(found, job.request.seed)])
    return found | {"leaves": paths_left(job.folder, found["files"])}


STEPS: Mapping[str, Step] = {
    "basis": basis,
    "saliency": saliency,
    "refit": refit,
    "report": report,
}
