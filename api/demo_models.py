"""The demo's models: trained, compressed, cut and fine-tuned for comparison, exported.

Every function leaves files and skips what is there already, so a demo that was killed goes on where it was.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from api.compress import Progress, score
from api.compress_job import CompressRequest, calibration_of, rebase_checkpoint, run_compress
from api.demo_plan import COMPRESS, DemoPlan
from api.library import SALIENCIES, Library
from api.workflow import Scoring, cut_once, model_id, pruned_checkpoint, saliency_of, trained_checkpoint
from latency.estimate import estimate
from latency.table import LatencyTable
from recovery.data import Dataset
from recovery.loop import Recipe, finetune
from search.saliency import Saliency, load_saliency, save_saliency
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.export import export_onnx
from vit.files import write_text
from vit.timm_models import from_timm

Bar = Callable[[str, int], Callable[[int], None]]
"""A line of progress, given what is done and of how much; gives a function that sets how much is done."""

REBASED = "rebased.safetensors"

GATES = "gates"
"""The criterion of compress, and the name of its saliency in the demo's library."""


@dataclass(frozen=True, eq=False)
class DemoModel:
    """A model that was made smaller.

    Attributes:
        name: stem of its checkpoint.
        method: `compress`, or the criterion.
        budget: share of the whole model's latency.
        untrained: as cut; by compress also refitted.
        trained: fine-tuned; None where training is not part of the method.
    """

    name: str
    method: str
    budget: float
    untrained: Checkpoint
    trained: Checkpoint | None

    @property
    def result(self) -> Checkpoint:
        return self.trained or self.untrained


def timm_model(plan: DemoPlan, data: Dataset) -> Any:
    """The demo's VisionTransformer as timm makes it, with random weights of seed 0."""
    import torch
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    torch.manual_seed(0)
    return TimmVisionTransformer(
        img_size=data.image_size,
        patch_size=4,
        in_chans=data.in_chans,
        num_classes=data.num_classes,
        embed_dim=plan.embed_dim,
        depth=plan.depth,
        num_heads=plan.num_heads,
        weight_init="moco",  # wider than timm's default: learns these few images in half the steps
    )


def trained(folder: Path, plan: DemoPlan, data: Dataset, bar: Bar) -> Checkpoint:
    """A timm VisionTransformer, trained on digits; the trained weights are those of timm's model, too."""
    path = folder / "dense.safetensors"
    show = bar("train a timm VisionTransformer on digits", plan.train_steps)
    if not path.exists():
        theirs = timm_model(plan, data)
        model = from_timm(theirs)
        recipe = Recipe(steps=plan.train_steps, lr=1.5e-3, warmup=50, distillation=0.0, report_every=10)
        for report in finetune(model, data, recipe):
            show(report.step)
        theirs.load_state_dict(model.state_dict())
        _same_outputs(theirs.eval(), model, data)
        start = Checkpoint.of(model, ({"step": "import", "timm": "VisionTransformer"},))
        save_checkpoint(trained_checkpoint(model, start, recipe, data), path)
    show(plan.train_steps)
    return load_checkpoint(path)


def _same_outputs(theirs: Any, ours: Any, data: Dataset) -> None:
    import torch

    images, _ = next(iter(data.test.ordered(100)))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


# --- the main line -----------------------------------------------------------------------------------------------


def scored(folder: Path, plan: DemoPlan, dense: Checkpoint, data: Dataset, bar: Bar) -> Saliency:
    """The dense model put into its basis, and the saliency of its units there: once a model, for all budgets."""
    calibration = calibration_of(data, plan.images, batch_size=64, seed=0)
    total = 3 * calibration.images
    show = bar("change the basis and score every unit, images", total)
    progress = _summed(show)
    path, scores = folder / REBASED, folder / SALIENCIES / f"{GATES}.safetensors"
    if not path.exists():
        save_checkpoint(rebase_checkpoint(dense, data, calibration, progress), path)
    if not scores.exists():
        rebased = load_checkpoint(path)
        found = score(rebased.model(), calibration, GATES, progress)
        save_saliency(replace(found, model=model_id(rebased), data=f"{data.name}:{data.fingerprint}"), scores)
    show(total)
    return load_saliency(scores)


