"""The command that trains to 8 bit: quantise."""

from pathlib import Path
from typing import Annotated

import typer

from api.cli_train import recipe_of
from api.console import Data, DeviceName, JsonOption, err, print_json, progress_bar


def quantise(
    model: Annotated[str, typer.Argument(help="Checkpoint; masked weights stay zero.")],
    data: Data,
    out_path: Annotated[Path, typer.Option("--out", "-o", help="ONNX file; the checkpoint is written beside it.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="As of finetune.")] = "int8",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="In the place of steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Images at a time, where memory is small.")] = None,
    lr: Annotated[float | None, typer.Option(help="Where the learning rate starts.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random choice.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other number of the recipe; give it several times.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Checkpoint to distil from, best the one before.")] = None,
    device: DeviceName = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all).")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run file to go on from (default: OUT with the ending .run.safetensors).")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between writing it.")] = 100,
    restart: Annotated[bool, typer.Option("--restart", help="Remove it and start anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a checkpoint on in simulated 8 bit, and write it as int8 ONNX (QDQ), checked in ONNX Runtime.

    The checkpoint that is written beside the ONNX file has its weights on the grid of their 8 bits. Killed, the same
    command goes on where it was.
    """
    import torch

    from api.finetune_run import Finetuning
    from api.workflow import dataset_for, evaluate, load_model
    from latency.runtimes import find_device
    from recovery.int8_onnx import export_int8, images_to_compare
    from recovery.loop import accuracy
    from vit.checkpoint import save_checkpoint

    if out_path.suffix != ".onnx":
        raise typer.BadParameter(f"--out is an .onnx file, got {out_path}")
    given = {"batch_size": batch_size, "micro_batch": micro_batch, "lr": lr, "seed": seed}
    chosen = recipe_of(recipe, steps, epochs, given, settings or [])
    if threads is not None:
        torch.set_num_threads(threads)
    find_device(device)
    before = load_model(model)
    guide = None if teacher is None else load_model(teacher)
    run_file = resume or out_path.with_suffix(".run.safetensors")
    if restart:
        run_file.unlink(missing_ok=True)
    training = Finetuning(
        before,
        dataset_for(before, data, auto_augment=chosen.auto_augment or None),
        chosen,
        run_file,
        teacher=guide,
        int8=True,
        device=torch.device(device),
        save_every=save_every,
    )
    used, dataset = training.recipe, training.data
    with progress_bar("training to 8 bit", used.steps or 0) as show:
        for report in training.reports():
            show(report.step)
    student = training.student.cpu()
    images, _ = next(iter(dataset.train.shuffled(32, chosen.seed, augment=False)))
    difference = export_int8(student, images_to_compare(student, images), out_path)
    save_checkpoint(training.result(), out_path.with_suffix(".safetensors"))
    run_file.unlink(missing_ok=True)
    found = {"before": evaluate(before, dataset), "int8": accuracy(student, dataset.test)}
    if as_json:
        print_json({"path": str(out_path), "difference": difference, "accuracy": found, "recipe": used.to_dict()})
    else:
        err.print(
            f"wrote {out_path}, outputs within {difference:.1e} of the simulated model's; accuracy "
            f"{found['int8']:.2%} in 8 bit, {found['before']:.2%} before",
            highlight=False,
        )
