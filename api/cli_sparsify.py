"""The command that removes single weights: sparsify."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.console import Data, DeviceName, JsonOption, Out, Pretrained, Seed, err, print_json, progress_bar

if TYPE_CHECKING:
    from api.sparsify_run import SweepRequest

_WHAT, _HOW, _TRAIN, _RUN = "Which weights", "By which method", "A sweep with training", "Where and how it runs"


def sparsify(
    model: Annotated[str, typer.Argument(help="Checkpoint or timm name.")],
    data: Data,
    out_path: Out,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help="Fraction to remove, 0.75.", rich_help_panel=_WHAT)
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            help="unstructured; N:M as 2:4, which says the sparsity; tiles as 1x8, 4x1.", rich_help_panel=_WHAT
        ),
    ] = "unstructured",
    layers: Annotated[
        str,
        typer.Option(help="A papers' choice: vit (all linear layers of the blocks) or all.", rich_help_panel=_WHAT),
    ] = "vit",
    include: Annotated[
        list[str] | None, typer.Option(help="Only weights of such names, blocks.*.mlp.*", rich_help_panel=_WHAT)
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No weights of such names, *.attn.qkv.*", rich_help_panel=_WHAT)
    ] = None,
    scope: Annotated[
        str, typer.Option(help="global: the cheapest of all layers; uniform: a share of each.", rich_help_panel=_WHAT)
    ] = "global",
    method: Annotated[
        str,
        typer.Option(
            "--method", "-m", help="ovit, woodfisher, mfac, diagonal, grw or magnitude.", rich_help_panel=_HOW
        ),
    ] = "ovit",
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Of the Fisher blocks (default: the method's).", rich_help_panel=_HOW)
    ] = None,
    damp: Annotated[float | None, typer.Option(help="λ of the Fisher blocks.", rich_help_panel=_HOW)] = None,
    merge: Annotated[
        str, typer.Option(help="How oViT compares blocks: marginal, or the paper's cumulative.", rich_help_panel=_HOW)
    ] = "marginal",
    gradients: Annotated[
        int, typer.Option(min=1, help="Batches that gradients are taken of; the paper's 4096.", rich_help_panel=_HOW)
    ] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of each of them.", rich_help_panel=_HOW)] = 16,
    recomputations: Annotated[
        int, typer.Option(min=1, help="Steps on the way, with gradients of their own.", rich_help_panel=_HOW)
    ] = 1,
    silent: Annotated[
        str, typer.Option(help="Layers without gradients: stop, or skip them.", rich_help_panel=_HOW)
    ] = "stop",
    memory_gb: Annotated[
        float | None, typer.Option(help="For the statistics; layers are done in turn.", rich_help_panel=_HOW)
    ] = None,
    sweep_to: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            help="Targets of one run with training in between, 0.5,0.6,0.75,0.8,0.9; OUT-50, OUT-60 ... are written.",
            rich_help_panel=_TRAIN,
        ),
    ] = None,
    first: Annotated[float, typer.Option(help="Sparsity of its first phase.", rich_help_panel=_TRAIN)] = 0.4,
    phases: Annotated[int | None, typer.Option(min=2, help="Default: 15.", rich_help_panel=_TRAIN)] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Of all phases: light1, ovit-deit, ...", rich_help_panel=_TRAIN)
    ] = "light1",
    steps: Annotated[int | None, typer.Option(min=1, help="Of all phases.", rich_help_panel=_TRAIN)] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="In the place of steps.", rich_help_panel=_TRAIN)] = None,
    tail_steps: Annotated[
        int | None, typer.Option(min=1, help="Fine-tune each target on, cosine.", rich_help_panel=_TRAIN)
    ] = None,
    tail_epochs: Annotated[
        int | None, typer.Option(min=1, help="In the place of steps; the paper's 100.", rich_help_panel=_TRAIN)
    ] = None,
    train_batch: Annotated[
        int | None, typer.Option(min=1, help="Images a training step.", rich_help_panel=_TRAIN)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other number of the recipe, lr=1e-4.", rich_help_panel=_TRAIN),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Checkpoint to distil from.", rich_help_panel=_TRAIN)] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the sweep (default: beside OUT).", rich_help_panel=_RUN)
    ] = None,
    device: DeviceName = "cpu",
    seed: Seed = 0,
    pretrained: Pretrained = False,
    as_json: JsonOption = False,
) -> None:
    """Zero single weights by second-order information (oViT), and re-tune the others.

    At once, to one sparsity or pattern; or a sweep with training in between, which gives a checkpoint at every target
    and, killed, goes on when the same command is given. Fine-tune with `vitfit finetune`, which keeps the zeros.
    """
    from api.processes import joined
    from api.sparsify_run import Calibrating, levels_for, run_sweep, selection_of, sparsify_checkpoint, targets_of
    from api.workflow import dataset_for, load_model
    from latency.runtimes import find_device
    from sparsity.oneshot import Sparsify
    from sparsity.pattern import Pattern
    from vit.checkpoint import save_checkpoint

    if sweep_to is not None and sparsity is not None:
        raise typer.BadParameter("give --sparsity or --sweep, not both")
    targets = () if sweep_to is None else _numbers(sweep_to)
    request = Sparsify(
        sparsity=targets[-1] if targets else sparsity,
        method=method,
        pattern=Pattern.named(pattern),
        scope=scope,
        selection=selection_of(layers, include or (), exclude or ()),
        block_size=block_size,
        damp=damp,
        merge=merge,
        recomputations=recomputations,
        silent=silent,
        memory_gb=memory_gb,
    )
    how = Calibrating(gradients=gradients, batch_size=batch_size, seed=seed)
    find_device(device)
    if not targets:
        with joined(device) as (where, main):
            checkpoint = load_model(model, pretrained=pretrained)
            made, found = sparsify_checkpoint(checkpoint, dataset_for(checkpoint, data), request, how, where)
            if not main:
                return
            save_checkpoint(made, out_path)
        document = _document(out_path, found.mask.zeros, found.mask.total, found.mask.sparsities(), found.skipped)
        _tell([document], as_json)
        return
    wanted = _sweep(
        levels_for(targets, first, phases),
        targets, request, how, recipe, steps, epochs, tail_steps, tail_epochs, train_batch, seed, settings,
    )  # fmt: skip
    folder = run or out_path.with_suffix(".run")
    documents = []
    with joined(device) as (where, main):
        checkpoint = load_model(model, pretrained=pretrained)
        guide = None if teacher is None else load_model(teacher).model()
        dataset = dataset_for(checkpoint, data, auto_augment=wanted.recipe.auto_augment or None)
        total = (wanted.training(len(dataset.train)).steps or 0) * (1 if main else 0)
        with progress_bar("pruning and training", total) as show:
            for done in run_sweep(
                checkpoint, dataset, wanted, folder, teacher=guide, device=where,
                report=lambda _, report: show(report.step),
            ):  # fmt: skip
                if main and not done.resumed:
                    err.print(
                        f"phase {done.phase + 1} of {done.phases}: {done.sparsity:.1%} removed, loss {done.loss:.4f}",
                        highlight=False,
                    )
        for target, made in targets_of(folder, wanted, dataset, guide, device=where):
            if main:
                path = out_path.with_stem(f"{out_path.stem}-{100 * target:g}")
                save_checkpoint(made, path)
                assert made.masks is not None
                documents.append(_document(path, made.masks.zeros, made.masks.total, made.masks.sparsities(), ()))
    if main:
        _tell(documents, as_json)


def _sweep(
    levels: tuple[float, ...],
    targets: tuple[float, ...],
    request: Any,
    how: Any,
    recipe: str,
    steps: int | None,
    epochs: int | None,
    tail_steps: int | None,
    tail_epochs: int | None,
    train_batch: int | None,
    seed: int,
    settings: list[str] | None,
) -> "SweepRequest":
    from api.cli_train import recipe_of
    from api.sparsify_run import TAIL, SweepRequest

    given = {"batch_size": train_batch, "seed": seed}
    training = recipe_of(recipe, steps, epochs, given, settings or [])
    tail = None
    if tail_steps is not None or tail_epochs is not None:
        changes = [f"{name}={value if value is not None else 'null'}" for name, value in TAIL.items()]
        tail = recipe_of(recipe, tail_steps, tail_epochs, given, [*(settings or []), *changes])
    return SweepRequest(levels=levels, targets=targets, request=request, how=how, recipe=training, tail=tail)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--sweep takes sparsities as 0.5,0.75,0.9, got {text!r:.60}") from None


def _document(path: Path, zeros: int, total: int, by_layer: dict[str, float], skipped: Sequence[str]) -> dict[str, Any]:
    return {
        "path": str(path),
        "removed": zeros,
        "of": total,
        "sparsity": zeros / total,
        "by_layer": by_layer,
        "skipped": list(skipped),
    }


def _tell(documents: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(documents if len(documents) > 1 else documents[0])
        return
    for document in documents:
        layers = document["by_layer"].values()
        err.print(
            f"wrote {document['path']}: {document['removed']} of {document['of']} weights removed "
            f"({document['sparsity']:.2%}; by layer {min(layers):.1%} to {max(layers):.1%})",
            highlight=False,
        )
        for name in document["skipped"]:
            err.print(f"{name} kept all: its gradients are zero", highlight=False)
