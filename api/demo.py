"""The main job on this machine, end to end: train, profile, compress to latency budgets, compare, measure, report.

Every step leaves a file in the demo's folder and is skipped when that file is there, so a second run goes on where the
first one stopped. Nothing is downloaded: the images are scikit-learn's digits.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from api.demo_models import GATES, Bar, DemoModel, compressed, cut_and_finetuned, exported, scored, timm_model, trained
from api.demo_plan import DemoError, DemoPlan, claim
from api.demo_table import DemoRow
from api.library import Library
from api.network import running_service
from api.profiling import profile_plan, run_profile
from api.report import ReportData, write_report
from api.workflow import evaluate
from latency.estimate import estimate
from latency.grid import grid_below
from latency.runtimes import find_device
from latency.storage import load_table
from latency.table import LatencyTable
from recovery.data import Dataset, load_dataset
from search.constraints import Constraints
from search.saliency import Saliency
from vit.architecture import Architecture
from vit.checkpoint import Checkpoint
from vit.cost import macs, params
from vit.files import write_text
from vit.timm_models import architecture_of


def run_demo(folder: Path, plan: DemoPlan, console: Console) -> list[DemoRow]:
    """Do it all, or what is left of it; returns the result table, the uncut model first.

    Raises:
        DemoError: the folder holds a demo of another plan.
    """
    import torch

    started = time.perf_counter()
    claim(folder, plan)
    data = load_dataset("digits")
    # A model this small gains little from more threads, and loses much where they wait for a core that others use.
    torch.set_num_threads(1)
    with _bars(console) as bar:
        table = _profile(folder, plan, architecture_of(timm_model(plan, data)), bar)
        dense = trained(folder, plan, data, bar)
        saliency = scored(folder, plan, dense, data, bar)
        ours = compressed(folder, plan, dense, table, bar)
        others = cut_and_finetuned(folder, plan, dense, data, table, bar)
        rows = _measure(folder, dense, _by_budget(ours + others), data, table, bar)
        onnx = exported(folder, ours, bar)
    document = {"rows": [asdict(row) for row in rows], "onnx_difference": onnx}
    write_text(folder / "results.json", json.dumps(document, indent=2) + "\n")
    write_report(folder / "report.html", _report(folder, plan, data, table, saliency, rows))
    answer = _ask_service(folder, table, rows, console)
    write_text(folder / "service-answer.json", json.dumps(answer, indent=2) + "\n")
    console.print(
        f"\nAll in {folder.resolve()} after {time.perf_counter() - started:.0f} s: checkpoints, "
        f"{', '.join(sorted(onnx))} (agree with PyTorch in ONNX Runtime to "
        f"{max(onnx.values()):.0e} of the largest logit), report.html, {ours[0].name}.report.html and so on, "
        "results.json",
        highlight=False,
        soft_wrap=True,
    )
    return rows


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


def _by_budget(models: list[DemoModel]) -> list[DemoModel]:
    """The largest budget first, the main line before what it is compared with."""
    return sorted(models, key=lambda model: -model.budget)


def _measure(
    folder: Path, dense: Checkpoint, models: list[DemoModel], data: Dataset, table: LatencyTable, bar: Bar
) -> list[DemoRow]:
    """Measured anew in every run, all models interleaved, in a process of its own: this is what the promise is
    checked against, and a process that has trained runs the same models slower."""
    show = bar("measure the models", 1)
    names = ["dense", *(model.name for model in models)]
    target = table.target
    command = [sys.executable, "-m", "api.cli", "measure", *(str(folder / f"{name}.safetensors") for name in names)]
    command += ["--table", str(folder / "tables" / f"{target.slug}.parquet"), "--batch", str(target.batch), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode != 0:
        raise DemoError(f"measuring failed: {result.stderr.strip()}")
    measured = json.loads(result.stdout)
    full_ms = estimate(table, dense.arch).latency_ms
    rows = [_row("dense", dense.arch, measured[0], accuracy_trained=evaluate(dense, data))]
    for model, timed in zip(models, measured[1:], strict=True):
        rows.append(
            _row(
                model.name,
                model.result.arch,
                timed,
                method=model.method,
                budget=model.budget,
                budget_ms=model.budget * full_ms,
                accuracy_untrained=evaluate(model.untrained, data),
                accuracy_trained=None if model.trained is None else evaluate(model.trained, data),
            )
        )
    show(1)
    return rows


def _row(
    name: str,
    arch: Architecture,
    timed: dict[str, Any],
    *,
    method: str | None = None,
    budget: float | None = None,
    budget_ms: float | None = None,
    accuracy_untrained: float | None = None,
    accuracy_trained: float | None = None,
) -> DemoRow:
    return DemoRow(
        name=name,
        method=method,
        budget=budget,
        budget_ms=budget_ms,
        predicted_ms=timed["predicted_ms"],
        measured_ms=timed["measured_ms"],
        iqr_ms=timed["iqr_ms"],
        error=timed["error"],
        drift=timed["drift"],
        params=params(arch),
        macs=macs(arch),
        accuracy_untrained=accuracy_untrained,
        accuracy_trained=accuracy_trained,
        architecture=arch.to_dict(),
    )


def _report(
    folder: Path, plan: DemoPlan, data: Dataset, table: LatencyTable, saliency: Saliency, rows: list[DemoRow]
) -> ReportData:
    frontier = Library(folder).frontier_of(saliency, table, Constraints())
    budgets = np.linspace(frontier.smallest_ms, frontier.full_ms, 41).tolist()
    curve = [(choice.latency_ms, choice.kept) for choice in (frontier.best(budget) for budget in budgets)]
    return ReportData(
        title="vitfit demo: a Vision Transformer on digits, fitted to latency budgets",
        data=f"{data.name} ({len(data.test)} held-out images)",
        finetune_steps=plan.finetune_steps,
        table=table,
        rows=[asdict(row) for row in rows],
        frontier=curve,
    )


def _ask_service(folder: Path, table: LatencyTable, rows: list[DemoRow], console: Console) -> dict[str, Any]:
    """The same question, asked of the REST service over a socket."""
    row = rows[1]
    question = {"saliency": GATES, "target": table.target.slug, "budget_ms": row.budget_ms}
    with running_service(folder) as url:
        response = httpx.post(f"{url}/v1/architectures/search", json=question, timeout=60)
        # The second answer comes from the stored frontier: that is what a user waits for.
        started = time.perf_counter()
        httpx.post(f"{url}/v1/architectures/search", json=question, timeout=60)
        elapsed = 1e3 * (time.perf_counter() - started)
    answer: dict[str, Any] = response.json()
    if response.status_code != 200:
        raise DemoError(f"the service answered {response.status_code}: {answer.get('detail', answer)}")
    same = sizes_of(answer["architecture"]) == sizes_of(row.architecture)
    console.print(
        f"\nPOST {url}/v1/architectures/search {json.dumps(question)}\n"
        f"-> {answer['id']}: {answer['latency_ms']:.2f} ms of {answer['budget_ms']:.2f}, "
        f"keeps {answer['kept']:.2%} of the saliency (bound {answer['bound']:.2%}), "
        f"{f'the sizes of {row.name}' if same else f'OTHER sizes than {row.name}'}; "
        f"asked again: {elapsed:.0f} ms over the socket",
        highlight=False,
        soft_wrap=True,
    )
    if not same:
        raise DemoError(f"the service's answer differs from {row.name}")
    return answer


def sizes_of(architecture: dict[str, Any]) -> tuple[Any, ...]:
    """All that a search chooses. The rest differs: compress gives LayerNorm back after the model in its basis, which
    has RMS norms, was cut to what the search answered."""
    return architecture["embed_dim"], architecture["blocks"]
