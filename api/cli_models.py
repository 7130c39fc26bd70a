"""Commands on models: import, saliency, prune, evaluate, export."""

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
    num_classes: Annotated[int | None, typer.Option(min=0)] = None,
    img_size: Annotated[int | None, typer.Option(min=1)] = None,
    in_chans: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Bring a timm model in as a checkpoint, with your own weights or its published ones."""
    from api.workflow import import_timm
    from vit.checkpoint import save_checkpoint

    given: dict[str, object] = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    options = {name: value for name, value in given.items() if value is not None}
    save_checkpoint(import_timm(timm_name, weights, pretrained=pretrained, options=options), out_path)
    err.print(f"wrote {out_path}", highlight=False)


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
