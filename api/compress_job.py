"""`compress` as the command line and jobs run it: checkpoint, data, budget in; checkpoint, exports, report out.

Beside the checkpoint OUT.safetensors lie OUT.onnx, OUT-torch/ (model.py with its weights, needs torch alone),
OUT.report.json and the same as a page, OUT.report.html. The checkpoint comes last: where it is, all is there.

    prepare -> change_basis -> scored -> cut -> finish

`run_compress` goes through them in one process; a job (`api.compress_steps`) keeps what each of them made in a file.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from api.compress import (
    Based,
    Batches,
    Calibration,
    Compressed,
    Progress,
    fit,
    images_at_once,
    in_its_basis,
    score,
    sensitivity_of,
)
from api.compress_report import Clock, accuracies, measured_here, on_target, promised, write_all
from api.library import Library
from api.queries import budget_of, resolve_target
from api.workflow import LABELS, dataset_for, load_model, model_id
from latency.estimate import LatencyModel, estimate
from recovery.data import Dataset
from recovery.loop import TrainingError, after_refit, finetune
from recovery.refit import RIDGE
from search.constraints import Constraints
from search.criteria import criterion_named
from search.errors import SaliencyError
from search.frontier import Choice
from search.joint import joint_choice
from search.saliency import Saliency, load_saliency
from vit.checkpoint import Checkpoint
from vit.checkpoint_header import is_rebased
from vit.errors import UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRequest:
    """What to compress, with what, to what.

    Attributes:
        model: checkpoint or timm name.
        data: as in `recovery.data.load_dataset`.
        target, budget_ms, speedup: slug, table file or `macs`, and exactly one of the two budgets.
        also: further targets with their budgets in ms, all met by the one model.
        images: calibration images at most; all of the training split if it has fewer.
        batch_size: images at a time; None: `api.compress.images_at_once`.
        labels: that saliency reads: drawn from the `model`'s own predictions, or those of the `data`.
        finetune: steps of a short fine-tune after the refit, see `recovery.loop.after_refit`; 0: none.
        saliency: file of a saliency of `model`, which then is a checkpoint in its basis already (`vitfit rebase`).
    """

    model: str
    data: str
    target: str
    budget_ms: float | None = None
    speedup: float | None = None
    also: tuple[tuple[str, float], ...] = ()
    images: int = 1024
    batch_size: int | None = None
    seed: int = 0
    criterion: str = "gates"
    labels: str = "model"
    saliency: str | None = None
    constraints: Constraints = field(default_factory=Constraints)
    ridge: float = RIDGE
    finetune: int = 0
    pretrained: bool = False

    def __post_init__(self) -> None:
        if self.finetune < 0:
            raise TrainingError(f"finetune is a number of steps from 0, got {self.finetune}")
        criterion_named(self.criterion)
        if self.labels not in LABELS:
            raise UnknownNameError("labels", self.labels, LABELS)


def calibration_of(data: Dataset, images: int, batch_size: int, seed: int, labels: str = "model") -> Calibration:
    """Training images as they are, in random order, each once; the same ones every time."""
    given = len(data.train)
    count = min(images, given if given < batch_size else given - given % batch_size)

    def batches() -> Batches:
        left = count
        for pictures, classes in data.train.shuffled(batch_size, seed, augment=False):
            yield pictures[:left], classes[:left]
            left -= len(pictures)
            if left <= 0:
                return

    return Calibration(batches, count, own_labels=labels == "model", seed=seed)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a request names: read, and found to go together.

    Attributes:
        full_ms, budget_ms: latency of the whole model on the target, and what it has to come down to.
        also: further targets with their budgets in ms.
    """

    request: CompressRequest
    checkpoint: Checkpoint
    data: Dataset
    latency: LatencyModel
    full_ms: float
    budget_ms: float
    also: tuple[tuple[LatencyModel, float], ...]
    calibration: Calibration


