"""Commands on models: import, saliency, prune, finetune, evaluate, export."""

from pathlib import Path
from typing import Annotated

import typer

from api.console import (
    Batches,
    BatchSize,
    BudgetMs,
    Criterion,
    Data,
    JsonOption,
    Labels,
    Out,
    Pretrained,
    Seed,
    Speedup,
    Target,
    choice_document,
    err,
    open_library,
    out,
    print_choice,
    print_json,
    progress_bar,
)


def import_(
    timm_name: Annotated[str, typer.Argument(help="A timm model, for example deit_small_patch16_224.")],
    out_path: Out,
    weights: Annotated[Path | None, typer.Option(help="State dict (.safetensors, .pth).")] = None,
    pretrained: Pretrained = False,
    num_classes: Annotated[int | None, typer.Option(min=0, help="Outputs of your weights, 0: features.")] = None,
    img_size: Annotated[
        str | None, typer.Option(help="Pixels, 384, or height and width, 256x128.", metavar="SIZE")
    ] = None,
    in_chans: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Bring a timm model in as a checkpoint, with your own weights or its published ones."""
    from api.workflow import import_timm
    from vit.checkpoint import save_checkpoint

    size = None if img_size is None else _image_size(img_size)
    given: dict[str, object] = {"num_classes": num_classes, "img_size": size, "in_chans": in_chans}
    options = {name: value for name, value in given.items() if value is not None}
    save_checkpoint(import_timm(timm_name, weights, pretrained=pretrained, options=options), out_path)
    err.print(f"wrote {out_path}", highlight=False)


def _image_size(text: str) -> tuple[int, int]:
    """'384' -> (384, 384), '256x128' -> (256, 128)."""
    height, _, width = text.partition("x")
    try:
        size = int(height), int(width or height)
    except ValueError:
        size = 0, 0
    if min(size) < 1 or text.endswith("x"):
        raise typer.BadParameter(f"--img-size is 384, or height x width as 256x128, got {text!r}")
    return size


def saliency(
    model: Annotated[str, typer.Argument(help="Checkpoint or timm name.")],
    data: Data,
    out_path: Out,
    criterion: Criterion = "fisher",
    labels: Labels = "data",
    batches: Batches = 16,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    pretrained: Pretrained = False,
) -> None:
    """Score every unit of a model on training images."""
    from api.workflow import dataset_for, load_model, saliency_of
    from search.saliency import save_saliency

    checkpoint = load_model(model, pretrained=pretrained)
    dataset = dataset_for(checkpoint, data)
    result = saliency_of(
        checkpoint, dataset, criterion, labels=labels, batches=batches, batch_size=batch_size, seed=seed
    )
    save_saliency(result, out_path)
    err.print(f"wrote {out_path} ({criterion}, {result.num_batches} batches)", highlight=False)


def prune(
    model: Annotated[str, typer.Argument(help="Checkpoint or timm name.")],
    data: Data,
    target: Target,
    out_path: Out,
    budget_ms: BudgetMs = None,
    speedup: Speedup = None,
    criterion: Criterion = "fisher",
    selection: Annotated[str, typer.Option(help="frontier (certified) or greedy.")] = "frontier",
    rounds: Annotated[int, typer.Option(min=1, help="Score and cut in this many equal steps.")] = 1,
    batches: Batches = 16,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    pretrained: Pretrained = False,
    as_json: JsonOption = False,
) -> None:
    """Cut a model to a budget in one shot, without training."""
    from api.queries import budget_of, resolve_target
    from api.workflow import dataset_for, load_model, prune_checkpoint, pruned_checkpoint
    from latency.estimate import estimate as latency_of
    from vit.checkpoint import save_checkpoint

    checkpoint = load_model(model, pretrained=pretrained)
    dataset = dataset_for(checkpoint, data)
    latency = resolve_target(target, checkpoint.arch, open_library())
    budget = budget_of(latency_of(latency, checkpoint.arch).latency_ms, budget_ms, speedup)
    steps = prune_checkpoint(
        checkpoint,
        dataset,
        latency,
        budget,
        criterion=criterion,
        selection=selection,
        rounds=rounds,
        batches=batches,
        batch_size=batch_size,
        seed=seed,
    )
    with progress_bar("cutting", rounds) as show:
        for step in steps:
            show(step.round + 1)
    save_checkpoint(pruned_checkpoint(checkpoint, step, dataset), out_path)
    if as_json:
        print_json(choice_document(step.choice, latency))
    else:
        print_choice(step.choice, latency)
        err.print(f"wrote {out_path}", highlight=False)


def finetune(
    model: Annotated[str, typer.Argument(help="Checkpoint.")],
    data: Data,
    out_path: Out,
    teacher: Annotated[str | None, typer.Option(help="Checkpoint to distil from, best the uncut model.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 200,
    batch_size: BatchSize = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 5e-4,
    distillation: Annotated[float, typer.Option(min=0, max=1, help="Weight of the teacher.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of the distillation.")] = 2.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all).")] = None,
    seed: Seed = 0,
) -> None:
    """Train a checkpoint on, with distillation from a teacher if there is one."""
    import torch

    from api.workflow import dataset_for, load_model, trained_checkpoint
    from recovery.loop import Recipe
    from recovery.loop import finetune as train
    from vit.checkpoint import save_checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    before = load_model(model)
    guide = None if teacher is None else load_model(teacher)
    dataset = dataset_for(before, data)
    recipe = Recipe(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=steps // 10,
        distillation=distillation,
        temperature=temperature,
        seed=seed,
    )
    student = before.model()
    with progress_bar("fine-tuning", recipe.steps) as show:
        for report in train(student, dataset, recipe, None if guide is None else guide.model()):
            show(report.step)
    save_checkpoint(trained_checkpoint(student, before, recipe, dataset, guide), out_path)
    err.print(f"wrote {out_path}, loss {report.loss:.4f}", highlight=False)


def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint.")], data: Data, as_json: JsonOption = False
) -> None:
    """Top-1 accuracy on the held-out images."""
    from api.workflow import dataset_for, load_model
    from api.workflow import evaluate as accuracy_of

    checkpoint = load_model(model)
    dataset = dataset_for(checkpoint, data)
    right = accuracy_of(checkpoint, dataset)
    if as_json:
        print_json({"model": model, "data": dataset.name, "images": len(dataset.test), "accuracy": right})
    else:
        out.print(f"{right:.2%} of {len(dataset.test)} images of {dataset.name}", highlight=False)


def export(
    model: Annotated[str, typer.Argument(help="Checkpoint.")],
    out_path: Annotated[Path, typer.Option("--out", "-o", help="File to write; of standalone a new folder.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="onnx, torch (torch.export) or standalone (model.py that needs torch alone)."
        ),
    ] = "onnx",
) -> None:
    """Write a model for other runtimes, checked against the original."""
    from api.workflow import load_model
    from vit.errors import UnknownNameError
    from vit.export import EXPORTS

    if format_ not in EXPORTS:
        raise UnknownNameError("format", format_, EXPORTS)
    difference = EXPORTS[format_](load_model(model), out_path)
    err.print(f"wrote {out_path}, outputs within {difference:.1e} of the model's", highlight=False)
