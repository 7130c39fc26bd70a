"""Jobs on models: saliency, prune, finetune, sparsify, export. Each calls what the command of its name calls.

saliency    score      saliency.safetensors
prune       rounds     pruned.safetensors; run/ has every round, and the journal by which it goes on
            finish     its accuracy
finetune    train      finetuned.safetensors; train.run.safetensors is the state by which it goes on
sparsify    phases     run/, of a sweep; or at once sparse.safetensors
            targets    sparse-50.safetensors ..., of a sweep
export      export     model.onnx, model.pt2 or model-torch/
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from api.catalogue_sources import validated_accuracy
from api.finetune_run import Finetuning
from api.job_curves import CURVE, JOURNAL, Curve
from api.job_inputs import data_source, model_path
from api.job_requests import (
    ExportJobRequest,
    FinetuneJobRequest,
    PruneJobRequest,
    SaliencyJobRequest,
    SparsifyJobRequest,
)
from api.job_saving import Context, Document, Progress, Step, paths_left, save_as
from api.prune_run import PruneRequest, model_after, run_prune, schedule_for
from api.queries import budget_of
from api.questions import constraints_of
from api.recipe_changes import recipe_with
from api.sparsify_run import (
    TAIL,
    Calibrating,
    SweepRequest,
    levels_for,
    run_sweep,
    selection_of,
    sparsify_checkpoint,
    targets_of,
)
from api.workflow import Scoring, dataset_for, evaluate, load_model, saliency_of
from latency.estimate import estimate
from latency.runtimes import find_device
from recovery.recipes import RECIPES, Recipe
from recovery.training import TrainReport
from search.saliency import save_saliency
from sparsity.oneshot import Sparsify
from sparsity.pattern import Pattern
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.export import EXPORTS
from vit.token_plan import TokenPlan

RUN = "run"
EXPORTED = {"onnx": "model.onnx", "torch": "model.pt2", "standalone": "model-torch"}


def score(context: Context, made: Document, progress: Progress) -> Document:
    body = SaliencyJobRequest.model_validate(context.document)
    scoring = Scoring(
        criterion=body.criterion,
        labels=body.labels,
        batches=body.batches,
        batch_size=body.batch_size,
        amp=body.amp,
        micro_batch=body.micro_batch,
        seed=body.seed,
    )
    checkpoint = _model(body.model)
    data = dataset_for(checkpoint, data_source(body.data))
    progress("saliency", 0, 1)
    found = saliency_of(checkpoint, data, scoring, _device(body.device))
    progress("saliency", 1, 1)
    path = context.folder / "saliency.safetensors"
    save_saliency(found, path)
    save_as(context, "saliency", path)
    return {
        "criterion": found.criterion,
        "batches": found.num_batches,
        "id": found.arch.id,
        "data": found.data,
        "files": {"saliency": path.name},
        "leaves": [path.name],
    }


# --- prune -------------------------------------------------------------------------------------------------------


def rounds(context: Context, made: Document, progress: Progress) -> Document:
    body = PruneJobRequest.model_validate(context.document)
    checkpoint = _model(body.model)
    given = {"batch_size": body.batch_size, "micro_batch": body.micro_batch, "seed": body.seed, "amp": body.amp}
    recipe = recipe_with(RECIPES[body.recipe], _given(given) | body.settings)
    data = dataset_for(checkpoint, data_source(body.data), auto_augment=recipe.auto_augment or None)
    latency = context.library.latency_model(body.target, checkpoint.arch)
    full_ms = estimate(latency, checkpoint.arch).latency_ms
    budget_ms = budget_of(full_ms, body.budget_ms, body.speedup)
    schedule = schedule_for(checkpoint.arch, budget_ms / full_ms, body.rounds, body.interval, body.smoothing)
    request = PruneRequest(
        budget_ms=budget_ms,
        schedule=schedule,
        recipe=recipe,
        scoring=Scoring(
            criterion=body.criterion,
            labels=body.labels,
            batches=body.batches,
            batch_size=body.batch_size,
            amp=None if body.amp == "none" else body.amp,
            micro_batch=body.micro_batch,
            seed=body.seed,
        ),
        selection=body.selection,
        eta=body.eta,
        constraints=constraints_of(body),
    )
    run, steps = context.folder / RUN, max(schedule.interval, 1)
    curve = Curve(context.folder)

    def report(now: TrainReport) -> None:
        curve.add(now)
        progress("training", (now.step - 1) % steps + 1, steps)

    progress("rounds", 0, schedule.rounds)
    for done in run_prune(
        checkpoint, data, latency, request, run, target=body.target, device=_device(body.device), report=report
    ):
        progress("rounds", done.round + 1, done.rounds)
        if not done.resumed:
            context.log(f"round {done.round + 1} of {done.rounds}: {done.latency_ms:.4g}, keeps {done.kept:.1%}")
    out = context.folder / "pruned.safetensors"
    save_checkpoint(load_checkpoint(model_after(run, done.round)), out)
    return {
        "architecture": done.arch.to_dict(),
        "id": done.arch.id,
        "target": latency.target.slug,
        "budget_ms": budget_ms,
        "latency_ms": done.latency_ms,
        "rounds": done.rounds,
        "eta": done.eta,
        "files": _told(context, run),
        "leaves": [out.name, *_told(context, run).values()],
    }


def finish(context: Context, made: Document, progress: Progress) -> Document:
    body = PruneJobRequest.model_validate(context.document)
    out = context.folder / "pruned.safetensors"
    right = _accuracy(load_checkpoint(out), body.data, progress)
    save_as(context, "model", out)
    files = {"checkpoint": out.name} | made["files"]
    return {**made, "accuracy": right, "files": files, "leaves": list(files.values())}


def _told(context: Context, run: Path) -> dict[str, str]:
    """What the run and its training said on the way, as files of the job."""
    found = {}
    if (run / JOURNAL).is_file():
        shutil.copyfile(run / JOURNAL, context.folder / JOURNAL)
        found["journal"] = JOURNAL
    if (context.folder / CURVE).is_file():
        found["curve"] = CURVE
    return found


# --- finetune ----------------------------------------------------------------------------------------------------


def train(context: Context, made: Document, progress: Progress) -> Document:
    body = FinetuneJobRequest.model_validate(context.document)
    before = _model(body.model)
    recipe = recipe_with(
        RECIPES[body.recipe], {"seed": body.seed} | body.settings, steps=body.steps, epochs=body.epochs
    )
    data = dataset_for(before, data_source(body.data), auto_augment=recipe.auto_augment or None)
    tokens = None
    if body.token_ratio is not None:
        after = body.token_after
        usual = TokenPlan.usual(before.arch, body.token_ratio)
        tokens = usual if after is None else TokenPlan(tuple(after), body.token_ratio)
    training = Finetuning(
        before,
        data,
        recipe,
        context.folder / "train.run.safetensors",
        teacher=None if body.teacher is None else _model(body.teacher),
        tokens=tokens,
        device=_device(body.device),
        save_every=body.save_every,
    )
    curve = Curve(context.folder)
    for report in training.reports():
        curve.add(report)
        progress("training", report.step, report.steps)
    out = context.folder / "finetuned.safetensors"
    found = training.result()
    save_checkpoint(found, out)
    right = _accuracy(found, body.data, progress)
    known = [] if report.best is None else [validated_accuracy(report.best, data.name, training.recipe)]
    save_as(context, "model", out, accuracies=known)
    return {
        "loss": report.loss,
        "best": report.best,
        "recipe": training.recipe.to_dict(),
        "accuracy": right,
        "files": {"checkpoint": out.name, "curve": CURVE},
        "leaves": [out.name, CURVE],
    }


# --- sparsify ----------------------------------------------------------------------------------------------------


def phases(context: Context, made: Document, progress: Progress) -> Document:
    body = SparsifyJobRequest.model_validate(context.document)
    checkpoint, device = _model(body.model), _device(body.device)
    if body.sweep is None:
        data = dataset_for(checkpoint, data_source(body.data))
        progress("pruning", 0, 1)
        sparse, found = sparsify_checkpoint(checkpoint, data, _sparsify(body), _calibrating(body), device)
        progress("pruning", 1, 1)
        out = context.folder / "sparse.safetensors"
        save_checkpoint(sparse, out)
        return {"checkpoints": [_sparse(out, sparse, found.skipped)], "leaves": [out.name]}
    wanted = _sweep(body)
    data = dataset_for(checkpoint, data_source(body.data), auto_augment=wanted.recipe.auto_augment or None)
    total, run = wanted.training(len(data.train)).steps or 0, context.folder / RUN
    curve = Curve(context.folder)

    def report(_: int, now: TrainReport) -> None:
        curve.add(now)
        progress("phases", now.step, total)

    for done in run_sweep(checkpoint, data, wanted, run, teacher=_guide(body), device=device, report=report):
        if not done.resumed:
            context.log(f"phase {done.phase + 1} of {done.phases}: {done.sparsity:.1%} removed, loss {done.loss:.4f}")
    needed = {f"phase-{wanted.levels.index(target):03d}.safetensors" for target in wanted.targets}
    told = _told(context, run)
    kept = sorted(f"{RUN}/{name}" for name in needed | {JOURNAL})
    return {"checkpoints": [], "files": told, "leaves": [*kept, *told.values()]}


def targets(context: Context, made: Document, progress: Progress) -> Document:
    body = SparsifyJobRequest.model_validate(context.document)
    checkpoints, names = list(made["checkpoints"]), [one["file"] for one in made["checkpoints"]]
    told = dict(made.get("files", {}))
    if body.sweep is None:
        save_as(context, "model", context.folder / names[0])
    else:
        checkpoint, wanted = _model(body.model), _sweep(body)
        data = dataset_for(checkpoint, data_source(body.data), auto_augment=wanted.recipe.auto_augment or None)
        found = targets_of(
            context.folder / RUN, wanted, data, _guide(body), device=_device(body.device),
            report=lambda _, report: progress("tail", report.step, report.steps),
        )  # fmt: skip
        for target, sparse in found:
            out = context.folder / f"sparse-{100 * target:g}.safetensors"
            save_checkpoint(sparse, out)
            save_as(context, "model", out, f"-{100 * target:g}")
            checkpoints.append(_sparse(out, sparse, ()))
            names.append(out.name)
    return {
        "checkpoints": checkpoints,
        "files": {name.removesuffix(".safetensors"): name for name in names} | told,
        "leaves": [*names, *told.values()],
    }


def _sparsify(body: SparsifyJobRequest) -> Sparsify:
    return Sparsify(
        sparsity=body.sweep[-1] if body.sweep else body.sparsity,
        method=body.method,
        pattern=Pattern.named(body.pattern),
        scope=body.scope,
        selection=selection_of(body.layers, body.include, body.exclude),
        block_size=body.block_size,
        damp=body.damp,
        merge=body.merge,
        recomputations=body.recomputations,
        silent=body.silent,
    )


def _calibrating(body: SparsifyJobRequest) -> Calibrating:
    return Calibrating(gradients=body.gradients, batch_size=body.batch_size, seed=body.seed)


def _sweep(body: SparsifyJobRequest) -> SweepRequest:
    wanted = tuple(body.sweep or ())
    given = _given({"batch_size": body.train_batch, "seed": body.seed}) | body.settings
    known = RECIPES[body.recipe]
    tail: Recipe | None = None
    if body.tail_steps is not None or body.tail_epochs is not None:
        tail = recipe_with(known, given | TAIL, steps=body.tail_steps, epochs=body.tail_epochs)
    return SweepRequest(
        levels=levels_for(wanted, body.first, body.phases),
        targets=wanted,
        request=_sparsify(body),
        how=_calibrating(body),
        recipe=recipe_with(known, given, steps=body.steps, epochs=body.epochs),
        tail=tail,
    )


def _sparse(path: Path, found: Checkpoint, skipped: Any) -> dict[str, Any]:
    assert found.masks is not None
    return {
        "file": path.name,
        "removed": found.masks.zeros,
        "of": found.masks.total,
        "sparsity": found.masks.sparsity,
        "by_layer": dict(found.masks.sparsities()),
        "skipped": list(skipped),
    }


def _guide(body: SparsifyJobRequest) -> Any:
    return None if body.teacher is None else _model(body.teacher).model()


# --- export ------------------------------------------------------------------------------------------------------


def export(context: Context, made: Document, progress: Progress) -> Document:
    body = ExportJobRequest.model_validate(context.document)
    out = context.folder / EXPORTED[body.format]
    shutil.rmtree(out, ignore_errors=True)  # of an attempt that was killed
    progress("export", 0, 1)
    difference = EXPORTS[body.format](_model(body.model), out)
    progress("export", 1, 1)
    files: dict[str, str] = {body.format: out.name}
    return {
        "format": body.format,
        "difference": difference,
        "files": files,
        "leaves": paths_left(context.folder, files),
    }


# --- all ---------------------------------------------------------------------------------------------------------


def _model(name: str) -> Checkpoint:
    return load_model(str(model_path(name)))


def _device(name: str) -> torch.device:
    find_device(name)
    return torch.device(name)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _accuracy(checkpoint: Checkpoint, data: str, progress: Progress) -> float:
    progress("evaluate", 0, 1)
    found = evaluate(checkpoint, dataset_for(checkpoint, data_source(data)))
    progress("evaluate", 1, 1)
    return found


STEPS: Mapping[str, Step] = {
    "score": score,
    "rounds": rounds,
    "finish": finish,
    "train": train,
    "phases": phases,
    "targets": targets,
    "export": export,
}
