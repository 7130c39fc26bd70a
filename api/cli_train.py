"""The command that trains: finetune."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from api.console import Data, DeviceName, JsonOption, Out, err, print_json, progress_bar, remember_checkpoint
from api.recipe_changes import recipe_with
from recovery.recipes import RECIPES, Recipe
from vit.architecture import Architecture
from vit.errors import UnknownNameError
from vit.token_plan import TokenPlan

_LENGTH, _TEACHERS, _RUN = "How long, and with which numbers", "Teachers", "Where and how it runs"
_TOKENS = "Dropping tokens (DynamicViT)"


def finetune(
    model: Annotated[str, typer.Argument(help="Checkpoint.")],
    data: Data,
    out_path: Out,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help=f"{', '.join(RECIPES)}; or a .json file.", rich_help_panel=_LENGTH)
    ] = "short",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.", rich_help_panel=_LENGTH)] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="In the place of steps.", rich_help_panel=_LENGTH)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step.", rich_help_panel=_LENGTH)] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images at a time, where memory is small.", rich_help_panel=_LENGTH)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of AdamW, whatever the batch size.", rich_help_panel=_LENGTH),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Share of the training images to choose the best weights by.", rich_help_panel=_LENGTH),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random choice.", rich_help_panel=_LENGTH)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other number of the recipe, ema=0.999 or schedule=constant; give it several times.",
            rich_help_panel=_LENGTH,
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Checkpoint to distil from, best the uncut model.", rich_help_panel=_TEACHERS)
    ] = None,
    distillation: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of its soft labels.", rich_help_panel=_TEACHERS)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of its soft labels.", rich_help_panel=_TEACHERS)] = None,
    external_teacher: Annotated[
        str | None,
        typer.Option(help="Checkpoint or timm name whose decisions are distilled, too.", rich_help_panel=_TEACHERS),
    ] = None,
    external_weights: Annotated[
        Path | None, typer.Option(help="Its weights; else the published ones.", rich_help_panel=_TEACHERS)
    ] = None,
    hard_distillation: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of these decisions.", rich_help_panel=_TEACHERS)
    ] = None,
    token_ratio: Annotated[
        float | None,
        typer.Option(
            help="Train it to drop this share of its patch tokens, 0.2, three times on the way.",
            rich_help_panel=_TOKENS,
        ),
    ] = None,
    token_after: Annotated[
        str | None,
        typer.Option(help="After which blocks (default: 3,6,9 of twelve, in proportion).", rich_help_panel=_TOKENS),
    ] = None,
    amp: Annotated[str | None, typer.Option(help="none, bf16 or fp16 (CUDA).", rich_help_panel=_RUN)] = None,
    device: DeviceName = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads (default: all).", rich_help_panel=_RUN)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Run file to go on from (default: OUT with .run before its ending).", rich_help_panel=_RUN),
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between writing it.", rich_help_panel=_RUN)] = 100,
    restart: Annotated[bool, typer.Option("--restart", help="Remove it and start anew.", rich_help_panel=_RUN)] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a checkpoint on, with distillation from a teacher if there is one. Masked weights stay zero.

    Weights that a sparse checkpoint has removed stay zero. Killed, the same command goes on where it was. Under
    torchrun every process takes its share of each batch.
    """
    import torch

    from api.catalogue_sources import validated_accuracy
    from api.finetune_run import Finetuning
    from api.processes import joined
    from api.workflow import dataset_for, load_model
    from api.workflow import external_teacher as external_of
    from latency.runtimes import find_device
    from recovery import processes
    from vit.checkpoint import save_checkpoint

    given = {
        "micro_batch": micro_batch,
        "batch_size": batch_size,
        "lr": lr,
        "validation": validation,
        "seed": seed,
        "distillation": distillation,
        "temperature": temperature,
        "hard_distillation": hard_distillation,
        "amp": amp,
    }
    chosen = recipe_of(recipe, steps, epochs, given, settings or [])
    if threads is not None:
        torch.set_num_threads(threads)
    find_device(device)
    if token_ratio is None and token_after is not None:
        raise typer.BadParameter("--token-after needs --token-ratio")
    with joined(device) as (where, first):
        before = load_model(model)
        guide = None if teacher is None else load_model(teacher)
        dataset = dataset_for(before, data, auto_augment=chosen.auto_augment or None)
        external = None if external_teacher is None else external_of(external_teacher, external_weights, dataset)
        run_file = resume or out_path.with_suffix(f".run{out_path.suffix}")
        if restart:
            if first:
                run_file.unlink(missing_ok=True)
            processes.wait()
        training = Finetuning(
            before,
            dataset,
            chosen,
            run_file,
            teacher=guide,
            external=external,
            external_name=external_teacher or "",
            tokens=None if token_ratio is None else token_plan(before.arch, token_ratio, token_after),
            device=where,
            save_every=save_every,
        )
        used, reports = training.recipe, training.reports()
        if not first:
            for _ in reports:
                pass
            return
        if not as_json:
            _print_recipe(used, guide is None)
        with progress_bar("fine-tuning", used.steps or 0) as show:
            for report in reports:
                show(report.step)
        save_checkpoint(training.result(), out_path)
        run_file.unlink(missing_ok=True)
        known = [] if report.best is None else [validated_accuracy(report.best, dataset.name, used)]
        remember_checkpoint(out_path, known)
    best = "" if report.best is None else f", accuracy {report.best:.2%} of the images held out of training"
    if as_json:
        print_json({"path": str(out_path), "loss": report.loss, "best": report.best, "recipe": used.to_dict()})
    else:
        err.print(f"wrote {out_path}, loss {report.loss:.4f}{best}", highlight=False)


