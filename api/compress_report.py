"""What a compression promised and what came of it, as a JSON document, and the files beside a checkpoint."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from api.compress import Compressed, Progress
from api.compress_page import write_compress_page
from api.profiling import measure
from api.workflow import evaluate
from latency.errors import TargetError
from latency.estimate import LatencyModel, estimate
from latency.runtimes import device_of
from latency.table import LatencyTable
from recovery.data import Batch, Dataset, Split
from vit.architecture import Architecture
from vit.checkpoint import Checkpoint, save_checkpoint
from vit.cost import macs, params
from vit.export import export_onnx, export_standalone
from vit.files import write_text


class Clock:
    """Seconds by stage."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(seconds or {})
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def promised(before: Architecture, compressed: Compressed, latency: LatencyModel) -> dict[str, Any]:
    """Both architectures, and the latency of the small one with what it rests on."""
    choice, after = compressed.choice, compressed.model.arch
    return {
        "before": _described(before),
        "after": _described(after),
        **on_target(after, latency, choice.budget_ms),
        "full_ms": estimate(latency, before).latency_ms,
        "kept": choice.kept,
        "bound": choice.bound,
        "gap": choice.gap,
        "skipped": list(compressed.skipped),
        "warnings": list(compressed.warnings),
        "refits": [{"layer": r.layer, "before": r.before, "after": r.after} for r in compressed.refits],
    }


def on_target(arch: Architecture, latency: LatencyModel, budget_ms: float) -> dict[str, Any]:
    """What a latency model promises for an architecture, beside its budget."""
    found = estimate(latency, arch)
    return {
        "target": latency.target.slug,
        "kind": latency.kind,
        "provenance": latency.provenance.to_dict(),
        "budget_ms": budget_ms,
        "latency_ms": found.latency_ms,
        "interval_ms": found.interval_ms,
        "notes": list(found.notes),
    }


def _described(arch: Architecture) -> dict[str, Any]:
    return {"architecture": arch.to_dict(), "id": arch.id, "params": params(arch), "macs": macs(arch)}


def accuracies(before: Checkpoint, after: Checkpoint, data: Dataset, progress: Progress) -> dict[str, Any]:
    """Of both models on the test split."""
    images, done = len(data.test), 0

    def seen(count: int) -> None:
        nonlocal done
        done += count
        progress("evaluate", done, 2 * images)

    progress("evaluate", 0, 2 * images)
    watched = replace(data, test=_Watched(data.test, seen))
    return {"before": evaluate(before, watched), "after": evaluate(after, watched), "images": images}


@dataclass(frozen=True, eq=False)
class _Watched:
    """A split that tells how many images were read."""

    split: Split
    seen: Callable[[int], None]

    def __len__(self) -> int:
        return len(self.split)

    def shuffled(
        self, batch_size: int, seed: int, *, augment: bool, start: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        return self.split.shuffled(batch_size, seed, augment=augment, start=start, share=share)

    def subset(self, rows: Tensor, *, plain: bool = False) -> Split:
        return _Watched(self.split.subset(rows, plain=plain), self.seen)

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        for images, labels in self.split.ordered(batch_size):
            yield images, labels
            self.seen(len(labels))


def measured_here(before: Architecture, after: Architecture, latency: LatencyModel) -> list[dict[str, Any]] | None:
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


def write_all(
    result: Checkpoint, out: Path, report: Mapping[str, Any], *, exports: bool, progress: Progress
) -> dict[str, str]:
    """The checkpoint last; returns names by kind.

    Raises:
        ExportError: outputs differ, or something is where the stand-alone folder goes.
    """
    paths = paths_beside(out)
    written = ["report", "html", "checkpoint"]
    if exports:
        progress("export", 0, 2)
        export_onnx(result, paths["onnx"])
        progress("export", 1, 2)
        export_standalone(result, paths["torch"])
        progress("export", 2, 2)
        written += ["onnx", "torch"]
    write_text(paths["report"], json.dumps(report, indent=2) + "\n")
    write_compress_page(paths["html"], report)
    save_checkpoint(result, out)
    return {kind: paths[kind].name for kind in written}
