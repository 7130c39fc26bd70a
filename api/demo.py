"""The main job on this machine, end to end: train, profile, score, cut to a latency budget, recover, measure, report.

Every step leaves a file in the demo's folder and is skipped when that file is there, so a second run goes on where the
first one stopped. Nothing is downloaded: the images are scikit-learn's digits.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from api.demo_table import DemoRow
from api.network import running_service
from api.report import ReportData, write_report
from api.workflow import (
    evaluate,
    profile_plan,
    prune_checkpoint,
    pruned_checkpoint,
    run_profile,
    saliency_of,
    trained_checkpoint,
)
from latency.estimate import estimate
from latency.grid import grid_below
from latency.runtimes import find_device
from latency.storage import load_table
from latency.table import LatencyTable
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, finetune
from search.frontier import Frontier
from search.saliency import Saliency, load_saliency, save_saliency
from vit.architecture import Architecture
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.cost import macs, params
from vit.errors import VitfitError
from vit.export import export_onnx
from vit.files import write_text
from vit.timm_models import architecture_of, from_timm


class DemoError(VitfitError, ValueError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """Sizes of the demo.

    Attributes:
        embed_dim, depth, num_heads: of the model.
        train_steps, finetune_steps: optimiser steps.
        batch: images at a time in the latency target.
        planes: sizes per axis of the latency table.
        rounds: visits of every point of the table.
        budgets: shares of the whole model's latency.
        criteria: the first one is the method, the others are for comparison.
    """

    embed_dim: int = 128
    depth: int = 6
    num_heads: int = 4
    train_steps: int = 700
    finetune_steps: int = 100
    batch: int = 64
    planes: tuple[int, ...] = (5, 4, 3, 3, 5)
    rounds: int = 3
    budgets: tuple[float, ...] = (0.6, 0.45)
    criteria: tuple[str, ...] = ("fisher", "nvit", "magnitude", "random")


FULL = DemoPlan()
QUICK = DemoPlan(
    embed_dim=48,
    depth=2,
    num_heads=2,
    train_steps=60,
    finetune_steps=20,
    batch=32,
    planes=(2, 2, 2, 2, 2),
    rounds=2,
    criteria=("fisher", "magnitude"),
)


def run_demo(folder: Path, plan: DemoPlan, console: Console) -> list[DemoRow]:
    """Do it all, or what is left of it; returns the result table, the uncut model first.

    Raises:
        DemoError: the folder holds a demo of another plan.
    """
    started = time.perf_counter()
    _claim(folder, plan)
    data = load_dataset("digits")
    with _bars(console) as bar:
        table = _profile(folder, plan, _architecture(plan, data), bar)
        dense = _train(folder, plan, data, bar)
        saliencies = _score(folder, plan, dense, data, bar)
        cuts = _cut(folder, plan, dense, data, table, saliencies, bar)
        rows = _measure(folder, dense, cuts, data, table, bar)
        onnx = _export(folder, plan, cuts, bar)
    document = {"rows": [asdict(row) for row in rows], "onnx_difference": onnx}
    write_text(folder / "results.json", json.dumps(document, indent=2) + "\n")
    write_report(folder / "report.html", _report(plan, data, table, saliencies, rows))
    answer = _ask_service(folder, plan, table, rows, console)
    write_text(folder / "service-answer.json", json.dumps(answer, indent=2) + "\n")
    console.print(
        f"\nAll in {folder.resolve()} after {time.perf_counter() - started:.0f} s: checkpoints, "
        f"{', '.join(sorted(onnx))} (agree with PyTorch in ONNX Runtime to "
        f"{max(onnx.values()):.0e} of the largest logit), report.html, results.json",
        highlight=False,
        soft_wrap=True,
    )
    return rows


def _claim(folder: Path, plan: DemoPlan) -> None:
    document = json.loads(json.dumps(asdict(plan)))
    path = folder / "plan.json"
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != document:
            raise DemoError(f"{folder} holds a demo of another size; choose another --out, or delete the folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise DemoError(f"{folder} is not empty and holds no demo; choose another --out")
    write_text(path, json.dumps(document, indent=2) + "\n")


Bar = Callable[[str, int], Callable[[int], None]]


@contextmanager
def _bars(console: Console) -> Iterator[Bar]:
    """A line a step: what it does, a bar, the count and the time to finish."""
    columns = (
        TextColumn("{task.description:<46}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:

        def start(description: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(description, total=total)
            return lambda done: progress.update(task, completed=done)

        yield start


def _architecture(plan: DemoPlan, data: Dataset) -> Architecture:
    return architecture_of(_timm_model(plan, data))


def _timm_model(plan: DemoPlan, data: Dataset) -> Any:
    import torch
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    torch.manual_seed(0)
    return TimmVisionTransformer(
        img_size=data.image_size,
        patch_size=4,
        in_chans=data.in_chans,
        num_classes=data.num_classes,
        embed_dim=plan.embed_dim,
        depth=plan.depth,
        num_heads=plan.num_heads,
        weight_init="moco",  # wider than timm's default: learns these few images in half the steps
    )


def _train(folder: Path, plan: DemoPlan, data: Dataset, bar: Bar) -> Checkpoint:
    """A timm VisionTransformer, trained on digits; the trained weights are those of timm's model, too."""
    path = folder / "dense.safetensors"
    show = bar("train a timm VisionTransformer on digits", plan.train_steps)
    if not path.exists():
        theirs = _timm_model(plan, data)
        model = from_timm(theirs)
        recipe = Recipe(steps=plan.train_steps, lr=1.5e-3, warmup=50, distillation=0.0, report_every=10)
        for report in finetune(model, data, recipe):
            show(report.step)
        theirs.load_state_dict(model.state_dict())
        _same_outputs(theirs.eval(), model, data)
        start = Checkpoint.of(model, ({"step": "import", "timm": "VisionTransformer"},))
        save_checkpoint(trained_checkpoint(model, start, recipe, data), path)
    show(plan.train_steps)
    return load_checkpoint(path)


