"""Commands of the main line: compress, rebase."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from api.console import (
    BudgetMs,
    Criterion,
    Data,
    EqualBlocks,
    FixEmbedDim,
    JsonOption,
    Labels,
    Minimum,
    Multiple,
    Out,
    Pretrained,
    Protect,
    SearchTargets,
    Seed,
    Speedup,
    constraints_of,
    describe_blocks,
    err,
    open_library,
    out,
    print_json,
    remember_checkpoint,
    unit_of,
    with_interval,
)

if TYPE_CHECKING:
    from api.compress import Progress as OnProgress
    from api.compress_job import CompressResult

Images = Annotated[int, typer.Option("--images", min=1, help="Calibration images at most, of the training split.")]
AtOnce = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images at a time (default: by memory).")]
ModelArgument = Annotated[str, typer.Argument(help="Checkpoint or timm name.")]


@contextmanager
def _stages() -> Iterator["OnProgress"]:
    """A bar a stage on stderr."""
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        bars = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done)

        yield show


def rebase(
    model: ModelArgument,
    data: Data,
    out_path: Out,
    images: Images = 1024,
    batch_size: AtOnce = None,
    seed: Seed = 0,
    pretrained: Pretrained = False,
) -> None:
    """Write a model in its basis: the same function, channels sorted by what they carry on the data.

    Score it once with `vitfit saliency`; every `vitfit search` and `vitfit compress --saliency` is quick then.
    """
    from api.compress import images_at_once
    from api.compress_job import calibration_of, rebase_checkpoint
    from api.workflow import dataset_for, load_model
    from vit.checkpoint import save_checkpoint

    checkpoint = load_model(model, pretrained=pretrained)
    dataset = dataset_for(checkpoint, data)
    at_once = batch_size or images_at_once(checkpoint.arch)
    with _stages() as show:
        rebased = rebase_checkpoint(checkpoint, dataset, calibration_of(dataset, images, at_once, seed), show)
    save_checkpoint(rebased, out_path)
    for reason in rebased.lineage[-1]["skipped"]:
        err.print(f"note: {reason}", highlight=False)
    err.print(f"wrote {out_path}", highlight=False)


def compress(
    model: ModelArgument,
    data: Data,
    target: SearchTargets,
    out_path: Out,
    budget_ms: BudgetMs = None,
    speedup: Speedup = None,
    images: Images = 1024,
    multiple: Multiple = None,
    minimum: Minimum = None,
    fix_embed_dim: FixEmbedDim = None,
    equal_blocks: EqualBlocks = False,
    protect: Protect = None,
    criterion: Criterion = "gates",
    labels: Labels = "model",
    saliency: Annotated[
        Path | None, typer.Option("--saliency", "-s", help="Of MODEL, which `vitfit rebase` wrote.")
    ] = None,
    ridge: Annotated[float | None, typer.Option(help="Of the refit, over its inputs' mean second moment.")] = None,
    finetune: Annotated[int, typer.Option(min=0, help="Steps of a short distillation after the refit.")] = 0,
    exports: Annotated[bool, typer.Option(help="Also write ONNX and stand-alone PyTorch.")] = True,
    batch_size: AtOnce = None,
    seed: Seed = 0,
    pretrained: Pretrained = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a model to a latency budget without training: change its basis, score, choose, cut, refit.

    Several targets, each with its budget (-t A=2.5 -t B=9), are all met by one model.
    """
    from api.catalogue_sources import compressed_accuracy
    from api.compress_job import CompressRequest, run_compress
    from api.queries import budgets_of
    from recovery.refit import RIDGE

    budgets = budgets_of(target)
    if budgets is not None and (budget_ms is not None or speedup is not None):
        raise typer.BadParameter("each target has its own budget; leave --budget-ms and --speedup out")
    first, others = target[0], []
    if budgets is not None:
        (first, budget_ms), *others = budgets
    request = CompressRequest(
        model=model,
        data=data,
        target=first,
        budget_ms=budget_ms,
        speedup=speedup,
        also=tuple(others),
        images=images,
        batch_size=batch_size,
        seed=seed,
        criterion=criterion,
        labels=labels,
        saliency=None if saliency is None else str(saliency),
        constraints=constraints_of(multiple, minimum, fix_embed_dim, equal_blocks, protect),
        ridge=RIDGE if ridge is None else ridge,
        finetune=finetune,
        pretrained=pretrained,
    )
    with _stages() as show:
        result = run_compress(request, open_library(), out_path, progress=show, exports=exports)
    remember_checkpoint(out_path, [compressed_accuracy(result.report, seed)])
    if as_json:
        print_json(result.report)
    else:
        _print(result)


def _print(result: "CompressResult") -> None:
    report, choice = result.report, result.compressed.choice
    unit = unit_of(report["target"])
    before, after = report["before"], report["after"]
    timed = with_interval(f"{report['latency_ms']:.3f} {unit}", report["interval_ms"])
    gap = "" if choice.gap is None else f", at most {choice.gap:.3%} less than the best possible"
    how = "fine-tuned" if report["finetune"] else "without training"
    out.print(
        f"{timed} of {report['budget_ms']:.3f} on {report['target']} ({report['kind']}); "
        f"before {report['full_ms']:.3f}\n"
        f"keeps {choice.kept:.2%} of the saliency{gap}\n"
        f"accuracy {report['accuracy']['before']:.2%} -> {report['accuracy']['after']:.2%} on "
        f"{report['accuracy']['images']} held-out images, {how}\n"
        f"{before['params'] / 1e6:.2f} -> {after['params'] / 1e6:.2f} M parameters, "
        f"{before['macs'] / 1e9:.3f} -> {after['macs'] / 1e9:.3f} G MACs, EMB {choice.arch.embed_dim}\n"
        f"{describe_blocks(choice.arch)}",
        highlight=False,
    )
    for other in report["also"]:
        ms = with_interval(f"{other['latency_ms']:.3f} {unit_of(other['target'])}", other["interval_ms"])
        out.print(f"{ms} of {other['budget_ms']:.3f} on {other['target']} ({other['kind']})", highlight=False)
    for row in report["measured"] or ():
        out.print(
            f"measured {row['model']}: {row['measured_ms']:.3f} ms ±{row['iqr_ms']:.3f}, "
            f"predicted {row['predicted_ms']:.3f} ({row['error']:+.1%})",
            highlight=False,
        )
    for note in (*report["notes"], *report["skipped"], *report["warnings"]):
        err.print(f"note: {note}", highlight=False)
    err.print(f"wrote {', '.join(report['files'].values())}", highlight=False)
