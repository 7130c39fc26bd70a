"""Commands that make a latency table of this machine, and tell whether it is true."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.console import (
    Batch,
    DeviceName,
    Dtype,
    JsonOption,
    Runtime,
    Seed,
    Threads,
    open_library,
    out,
    print_json,
    print_table,
    progress_bar,
)
from vit.errors import UnknownNameError

if TYPE_CHECKING:
    from latency.grid import Grid
    from latency.table import LatencyTable
    from latency.validation import Validation

DEFAULT_ARCH, DEFAULT_GRID = "deit-b", "vitfit"
AUTO = "auto"
MODELS, BLOCKS, ROUNDS = 20, 40, 3
"""What is measured to validate a table."""


def profile(
    arch: Annotated[
        str | None,
        typer.Argument(help="Cover everything that can be cut out of this architecture, with its image and norm."),
    ] = None,
    runtime: Runtime = "eager",
    dtype: Dtype = "fp32",
    batch: Batch = 1,
    device: DeviceName = "cpu",
    threads: Threads = 1,
    grid: Annotated[
        str | None,
        typer.Option(help="vitfit, nvit, or a JSON file (default: vitfit, or what the architecture needs)."),
    ] = None,
    points: Annotated[
        str | None,
        typer.Option(help="Time so many points and model the rest; auto: as many as the error needs (default: all)."),
    ] = None,
    error: Annotated[float, typer.Option(help="Mean held-out error at which --points auto stops.")] = 0.03,
    rounds: Annotated[int, typer.Option(min=1, help="Visits of every point.")] = 3,
    seed: Seed = 0,
    then_validate: Annotated[
        int, typer.Option("--validate", min=0, metavar="N", help="Then measure N models and 2 N blocks against it.")
    ] = 0,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Time on the nodes of this Ray cluster that offer the device of --on."),
    ] = None,
    on: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="With --ray: the nodes' device, as amd-epyc-1t.")
    ] = None,
    out_path: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the library.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a latency table, on this machine or on a cluster; a killed run continues where it was."""
    if (ray is None) != (on is None):
        raise typer.BadParameter("--ray ADDRESS and --on DEVICE go together: where the nodes are, and which of them")
    if on is not None and (device, threads) != ("cpu", 1):
        raise typer.BadParameter("--device and --threads are of this machine; of a cluster's nodes, --on tells both")
    from api.profiling import profile_plan, run_profile, run_profile_on_cluster
    from api.queries import resolve_architecture
    from latency.runtimes import Device, find_device
    from latency.storage import load_table

    timed_on: Device | str
    if ray is not None and on is not None:
        timed_on, run = on, partial(run_profile_on_cluster, address=ray)
    else:
        timed_on = find_device(device, threads)
        run = partial(run_profile, device=timed_on)
    plan = profile_plan(
        resolve_architecture(arch or DEFAULT_ARCH),
        timed_on,
        runtime=runtime,
        dtype=dtype,
        batch=batch,
        grid=_grid(grid or (None if arch else DEFAULT_GRID)),
        points=_points(points),
        error=error if points == AUTO else None,
        rounds=rounds,
        seed=seed,
    )
    path = out_path or open_library().root / "tables" / f"{plan.target.slug}.parquet"
    with progress_bar(f"profiling {plan.target.slug}", plan.visits) as show:
        for step in run(plan, out=path):
            show(step.done)
    table = load_table(path)
    document = {"target": table.target.slug, "path": str(path), "provenance": table.provenance.to_dict()}
    if not as_json:
        out.print(_summary(table, path), highlight=False, soft_wrap=True)
    if then_validate:
        result = _validated(table, then_validate, 2 * then_validate, ROUNDS, seed)
        document["validation"] = asdict(result)
        if not as_json:
            _print_validation(result, table)
    elif not as_json:
        out.print(f"how far whole models are off: vitfit table validate {path}", highlight=False, soft_wrap=True)
    if as_json:
        print_json(document)


