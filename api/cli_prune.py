"""Commands of NViT's way: prune in rounds with training in between, and pick a budget on the way of such a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.console import (
    Batches,
    BatchSize,
    BudgetMs,
    Criterion,
    Data,
    DeviceName,
    EqualBlocks,
    FixEmbedDim,
    JsonOption,
    Labels,
    Minimum,
    Multiple,
    Out,
    Pretrained,
    Protect,
    Seed,
    Speedup,
    Target,
    choice_document,
    constraints_of,
    err,
    open_library,
    out,
    print_choice,
    print_json,
    progress_bar,
    remember_checkpoint,
    unit_of,
)

if TYPE_CHECKING:
    from api.prune_run import PruneRequest, Round


def prune(
    model: Annotated[str, typer.Argument(help="Checkpoint or timm name.")],
    data: Data,
    target: Target,
    out_path: Out,
    budget_ms: BudgetMs = None,
    speedup: Speedup = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Score and cut in this many equal steps (default: 5 % of the latency each)."),
    ] = None,
    interval: Annotated[
        int | None, typer.Option(min=0, help="Training steps between rounds (default: by the model's size); 0: none.")
    ] = None,
    criterion: Criterion = "nvit",
    selection: Annotated[str, typer.Option(help="greedy (NViT's) or frontier (certified).")] = "greedy",
    eta: Annotated[
        float | None, typer.Option(min=0, help="Weight of latency in the greedy ranking (default: found).")
    ] = None,
    smoothing: Annotated[float, typer.Option(min=0, help="Weight of earlier rounds' saliency, 0.9 is NViT's.")] = 0.0,
    recipe: Annotated[
        str, typer.Option(help="Of the training between rounds; its length is rounds x interval, nothing is held out.")
    ] = "prune",
    lr: Annotated[float | None, typer.Option(help="Learning rate between rounds (default: the recipe's).")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other number of the recipe, drop_path=0.1; give it several times."),
    ] = None,
    multiple: Multiple = None,
    minimum: Minimum = None,
    fix_embed_dim: FixEmbedDim = None,
    equal_blocks: EqualBlocks = False,
    protect: Protect = None,
    labels: Labels = "data",
    batches: Batches = 16,
    batch_size: BatchSize = 64,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: beside OUT); the same command goes on there.")
    ] = None,
    device: DeviceName = "cpu",
    amp: Annotated[str, typer.Option(help="Mixed precision of scoring and training: none or bf16.")] = "none",
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images at a time, if a batch does not fit into memory.")
    ] = None,
    seed: Seed = 0,
    pretrained: Pretrained = False,
    as_json: JsonOption = False,
) -> None:
    """NViT: score, cut the lowest, train on, until the budget is met. Killed, the same command goes on.

    Every round stays in the folder of the run; `vitfit pick` takes any budget on the way from there. Fine-tune the
    result with `vitfit finetune`. Without time to train, `vitfit compress` is better.
    """
    from api.cli_train import recipe_of
    from api.processes import joined
    from api.prune_run import PruneRequest, model_after, run_prune, schedule_for
    from api.queries import budget_of, resolve_target
    from api.workflow import Scoring, dataset_for, load_model
    from latency.estimate import estimate as latency_of
    from latency.runtimes import find_device
    from vit.checkpoint import load_checkpoint, save_checkpoint

    find_device(device)
    given = {"batch_size": batch_size, "micro_batch": micro_batch, "seed": seed, "lr": lr, "amp": amp}
    training = recipe_of(recipe, None, None, given, settings or [])
    scoring = Scoring(
        criterion=criterion,
        labels=labels,
        batches=batches,
        batch_size=batch_size,
        amp=None if amp == "none" else amp,
        micro_batch=micro_batch,
        seed=seed,
    )
    constraints = constraints_of(multiple, minimum, fix_embed_dim, equal_blocks, protect)
    with joined(device) as (where, first):
        checkpoint = load_model(model, pretrained=pretrained)
        dataset = dataset_for(checkpoint, data, auto_augment=training.auto_augment or None)
        latency = resolve_target(target, checkpoint.arch, open_library())
        full_ms = latency_of(latency, checkpoint.arch).latency_ms
        budget = budget_of(full_ms, budget_ms, speedup)
        schedule = schedule_for(checkpoint.arch, budget / full_ms, rounds, interval, smoothing)
        request = PruneRequest(
            budget_ms=budget,
            schedule=schedule,
            recipe=training,
            scoring=scoring,
            selection=selection,
            eta=eta,
            constraints=constraints,
        )
        folder = run or out_path.with_suffix(".run")
        made_in = run_prune(checkpoint, dataset, latency, request, folder, target=target, device=where)
        if not first:
            for _ in made_in:
                pass
            return
        slug = latency.target.slug
        err.print(_announced(request), highlight=False)
        with progress_bar("pruning", schedule.rounds) as show:
            for made in made_in:
                show(made.round + 1)
                err.print(_told(made, unit_of(slug)), highlight=False)
        save_checkpoint(load_checkpoint(model_after(folder, made.round)), out_path)
        remember_checkpoint(out_path)
    if as_json:
        print_json(_document(made, slug, budget, folder))
        return
    out.print(
        f"{made.latency_ms:.3f} {unit_of(slug)} of {budget:.3f} on {slug} ({latency.kind}), "
        f"{full_ms / made.latency_ms:.2f} times as fast as the whole model",
        highlight=False,
    )
    err.print(f"wrote {out_path}; all rounds are in {folder}", highlight=False)


def _announced(request: "PruneRequest") -> str:
    schedule, recipe = request.schedule, request.recipe
    trained = "no training between them"
    if schedule.interval and schedule.rounds > 1:
        steps = f"{schedule.interval} training steps of {recipe.batch_size} images"
        trained = f"{steps} between them, learning rate {recipe.peak_lr:g}"
    return f"{schedule.rounds} rounds by {request.scoring.criterion}, {request.selection}; {trained}"


def _told(made: "Round", unit: str) -> str:
    trained = "" if made.loss is None else f", loss {made.loss:.3f}"
    again = " (done before)" if made.resumed else ""
    return (
        f"round {made.round + 1:>3}: {made.latency_ms:9.3f} {unit}, keeps {made.kept:6.1%} of what was left, "
        f"EMB {made.arch.embed_dim}{trained}{again}"
    )


def _document(made: "Round", slug: str, budget_ms: float, folder: Path) -> dict[str, Any]:
    return {
        "architecture": made.arch.to_dict(),
        "id": made.arch.id,
        "target": slug,
        "budget_ms": budget_ms,
        "latency_ms": made.latency_ms,
        "rounds": made.rounds,
        "eta": made.eta,
        "run": str(folder),
    }


def pick(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `vitfit prune`, finished or not.")],
    out_path: Out,
    budget_ms: BudgetMs = None,
    speedup: Speedup = None,
    as_json: JsonOption = False,
) -> None:
    """The model that a run of `vitfit prune` had on its way at another budget."""
    from api.prune_run import pick as pick_from
    from api.queries import budget_of
    from vit.checkpoint import save_checkpoint

    found, choice, latency = pick_from(run, open_library(), lambda full_ms: budget_of(full_ms, budget_ms, speedup))
    save_checkpoint(found, out_path)
    remember_checkpoint(out_path)
    if as_json:
        print_json(choice_document(choice, latency))
    else:
        print_choice(choice, latency)
        err.print(f"wrote {out_path}", highlight=False)