def _same_outputs(theirs: Any, ours: Any, data: Dataset) -> None:
    import torch

    images, _ = next(iter(data.test.ordered(100)))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def _profile(folder: Path, plan: DemoPlan, arch: Architecture, bar: Bar) -> LatencyTable:
    device = find_device("cpu", threads=1)
    grid = grid_below(arch, planes=plan.planes)
    todo = profile_plan(arch, device, batch=plan.batch, grid=grid, rounds=plan.rounds)
    path = folder / "tables" / f"{todo.target.slug}.parquet"
    show = bar(f"profile this CPU, {len(grid)} block shapes", todo.visits)
    if not path.exists():
        for progress in run_profile(todo, device, path):
            show(progress.done)
    show(todo.visits)
    return load_table(path, expect=todo.target)


def _score(folder: Path, plan: DemoPlan, dense: Checkpoint, data: Dataset, bar: Bar) -> dict[str, Saliency]:
    show = bar("score every unit, by criterion", len(plan.criteria))
    found = {}
    for done, criterion in enumerate(plan.criteria, start=1):
        path = folder / "saliencies" / f"{criterion}.safetensors"
        if not path.exists():
            save_saliency(saliency_of(dense, data, criterion), path)
        found[criterion] = load_saliency(path)
        show(done)
    return found


@dataclass(frozen=True, eq=False)
class _Cut:
    name: str
    criterion: str
    budget: float
    cut: Checkpoint
    recovered: Checkpoint


def _cut(
    folder: Path,
    plan: DemoPlan,
    dense: Checkpoint,
    data: Dataset,
    table: LatencyTable,
    saliencies: dict[str, Saliency],
    bar: Bar,
) -> list[_Cut]:
    full_ms = estimate(table, dense.arch).latency_ms
    wanted = [(budget, criterion) for budget in plan.budgets for criterion in plan.criteria]
    show = bar("cut to the budgets and fine-tune, steps", len(wanted) * plan.finetune_steps)
    cuts = []
    for index, (budget, criterion) in enumerate(wanted):
        name = f"{criterion}-{budget * 100:.0f}"
        cut_path, recovered_path = folder / f"{name}-cut.safetensors", folder / f"{name}.safetensors"
        if not cut_path.exists():
            (step,) = prune_checkpoint(
                dense, data, table, budget * full_ms, criterion=criterion, first=saliencies[criterion]
            )
            save_checkpoint(pruned_checkpoint(dense, step, data), cut_path)
        cut = load_checkpoint(cut_path)
        if not recovered_path.exists():
            recipe = Recipe(steps=plan.finetune_steps, lr=5e-4, warmup=10, report_every=10, seed=1)
            model = cut.model()
            for report in finetune(model, data, recipe, dense.model()):
                show(index * plan.finetune_steps + report.step)
            save_checkpoint(trained_checkpoint(model, cut, recipe, data, dense), recovered_path)
        show((index + 1) * plan.finetune_steps)
        cuts.append(_Cut(name, criterion, budget, cut, load_checkpoint(recovered_path)))
    return cuts


