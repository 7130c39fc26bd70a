"""`compress` as the command line and jobs run it: checkpoint, data, budget in; checkpoint, exports, report out.

Beside the checkpoint OUT.safetensors lie OUT.onnx, OUT-torch/ (model.py with its weights, needs torch alone),
OUT.report.json and the same as a page, OUT.report.html. The checkpoint comes last: where it is, all is there.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from api.compress import Based, Batches, Calibration, Compressed, Progress, fit, in_its_basis, score, sensitivity_of
from api.compress_report import write_compress_report
from api.library import Library
from api.queries import budget_of, resolve_target
from api.workflow import dataset_for, evaluate, load_model, measure, model_id
from latency.errors import TargetError
from latency.estimate import LatencyModel, estimate
from latency.runtimes import device_of
from latency.table import LatencyTable
from recovery.data import Dataset
from recovery.refit import RIDGE
from search.constraints import Constraints
from search.criteria import criterion_named
from search.errors import SaliencyError
from search.frontier import Choice
from search.saliency import Saliency, load_saliency
from vit.architecture import Architecture
from vit.checkpoint import Checkpoint, save_checkpoint
from vit.cost import macs, params
from vit.errors import UnknownNameError
from vit.export import export_onnx, export_standalone
from vit.files import write_text
from vit.model import VisionTransformer

LABELS = ("model", "data")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRequest:
    """What to compress, with what, to what.

    Attributes:
        model: checkpoint or timm name.
        data: as in `recovery.data.load_dataset`.
        target, budget_ms, speedup: slug, table file or `macs`, and exactly one of the two budgets.
        images: calibration images at most; all of the training split if it has fewer.
        labels: that saliency reads: drawn from the `model`'s own predictions, or those of the `data`.
        saliency: file of a saliency of `model`, which then is a checkpoint in its basis already (`vitfit rebase`).
    """

    model: str
    data: str
    target: str
    budget_ms: float | None = None
    speedup: float | None = None
    images: int = 1024
    batch_size: int = 64
    seed: int = 0
    criterion: str = "gates"
    labels: str = "model"
    saliency: str | None = None
    constraints: Constraints = field(default_factory=Constraints)
    ridge: float = RIDGE
    pretrained: bool = False

    def __post_init__(self) -> None:
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
    }
    return Checkpoint.of(based.model, (*checkpoint.lineage, step)), based


def _in_basis(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.lineage) and checkpoint.lineage[-1].get("step") == "rebase"


def _scored(
    checkpoint: Checkpoint,
    model: VisionTransformer,
    data: Dataset,
    calibration: Calibration,
    request: CompressRequest,
    progress: Progress,
) -> Saliency:
    """Of a checkpoint in its basis, read or computed."""
    identity = model_id(checkpoint)
    if request.saliency is None:
        found = score(model, calibration, request.criterion, progress)
        return replace(found, model=identity, data=f"{data.name}:{data.fingerprint}")
    found = load_saliency(Path(request.saliency))
    if found.model != identity:
        raise SaliencyError(
            f"{request.saliency} scores {found.model or 'a model without an id'}, this one is {identity}; change the "
            "basis with `vitfit rebase`, score that checkpoint with `vitfit saliency` and compress it"
        )
    return found


@dataclass(frozen=True, eq=False)
class CompressResult:
    """
    Attributes:
        compressed: model, choice, refits, warnings.
        report: JSON document, see `_report`.
    """

    compressed: Compressed
    report: dict[str, Any]


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


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
    clock = _Clock()
    checkpoint = load_model(request.model, pretrained=request.pretrained)
    data = dataset_for(checkpoint, request.data)
    latency = resolve_target(request.target, checkpoint.arch, library)
    full_ms = estimate(latency, checkpoint.arch).latency_ms
    budget_ms = budget_of(full_ms, request.budget_ms, request.speedup)
    calibration = calibration_of(data, request.images, request.batch_size, request.seed, request.labels)
    clock.lap("load")
    if _in_basis(checkpoint):
        rebased, step, model = checkpoint, checkpoint.lineage[-1], checkpoint.model()
        sensitivity = sensitivity_of(model, calibration, progress)
        based = Based(model, bool(step["layer_norm"]), sensitivity, tuple(step["skipped"]))
    elif request.saliency is not None:
        raise SaliencyError(
            f"{request.model} is not in its basis, so {request.saliency} is of another one; run `vitfit rebase` first"
        )
    else:
        rebased, based = _rebased(checkpoint, data, calibration, progress)
    clock.lap("basis")
    saliency = _scored(rebased, based.model, data, calibration, request, progress)
    clock.lap("saliency")
    progress("frontier", 0, 1)
    choice = library.frontier_of(saliency, latency, request.constraints).best(budget_ms)
    progress("frontier", 1, 1)
    clock.lap("frontier")
    compressed = fit(based, saliency, choice, calibration, ridge=request.ridge, progress=progress)
    clock.lap("refit")
    result = Checkpoint.of(
        compressed.model, (*rebased.lineage, _lineage_step(request, latency, compressed.choice, calibration))
    )
    accuracies = {"before": evaluate(checkpoint, data), "after": evaluate(result, data), "images": len(data.test)}
    clock.lap("evaluate")
    times = _measured(checkpoint.arch, result.arch, latency) if measured else None
    clock.lap("measure")
    report = _report(request, checkpoint, result, latency, full_ms, compressed, calibration, data) | {
        "accuracy": accuracies,
        "measured": times,
        "seconds": clock.seconds,
    }
    files = _write(result, out, report, exports=exports)
    return CompressResult(compressed, report | {"files": files})


def _lineage_step(
    request: CompressRequest, latency: LatencyModel, choice: Choice, calibration: Calibration
) -> dict[str, Any]:
    return {
        "step": "compress",
        "criterion": request.criterion,
        "labels": request.labels,
        "images": calibration.images,
        "ridge": request.ridge,
        "target": latency.target.slug,
        "kind": latency.kind,
        "constraints": request.constraints.to_dict(),
        "budget_ms": choice.budget_ms,
        "latency_ms": choice.latency_ms,
        "saliency_kept": choice.kept,
        "bound": choice.bound,
    }


def _measured(before: Architecture, after: Architecture, latency: LatencyModel) -> list[dict[str, Any]] | None:
    """Both models timed here, interleaved, where the target is of this machine."""
    if not isinstance(latency, LatencyTable):
        return None
    try:
        device = device_of(latency.target)
    except TargetError:
        return None
    results = measure([before, after], device, latency.target, latency)
    return [
        {
            "model": name,
            "measured_ms": result.latency_ms,
            "iqr_ms": result.iqr_ms,
            "predicted_ms": result.predicted_ms,
            "error": result.error,
            "drift": result.drift,
        }
        for name, result in zip(("before", "after"), results, strict=True)
    ]


def _described(arch: Architecture) -> dict[str, Any]:
    return {"architecture": arch.to_dict(), "id": arch.id, "params": params(arch), "macs": macs(arch)}


def _report(
    request: CompressRequest,
    before: Checkpoint,
    after: Checkpoint,
    latency: LatencyModel,
    full_ms: float,
    compressed: Compressed,
    calibration: Calibration,
    data: Dataset,
) -> dict[str, Any]:
    """What was promised, on what evidence; all but what is measured afterwards."""
    choice = compressed.choice
    return {
        "model": request.model,
        "before": _described(before.arch),
        "after": _described(after.arch),
        "target": latency.target.slug,
        "kind": latency.kind,
        "provenance": latency.provenance.to_dict(),
        "full_ms": full_ms,
        "budget_ms": choice.budget_ms,
        "latency_ms": choice.latency_ms,
        "interval_ms": latency.provenance.interval_ms(choice.latency_ms),
        "notes": list(estimate(latency, after.arch).notes),
        "kept": choice.kept,
        "bound": choice.bound,
        "gap": choice.gap,
        "criterion": request.criterion,
        "labels": request.labels,
        "constraints": request.constraints.to_dict(),
        "ridge": request.ridge,
        "calibration": {"data": data.name, "fingerprint": data.fingerprint, "images": calibration.images},
        "skipped": list(compressed.skipped),
        "warnings": list(compressed.warnings),
        "refits": [{"layer": r.layer, "before": r.before, "after": r.after} for r in compressed.refits],
    }


def paths_beside(out: Path) -> dict[str, Path]:
    """Where everything that belongs to a checkpoint goes."""
    stem = out.with_suffix("")
    return {
        "checkpoint": out,
        "onnx": stem.with_name(f"{stem.name}.onnx"),
        "torch": stem.with_name(f"{stem.name}-torch"),
        "report": stem.with_name(f"{stem.name}.report.json"),
        "html": stem.with_name(f"{stem.name}.report.html"),
    }


def _write(result: Checkpoint, out: Path, report: dict[str, Any], *, exports: bool) -> dict[str, str]:
    """The checkpoint last; returns names by kind."""
    paths = paths_beside(out)
    written = ["report", "html", "checkpoint"]
    if exports:
        export_onnx(result, paths["onnx"])
        export_standalone(result, paths["torch"])
        written += ["onnx", "torch"]
    write_text(paths["report"], json.dumps(report, indent=2) + "\n")
    write_compress_report(paths["html"], report)
    save_checkpoint(result, out)
    return {kind: paths[kind].name for kind in written}