def token_plan(arch: Architecture, ratio: float, after: str | None) -> TokenPlan:
    """
    Raises:
        ArchitectureError: blocks or a ratio that cannot be.
        typer.BadParameter: no numbers.
    """
    if after is None:
        return TokenPlan.usual(arch, ratio)
    try:
        blocks = tuple(int(number) for number in after.split(","))
    except ValueError:
        raise typer.BadParameter(f"--token-after takes numbers of blocks, 3,6,9, got {after!r:.40}") from None
    plan = TokenPlan(blocks, ratio)
    plan.check(arch)
    return plan


def recipe_of(name: str, steps: int | None, epochs: int | None, given: dict[str, Any], settings: list[str]) -> Recipe:
    """A recipe by name or file, with what was given in the place of its numbers.

    Raises:
        UnknownNameError: no such recipe.
        TrainingError: a number that no recipe has, or outside its range.
        typer.BadParameter: steps and epochs, or a setting without a value.
    """
    found = _named(name)
    if steps is not None and epochs is not None:
        raise typer.BadParameter("give --steps or --epochs, not both")
    changes = {field: value for field, value in given.items() if value is not None}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes NAME=VALUE, got {setting!r:.60}")
        changes[field.strip()] = _value(text.strip())
    return recipe_with(found, changes, steps=steps, epochs=epochs)


def _named(name: str) -> Recipe:
    from recovery.errors import TrainingError

    if name in RECIPES:
        return RECIPES[name]
    if not name.endswith(".json"):
        raise UnknownNameError("recipe", name, (*RECIPES, "a .json file"))
    try:
        document = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{name} cannot be read as a recipe: {error}") from None
    if not isinstance(document, dict):
        raise TrainingError(f"{name} holds no JSON object with a recipe's numbers")
    return Recipe.from_dict(document)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _print_recipe(recipe: Recipe, alone: bool) -> None:
    """What differs from a recipe of defaults, in lines of the width of a page."""
    plain = Recipe(steps=1)
    always = ("steps", "batch_size", "lr", "schedule", "weight_decay", "seed")
    said = [
        f"{field.name}={getattr(recipe, field.name)}"
        for field in fields(Recipe)
        if field.name != "source"
        and (field.name in always or getattr(recipe, field.name) != getattr(plain, field.name))
    ]
    err.print(f"recipe ({recipe.source or 'given'}): {', '.join(said)}", highlight=False)
    if alone and recipe.distillation:
        err.print("no --teacher: labels count for what distillation would", highlight=False)