def _measure(
    folder: Path, dense: Checkpoint, cuts: list[_Cut], data: Dataset, table: LatencyTable, bar: Bar
) -> list[DemoRow]:
    """Measured anew in every run, all models interleaved, in a process of its own: this is what the promise is
    checked against, and a process that has trained runs the same models slower."""
    show = bar("measure the models", 1)
    names = ["dense", *(cut.name for cut in cuts)]
    target = table.target
    command = [sys.executable, "-m", "api.cli", "measure", *(str(folder / f"{name}.safetensors") for name in names)]
    command += ["--table", str(folder / "tables" / f"{target.slug}.parquet"), "--batch", str(target.batch), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode != 0:
        raise DemoError(f"measuring failed: {result.stderr.strip()}")
    measured = json.loads(result.stdout)
    full_ms = estimate(table, dense.arch).latency_ms
    rows = [_row("dense", dense.arch, measured[0], accuracy=evaluate(dense, data))]
    for cut, timed in zip(cuts, measured[1:], strict=True):
        rows.append(
            _row(
                cut.name,
                cut.recovered.arch,
                timed,
                criterion=cut.criterion,
                budget=cut.budget,
                budget_ms=cut.budget * full_ms,
                accuracy_cut=evaluate(cut.cut, data),
                accuracy=evaluate(cut.recovered, data),
            )
        )
    show(1)
    return rows


def _row(
    name: str,
    arch: Architecture,
    timed: dict[str, Any],
    *,
    accuracy: float,
    criterion: str | None = None,
    budget: float | None = None,
    budget_ms: float | None = None,
    accuracy_cut: float | None = None,
) -> DemoRow:
    return DemoRow(
        name=name,
        criterion=criterion,
        budget=budget,
        budget_ms=budget_ms,
        predicted_ms=timed["predicted_ms"],
        measured_ms=timed["measured_ms"],
        iqr_ms=timed["iqr_ms"],
        error=timed["error"],
        drift=timed["drift"],
        params=params(arch),
        macs=macs(arch),
        accuracy_cut=accuracy_cut,
        accuracy=accuracy,
        architecture=arch.to_dict(),
    )


def _export(folder: Path, plan: DemoPlan, cuts: list[_Cut], bar: Bar) -> dict[str, float]:
    """ONNX of our method's models; largest difference to PyTorch by file name."""
    ours = [cut for cut in cuts if cut.criterion == plan.criteria[0]]
    show = bar("export to ONNX and compare in ONNX Runtime", len(ours))
    differences = {}
    for done, cut in enumerate(ours, start=1):
        path, note = folder / f"{cut.name}.onnx", folder / f"{cut.name}.onnx.json"
        if not (path.exists() and note.exists()):
            write_text(note, json.dumps({"difference": export_onnx(cut.recovered, path)}))
        differences[path.name] = float(json.loads(note.read_text(encoding="utf-8"))["difference"])
        show(done)
    return differences


def _report(
    plan: DemoPlan, data: Dataset, table: LatencyTable, saliencies: dict[str, Saliency], rows: list[DemoRow]
) -> ReportData:
    frontier = Frontier(saliencies[plan.criteria[0]], table)
    budgets = np.linspace(frontier.smallest_ms, frontier.full_ms, 41).tolist()
    curve = [(choice.latency_ms, choice.kept) for choice in (frontier.best(budget) for budget in budgets)]
    return ReportData(
        title="vitfit demo: a Vision Transformer on digits, cut to a latency budget",
        data=f"{data.name} ({len(data.test)} held-out images)",
        method=plan.criteria[0],
        table=table,
        rows=[asdict(row) for row in rows],
        frontier=curve,
    )


def _ask_service(
    folder: Path, plan: DemoPlan, table: LatencyTable, rows: list[DemoRow], console: Console
) -> dict[str, Any]:
    """The same question, asked of the REST service over a socket."""
    row = rows[1]
    question = {"saliency": plan.criteria[0], "target": table.target.slug, "budget_ms": row.budget_ms}
    with running_service(folder) as url:
        response = httpx.post(f"{url}/v1/architectures/search", json=question, timeout=60)
        # The second answer comes from the stored frontier: that is what a user waits for.
        started = time.perf_counter()
        httpx.post(f"{url}/v1/architectures/search", json=question, timeout=60)
        elapsed = 1e3 * (time.perf_counter() - started)
    answer: dict[str, Any] = response.json()
    if response.status_code != 200:
        raise DemoError(f"the service answered {response.status_code}: {answer.get('detail', answer)}")
    same = answer["architecture"] == row.architecture
    console.print(
        f"\nPOST {url}/v1/architectures/search {json.dumps(question)}\n"
        f"-> {answer['id']}: {answer['latency_ms']:.2f} ms of {answer['budget_ms']:.2f}, "
        f"keeps {answer['kept']:.2%} of the saliency (bound {answer['bound']:.2%}), "
        f"{'the same architecture as above' if same else 'ANOTHER architecture than above'}; "
        f"asked again: {elapsed:.0f} ms over the socket",
        highlight=False,
        soft_wrap=True,
    )
    if not same:
        raise DemoError("the service's answer differs from the model that was cut")
    return answer