def prepare(request: CompressRequest, library: Library) -> Prepared:
    """
    Raises:
        VitfitError: what was asked does not go together.
    """
    checkpoint = load_model(request.model, pretrained=request.pretrained)
    data = dataset_for(checkpoint, request.data)
    latency = resolve_target(request.target, checkpoint.arch, library)
    full_ms = estimate(latency, checkpoint.arch).latency_ms
    budget_ms = budget_of(full_ms, request.budget_ms, request.speedup)
    if request.saliency is not None and not is_rebased(checkpoint.lineage):
        raise SaliencyError(
            f"{request.model} is not in its basis, so {request.saliency} is of another one; run `vitfit rebase` first"
        )
    at_once = request.batch_size or images_at_once(checkpoint.arch)
    calibration = calibration_of(data, request.images, at_once, request.seed, request.labels)
    also = tuple((resolve_target(name, checkpoint.arch, library), ms) for name, ms in request.also)
    return Prepared(request, checkpoint, data, latency, full_ms, budget_ms, also, calibration)


def rebase_checkpoint(
    checkpoint: Checkpoint, data: Dataset, calibration: Calibration, progress: Progress
) -> Checkpoint:
    """A checkpoint in its basis; the lineage knows whether LayerNorm can be given back."""
    return _rebased(checkpoint, data, calibration, progress)[0]


def _rebased(
    checkpoint: Checkpoint, data: Dataset, calibration: Calibration, progress: Progress
) -> tuple[Checkpoint, Based]:
    based = in_its_basis(checkpoint.model(), calibration, progress)
    step = {
        "step": "rebase",
        "from": model_id(checkpoint),
        "data": f"{data.name}:{data.fingerprint}",
        "images": calibration.images,
        "layer_norm": based.layer_norm,
        "skipped": list(based.skipped),
        **({} if checkpoint.masks is None else {"masks": "dropped"}),  # in another basis no weight is zero
    }
    return Checkpoint.of(based.model, (*checkpoint.lineage, step)), based


def basis_of(checkpoint: Checkpoint, calibration: Calibration, progress: Progress) -> Based:
    """Of a checkpoint that is in its basis already."""
    step, model = checkpoint.lineage[-1], checkpoint.model()
    sensitivity = sensitivity_of(model, calibration, progress)
    return Based(model, bool(step["layer_norm"]), sensitivity, tuple(step["skipped"]))


def change_basis(prepared: Prepared, progress: Progress) -> tuple[Checkpoint, Based]:
    """The model in its basis, changed where it is not in it yet."""
    checkpoint, calibration = prepared.checkpoint, prepared.calibration
    if is_rebased(checkpoint.lineage):
        return checkpoint, basis_of(checkpoint, calibration, progress)
    return _rebased(checkpoint, prepared.data, calibration, progress)


def scored(prepared: Prepared, rebased: Checkpoint, progress: Progress) -> Saliency:
    """Saliency of a checkpoint in its basis, read or computed.

    Raises:
        SaliencyError: what was to be read is of another model.
    """
    request, data, identity = prepared.request, prepared.data, model_id(rebased)
    if request.saliency is None:
        found = score(rebased.model(), prepared.calibration, request.criterion, progress)
        return replace(found, model=identity, data=f"{data.name}:{data.fingerprint}")
    found = load_saliency(Path(request.saliency))
    if found.model != identity:
        raise SaliencyError(
            f"{request.saliency} scores {found.model or 'a model without an id'}, this one is {identity}; change the "
            "basis with `vitfit rebase`, score that checkpoint with `vitfit saliency` and compress it"
        )
    return found


def choose(prepared: Prepared, saliency: Saliency, library: Library, progress: Progress) -> Choice:
    """
    Raises:
        BudgetError: outside what the target and the model allow.
        ConstraintError: constraints that the model cannot meet.
    """
    progress("frontier", 0, 1)
    constraints = prepared.request.constraints
    if prepared.also:
        joint = joint_choice(saliency, [(prepared.latency, prepared.budget_ms), *prepared.also], constraints)
        choice = Choice(joint.arch, joint.latency_ms[0], prepared.budget_ms, joint.kept, joint.bound)
    else:
        choice = library.frontier_of(saliency, prepared.latency, constraints).best(prepared.budget_ms)
    progress("frontier", 1, 1)
    return choice


@dataclass(frozen=True, eq=False)
class Cut:
    """
    Attributes:
        checkpoint: the small model with its lineage.
        compressed: model, choice, refits, warnings.
        report: JSON document of what was asked for and promised.
    """

    checkpoint: Checkpoint
    compressed: Compressed
    report: dict[str, Any]


MASKS_DROPPED = (
    "the model's masks are dropped: in another basis, and refitted, no weight is zero; sparsify the compressed model, "
    "or cut the sparse one with `vitfit prune`, which keeps them"
)


