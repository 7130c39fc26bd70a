"""Commands on models: import, saliency, prune, evaluate, export."""

from pathlib import Path
from typing import Annotated

import typer

from api.console import (
    Batches,
    BatchSize,
    Criterion,
    Data,
    DeviceName,
    JsonOption,
    Labels,
    Out,
    Pretrained,
    Seed,
    err,
    out,
    print_json,
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
    device: DeviceName = "cpu",
    amp: Annotated[str | None, typer.Option(help="Mixed precision: bf16.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images at a time, if a batch does not fit into memory; same result.")
    ] = None,
    seed: Seed = 0,
    pretrained: Pretrained = False,
) -> None:
    """Score every unit of a model on training images. Under torchrun, processes share the batches."""
    from api.processes import joined
    from api.workflow import Scoring, dataset_for, load_model, saliency_of
    from latency.runtimes import find_device
    from search.saliency import save_saliency

    scoring = Scoring(
        criterion=criterion,
        labels=labels,
        batches=batches,
        batch_size=batch_size,
        amp=amp,
        micro_batch=micro_batch,
        seed=seed,
    )
    find_device(device)
    with joined(device) as (where, first):
        checkpoint = load_model(model, pretrained=pretrained)
        dataset = dataset_for(checkpoint, data)
        result = saliency_of(checkpoint, dataset, scoring, where)
        if first:
            save_saliency(result, out_path)
            err.print(f"wrote {out_path} ({criterion}, {result.num_batches} batches)", highlight=False)


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