def _summed(show: Callable[[int], None]) -> Progress:
    """Stages one after the other on one bar."""
    done: dict[str, int] = {}

    def progress(stage: str, count: int, total: int) -> None:
        done[stage] = count
        show(sum(done.values()))

    return progress


def compressed(folder: Path, plan: DemoPlan, dense: Checkpoint, table: LatencyTable, bar: Bar) -> list[DemoModel]:
    """The main line: every budget from the one basis and saliency; search, cut and refit, no training."""
    full_ms = estimate(table, dense.arch).latency_ms
    show = bar("compress to the budgets, without training", len(plan.budgets))
    models = []
    for done, budget in enumerate(plan.budgets, start=1):
        name = f"{COMPRESS}-{budget * 100:.0f}"
        path = folder / f"{name}.safetensors"
        if not path.exists():
            request = CompressRequest(
                model=str(folder / REBASED),
                saliency=str(folder / SALIENCIES / f"{GATES}.safetensors"),
                data="digits",
                target=table.target.slug,
                budget_ms=budget * full_ms,
                images=plan.images,
            )
            # Timed later, in a process of its own; exported with a bar of its own.
            run_compress(request, Library(folder), path, progress=_silent, exports=False, measured=False)
        models.append(DemoModel(name, COMPRESS, budget, load_checkpoint(path), None))
        show(done)
    return models


def _silent(stage: str, done: int, total: int) -> None:
    """Each budget takes a second."""


def exported(folder: Path, models: list[DemoModel], bar: Bar) -> dict[str, float]:
    """ONNX files; the largest difference to PyTorch, as a share of the largest logit, by file name."""
    show = bar("export to ONNX and compare in ONNX Runtime", len(models))
    differences = {}
    for done, model in enumerate(models, start=1):
        path, note = folder / f"{model.name}.onnx", folder / f"{model.name}.onnx.json"
        if not (path.exists() and note.exists()):
            write_text(note, json.dumps({"difference": export_onnx(model.result, path)}))
        differences[path.name] = float(json.loads(note.read_text(encoding="utf-8"))["difference"])
        show(done)
    return differences


# --- for comparison ----------------------------------------------------------------------------------------------


def cut_and_finetuned(
    folder: Path, plan: DemoPlan, dense: Checkpoint, data: Dataset, table: LatencyTable, bar: Bar
) -> list[DemoModel]:
    """One shot by each criterion, sizes by the same search; then a short fine-tune, the dense model as the teacher."""
    full_ms = estimate(table, dense.arch).latency_ms
    wanted = [(budget, criterion) for budget in plan.budgets for criterion in plan.criteria]
    show = bar("cut by other criteria and fine-tune, steps", len(wanted) * plan.finetune_steps)
    models = []
    for index, (budget, criterion) in enumerate(wanted):
        name = f"{criterion}-{budget * 100:.0f}"
        cut_path, path = folder / f"{name}-cut.safetensors", folder / f"{name}.safetensors"
        if not cut_path.exists():
            step = cut_once(dense, _saliency(folder, dense, data, criterion), table, budget * full_ms)
            save_checkpoint(pruned_checkpoint(dense, step, data), cut_path)
        cut = load_checkpoint(cut_path)
        if not path.exists():
            recipe = Recipe(steps=plan.finetune_steps, lr=5e-4, warmup=10, report_every=10, seed=1)
            model = cut.model()
            for report in finetune(model, data, recipe, dense.model()):
                show(index * plan.finetune_steps + report.step)
            save_checkpoint(trained_checkpoint(model, cut, recipe, data, dense), path)
        show((index + 1) * plan.finetune_steps)
        models.append(DemoModel(name, criterion, budget, cut, load_checkpoint(path)))
    return models


def _saliency(folder: Path, dense: Checkpoint, data: Dataset, criterion: str) -> Saliency:
    path = folder / SALIENCIES / f"{criterion}.safetensors"
    if not path.exists():
        save_saliency(saliency_of(dense, data, Scoring(criterion=criterion)), path)
    return load_saliency(path)
