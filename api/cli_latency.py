"""Commands about latency: estimate, measure, targets."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from api import cli_remote
from api.console import (
    Batch,
    DeviceName,
    Dtype,
    JsonOption,
    Runtime,
    Server,
    Targets,
    Threads,
    err,
    open_library,
    out,
    print_json,
    print_table,
    unit_of,
    with_interval,
)
from vit.cost import macs, params
from vit.groups import groups


def targets(server: Server = None, as_json: JsonOption = False) -> None:
    """List the targets that there are tables of: the library's, and those that come with vitfit."""
    if server is not None:
        cli_remote.targets(server, as_json)
        return
    library = open_library()
    entries = library.targets()
    if as_json:
        print_json([entry.to_dict() for entry in entries])
        return
    rows = [
        (
            entry.slug,
            entry.kind,
            _multiples(entry.interval),
            ("shipped" if entry.shipped else entry.file) + (f": {entry.error}" if entry.error else ""),
        )
        for entry in entries
    ]
    columns = ("target", "kind", "interval", "from")
    print_table(f"targets in {library.root} (and the analytic target macs)", columns, rows)
    if library.devices:
        devices = ", ".join(library.devices)
        err.print(f"note: modelled devices answer at any -b<batch>-n<tokens>: {devices}", highlight=False)


