"""The command that trains to 8 bit: quantise."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from api.cli_train import recipe_of
from api.console import Data, JsonOption, err, print_json, progress_bar

CALIBRATION_BATCHES = 8
"""Batches of training images that the ranges of inputs start from."""


def quantise(
    model: Annotated[str, typer.Argument(help="Checkpoint; masked weights stay zero.")],
    data: Data,
    out_path: Annotated[Path, typer.Option("--out", "-o", help="ONNX file; the checkpoint is written beside it.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="As of finetune.")] = "int8",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="In the place of steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Where the learning rate starts.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random choice.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Checkpoint to distil from, best the one before.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a checkpoint on in simulated 8 bit, and write it as int8 ONNX (QDQ), checked in ONNX Runtime.

    Trains on the CPU. The checkpoint that is written beside the ONNX file has its weights on the grid of their 8 bits.
    """
    from api.workflow import dataset_for, evaluate, load_model, quantised_checkpoint
    from recovery.feed import held_out
    from recovery.int8_onnx import export_int8, images_to_compare
    from recovery.loop import accuracy
    from recovery.loop import finetune as train
    from recovery.quantise import calibrate, with_int8
    from vit.checkpoint import save_checkpoint

    if out_path.suffix != ".onnx":
        raise typer.BadParameter(f"--out is an .onnx file, got {out_path}")
    chosen = recipe_of(recipe, steps, epochs, {"batch_size": batch_size, "lr": lr, "seed": seed}, [])
    before = load_model(model)
    guide = None if teacher is None else load_model(teacher)
    dataset = held_out(dataset_for(before, data), chosen.validation, chosen.seed)
    student = with_int8(before.model())
    shown = dataset.train.shuffled(chosen.batch_size, chosen.seed, augment=False)
    calibrate(student, (images for images, _ in islice(shown, CALIBRATION_BATCHES)))
    used = chosen.resolved(len(dataset.train))
    uncut = None if guide is None else guide.model()
    with progress_bar("training to 8 bit", used.steps or 0) as show:
        for report in train(student, dataset, chosen, uncut, mask=before.masks):
            show(report.step)
    images, _ = next(iter(dataset.train.shuffled(32, chosen.seed, augment=False)))
    difference = export_int8(student, images_to_compare(student, images), out_path)
    save_checkpoint(quantised_checkpoint(student, before, used, dataset, guide), out_path.with_suffix(".safetensors"))
    found = {"before": evaluate(before, dataset), "int8": accuracy(student, dataset.test)}
    if as_json:
        print_json({"path": str(out_path), "difference": difference, "accuracy": found, "recipe": used.to_dict()})
    else:
        err.print(
            f"wrote {out_path}, outputs within {difference:.1e} of the simulated model's; accuracy "
            f"{found['int8']:.2%} in 8 bit, {found['before']:.2%} before",
            highlight=False,
        )