def cut(
    prepared: Prepared, rebased: Checkpoint, based: Based, saliency: Saliency, choice: Choice, progress: Progress
) -> Cut:
    """Cut to a choice, refit, and fine-tune if that was asked for."""
    request = prepared.request
    compressed = fit(based, saliency, choice, prepared.calibration, ridge=request.ridge, progress=progress)
    if request.finetune:
        recipe, teacher = after_refit(request.finetune, request.seed), prepared.checkpoint.model()
        for trained in finetune(compressed.model, prepared.data, recipe, teacher):
            progress("finetune", trained.step, trained.steps)
    step = _lineage_step(prepared, compressed.choice)
    report = _asked(prepared) | promised(prepared.checkpoint.arch, compressed, prepared.latency)
    if prepared.checkpoint.masks is not None:
        report["warnings"].append(MASKS_DROPPED)
    report["also"] = [on_target(compressed.model.arch, latency, budget_ms) for latency, budget_ms in prepared.also]
    return Cut(Checkpoint.of(compressed.model, (*rebased.lineage, step)), compressed, report)


def _lineage_step(prepared: Prepared, choice: Choice) -> dict[str, Any]:
    request, latency = prepared.request, prepared.latency
    return {
        "step": "compress",
        "criterion": request.criterion,
        "labels": request.labels,
        "images": prepared.calibration.images,
        "ridge": request.ridge,
        "finetune": request.finetune,
        "target": latency.target.slug,
        "kind": latency.kind,
        "constraints": request.constraints.to_dict(),
        "budget_ms": choice.budget_ms,
        "latency_ms": choice.latency_ms,
        "saliency_kept": choice.kept,
        "bound": choice.bound,
        "also": {latency.target.slug: budget_ms for latency, budget_ms in prepared.also},
    }


def _asked(prepared: Prepared) -> dict[str, Any]:
    request, data = prepared.request, prepared.data
    return {
        "model": request.model,
        "criterion": request.criterion,
        "labels": request.labels,
        "constraints": request.constraints.to_dict(),
        "ridge": request.ridge,
        "finetune": request.finetune,
        "calibration": {
            "data": data.name,
            "fingerprint": data.fingerprint,
            "images": prepared.calibration.images,
        },
    }


def finish(
    prepared: Prepared,
    result: Checkpoint,
    report: dict[str, Any],
    out: Path,
    clock: Clock,
    *,
    progress: Progress,
    exports: bool = True,
    measured: bool = True,
) -> dict[str, Any]:
    """Evaluate, measure and write; returns the whole report, with the names of the files."""
    accuracy = accuracies(prepared.checkpoint, result, prepared.data, progress)
    clock.lap("evaluate")
    times = measured_here(prepared.checkpoint.arch, result.arch, prepared.latency) if measured else None
    clock.lap("measure")
    report = report | {"accuracy": accuracy, "measured": times, "seconds": clock.seconds}
    files = write_all(result, out, report, exports=exports, progress=progress)
    return report | {"files": files}


@dataclass(frozen=True, eq=False)
class CompressResult:
    """
    Attributes:
        compressed: model, choice, refits, warnings.
        report: JSON document: what was asked for, promised, and found.
    """

    compressed: Compressed
    report: dict[str, Any]


def run_compress(
    request: CompressRequest,
    library: Library,
    out: Path,
    *,
    progress: Progress,
    exports: bool = True,
    measured: bool = True,
) -> CompressResult:
    """Compress and write.

    Args:
        out: the checkpoint to write.
        exports: also write ONNX and stand-alone PyTorch.
        measured: time both models where the target is of this machine.

    Raises:
        VitfitError: what was asked does not go together; nothing was written.
    """
    clock = Clock()
    prepared = prepare(request, library)
    clock.lap("load")
    rebased, based = change_basis(prepared, progress)
    clock.lap("basis")
    saliency = scored(prepared, rebased, progress)
    clock.lap("saliency")
    choice = choose(prepared, saliency, library, progress)
    clock.lap("frontier")
    small = cut(prepared, rebased, based, saliency, choice, progress)
    clock.lap("refit")
    report = finish(
        prepared, small.checkpoint, small.report, out, clock, progress=progress, exports=exports, measured=measured
    )
    return CompressResult(small.compressed, report)