def _multiples(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def estimate(
    archs: Annotated[list[str], typer.Argument(metavar="ARCH...", help="Preset, timm name, JSON or checkpoint.")],
    target: Targets,
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Model what lies beyond a table's grid.")] = False,
    components: Annotated[
        bool, typer.Option("--components", help="What attention, MLP and the rest of each block take, too.")
    ] = False,
    server: Server = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the latency of architectures on one or several targets, with its evidence (by block with --json)."""
    if server is not None:
        if extrapolate:
            raise typer.BadParameter("a service does not extrapolate; leave --extrapolate or --server out")
        documents = cli_remote.estimates(server, archs, target, components)
    else:
        documents = _estimates(archs, target, extrapolate, components)
    if as_json:
        print_json(documents)
    else:
        _print_estimates(documents)
        if components:
            _print_components(documents)


def _estimates(
    archs: Sequence[str], target: Sequence[str], extrapolate: bool, components: bool
) -> list[dict[str, Any]]:
    from api.queries import resolve_architecture, resolve_target
    from latency.estimate import estimate_many, saving_ms
    from latency.extrapolate import Extrapolated
    from latency.table import LatencyTable

    library = open_library()
    documents: list[dict[str, Any]] = []
    for name in archs:
        arch = resolve_architecture(name)
        for slug in target:
            latency = resolve_target(slug, arch, library)
            if extrapolate and isinstance(latency, LatencyTable):
                latency = Extrapolated(latency)
            (result,) = estimate_many(latency, [arch], components=components)
            parts = None if result.components is None else result.components.to_dict()
            documents.append(
                {
                    "architecture": name,
                    "id": arch.id,
                    "target": latency.target.slug,
                    "kind": result.kind,
                    "latency_ms": result.latency_ms,
                    "interval_ms": result.interval_ms,
                    "block_ms": list(result.block_ms),
                    "outside_ms": result.outside_ms,
                    "params": params(arch),
                    "macs": macs(arch),
                    "provenance": latency.provenance.to_dict(),
                    "saving_ms": {str(group): saving_ms(latency, arch, group) for group in groups(arch)},
                    "notes": list(result.notes),
                    **({"components": parts} if components else {}),
                }
            )
    return documents


def _print_estimates(documents: list[dict[str, Any]]) -> None:
    """A row per architecture and target; above them what each target's numbers rest on; notes on stderr.

    A comparison of targets leaves out what is the architecture's alone.
    """
    evidence = {d["target"]: f"{d['target']}: {d['kind']}, {d['provenance']['method']}" for d in documents}
    columns: tuple[str, ...] = ("architecture", "latency", "outside blocks", "params", "MACs")
    rows: list[tuple[str, ...]] = [
        (
            d["architecture"],
            with_interval(f"{d['latency_ms']:.3f} {unit_of(d['target'])}", d["interval_ms"]),
            f"{d['outside_ms']:.3f}",
            f"{d['params'] / 1e6:.2f} M",
            f"{d['macs'] / 1e9:.3f} G",
        )
        for d in documents
    ]
    if len(evidence) > 1:
        columns = ("target", *columns[:2])
        rows = [(d["target"], *row[:2]) for d, row in zip(documents, rows, strict=True)]
    print_table("\n".join(evidence.values()), columns, rows)
    for document in documents:
        for note in document["notes"]:
            err.print(f"note: {document['architecture']} on {document['target']}: {note}", highlight=False)


_PARTS = {
    "qk_ms": "Q and K",
    "v_ms": "V, proj",
    "products_ms": "attention",
    "attn_ms": "attention branch",
    "mlp_ms": "MLP",
    "rest_ms": "rest",
}


def _print_components(documents: list[dict[str, Any]]) -> None:
    """A table for each architecture and target: a row per block, or per run of equal ones."""
    for document in documents:
        said, parts = f"{document['architecture']} on {document['target']}", document["components"]
        if parts is None:
            err.print(f"note: {said}: this table has no two sizes of MLP, or of H, QK or V, to tell parts by")
            continue
        shown = [name for name in _PARTS if parts[name] is not None]
        if "qk_ms" in shown:
            shown.remove("attn_ms")  # their sum
        times = zip(*(parts[name] for name in shown), document["block_ms"], strict=True)
        rows, first = [], 0
        for found, run in groupby(tuple(f"{ms:.3f}" for ms in one) for one in times):
            last = first + len(list(run)) - 1
            rows.append((str(first) if first == last else f"{first} to {last}", *found))
            first = last + 1
        columns = ("block", *(_PARTS[name] for name in shown), "whole block")
        print_table(f"{said}, {unit_of(document['target'])} by component: {parts['method']}", columns, rows)


def measure(
    archs: Annotated[list[str], typer.Argument(metavar="ARCH...", help="Preset, timm name, JSON or checkpoint.")],
    runtime: Runtime = "eager",
    dtype: Dtype = "fp32",
    batch: Batch = 1,
    device: DeviceName = "cpu",
    threads: Threads = 1,
    table: Annotated[Path | None, typer.Option(help="Table to compare with (default: the library's).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time whole models here, beside what the table predicts.

    A checkpoint with masks is also timed in every way that this machine has, dense and sparse: is it faster?
    """
    from api.profiling import measure as time_models
    from api.queries import resolve_architecture
    from latency.runtimes import find_device, local_target
    from latency.sparse_run import measure_sparse
    from latency.storage import load_table
    from vit.checkpoint import load_checkpoint
    from vit.checkpoint_header import read_header

    here = find_device(device, threads)
    resolved = [resolve_architecture(name) for name in archs]
    if len({arch.tokens for arch in resolved}) > 1:
        raise typer.BadParameter("architectures of different token counts belong to different targets")
    target = local_target(here, runtime, dtype, batch, resolved[0].tokens)
    library = open_library()
    known = {entry.slug for entry in library.targets() if entry.error is None}
    found = None
    if table is not None:
        found = load_table(table, expect=target)
    elif target.slug in known:
        found = library.table(target.slug)
    headers = [read_header(Path(name)) if name.endswith(".safetensors") else None for name in archs]
    results = time_models(
        resolved, here, target, found, plans=[None if header is None else header.tokens for header in headers]
    )
    sparse = {
        name: measure_sparse(load_checkpoint(Path(name)), here, batch)
        for name, header in zip(archs, headers, strict=True)
        if header is not None and header.masked is not None
    }
    documents = [
        {
            "architecture": name,
            "target": r.target.slug,
            "measured_ms": r.latency_ms,
            "iqr_ms": r.iqr_ms,
            "predicted_ms": r.predicted_ms,
            "error": r.error,
            "drift": r.drift,
            **({"sparse": sparse[name].document()} if name in sparse else {}),
        }
        for name, r in zip(archs, results, strict=True)
    ]
    if as_json:
        print_json(documents)
        return
    rows = [
        (
            name,
            f"{r.latency_ms:.3f} ms",
            f"{r.iqr_ms:.3f}",
            "no table" if r.predicted_ms is None else f"{r.predicted_ms:.3f} ms",
            "" if r.error is None else f"{r.error:+.1%}",
        )
        for name, r in zip(archs, results, strict=True)
    ]
    print_table(target.slug, ("architecture", "measured", "IQR", "predicted", "error"), rows)
    if results[0].drift is not None:
        err.print(
            f"note: the machine takes {results[0].drift:.2f} times as long for the reference block "
            "as when the table was made",
            highlight=False,
        )
    for name, report in sparse.items():
        print_table(
            f"{name}: {report.sparsity:.1%} of the masked weights are zero",
            ("run", "measured", "IQR", ""),
            [
                (run.name, f"{run.latency_ms:.3f} ms", f"{run.iqr_ms:.3f}", "sparse" if run.sparse else "dense")
                for run in sorted(report.runs, key=lambda run: run.latency_ms)
            ],
        )
        for reason in report.left_out:
            err.print(f"left out: {reason}", highlight=False)
        out.print(f"{name}: {report.verdict()}", highlight=False)