def _summary(table: "LatencyTable", path: Path) -> str:
    quality = table.provenance.quality
    timed = f"{quality['timed_points']:.0f} of {len(table.grid)} block shapes timed"
    spread, unstable = quality["median_relative_iqr"], quality["unstable_points_share"]
    disturbed, drift = quality["disturbed_samples_share"], quality["drift_p95_over_p05"]
    lines = [
        f"{table.target.slug} ({table.kind}): {timed}, in {path}",
        f"typical spread {spread:.1%}, unstable points {unstable:.1%}, disturbed samples {disturbed:.1%}, "
        f"drift p95/p05 {drift:.2f}",
    ]
    if (interval := table.provenance.interval) is not None:
        lines.append(
            f"points that were held out: mean error {quality['heldout_mape']:.1%}, p95 {quality['heldout_p95']:.1%}, "
            f"nine in ten between {interval[0]:.3f} and {interval[1]:.3f} times the table"
        )
    return "\n".join(lines)


def validate(
    table: Annotated[str, typer.Argument(help="Slug in the library, or a .parquet table, of this machine.")],
    models: Annotated[int, typer.Option(min=0, help="Random whole models to measure.")] = MODELS,
    blocks: Annotated[int, typer.Option(min=0, help="Random blocks off the grid to measure.")] = BLOCKS,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each, in each of two passes.")] = ROUNDS,
    seed: Seed = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure random models and blocks here, against what a table says of them, beside the noise of measuring twice."""
    from latency.storage import load_table

    found = load_table(Path(table)) if table.endswith(".parquet") else open_library().table(table)
    result = _validated(found, models, blocks, rounds, seed)
    if as_json:
        print_json(asdict(result) | {"kind": found.kind, "provenance": found.provenance.to_dict()})
    else:
        _print_validation(result, found)


def _validated(table: "LatencyTable", models: int, blocks: int, rounds: int, seed: int) -> "Validation":
    from latency.runtimes import device_of
    from latency.validation import validate as measure

    here = device_of(table.target)
    with progress_bar(f"validating {table.target.slug}", 2 * rounds * (models + blocks)) as show:
        for step in measure(table, here, models=models, blocks=blocks, rounds=rounds, seed=seed):
            show(step.done)
    assert step.result is not None
    return step.result


def _print_validation(result: "Validation", table: "LatencyTable") -> None:
    accuracies = {
        "models": result.models,
        "models, drift divided out": result.models_steady,
        "models, measured twice": result.models_floor,
        "blocks": result.blocks,
        "blocks, drift divided out": result.blocks_steady,
        "blocks, measured twice": result.blocks_floor,
    }
    rows = [
        (
            what,
            a.count,
            *(f"{100 * e:.1f}" for e in (a.mape, a.median, a.p95, a.worst, a.bias)),
            "" if a.rank_correlation is None else f"{a.rank_correlation:.4f}",
        )
        for what, a in accuracies.items()
        if a is not None
    ]
    columns = ("error in %", "n", "MAPE", "median", "p95", "worst", "bias", "rank")
    print_table(f"{result.target} ({table.kind}, made {table.provenance.created_at})", columns, rows)
    if result.drift is not None:
        out.print(
            f"The machine takes {result.drift:.3f} times as long for the reference block as when the table was made.",
            highlight=False,
            soft_wrap=True,
        )


def _points(given: str | None) -> int | None:
    """
    Raises:
        UnknownNameError: neither a number nor `auto`.
    """
    if given is None or given == AUTO:
        return None
    if not given.isdecimal():
        raise UnknownNameError("points", given, (AUTO, "a whole number"))
    return int(given)


def _grid(name: str | None) -> "Grid | None":
    """A grid by name or from a JSON file; None: to be derived from the architecture."""
    from latency.errors import TableError
    from latency.grid import GRIDS, Grid

    if name is None or name in GRIDS:
        return None if name is None else GRIDS[name]
    path = Path(name)
    if path.suffix != ".json":
        raise UnknownNameError("grid", name, (*GRIDS, "a .json file"))
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TableError(f"{path} is no grid: {error}") from None
    return Grid.from_dict(document)
