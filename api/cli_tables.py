"""`vitfit table`: latency tables listed, shown, brought in, handed on and compared.

TABLE is a slug of the library or a .parquet file.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api import cli_latency, cli_profile
from api.console import JsonOption, err, escaped, open_library, out, print_json, print_table, with_interval
from vit.presets import PRESETS, preset

if TYPE_CHECKING:
    from latency.table import LatencyTable, Outside
    from latency.target import Target

app = typer.Typer(help="Latency tables: list, show, validate, import, export, compare.", no_args_is_help=True)

TableName = Annotated[str, typer.Argument(metavar="TABLE", help="Slug in the library, or a .parquet table.")]
Size = Annotated[int | None, typer.Option(min=1)]


def open_table(name: str) -> "LatencyTable":
    """
    Raises:
        UnknownNameError, TableError: no such table, or one that cannot be trusted.
    """
    from latency.errors import TableError
    from latency.storage import load_table
    from latency.target import MACS

    if name.endswith(".parquet"):
        return load_table(Path(name))
    if name == MACS:
        raise TableError("macs is the analytic target, which has no table; name a slug of the library or a file")
    if "/" in name:
        raise TableError(f"{name} is no table; tables are .parquet files")
    return open_library().table(name)


def describe(table: "LatencyTable") -> dict[str, Any]:
    """What `show` says of a table, as JSON."""
    from latency.grid import AXES

    flat, iqr = table.block_ms.ravel(), table.block_iqr_ms.ravel()

    def point(index: int) -> dict[str, Any]:
        embed, shape = table.grid.point(index)
        return {"embed_dim": embed, **asdict(shape), "latency_ms": float(flat[index]), "iqr_ms": float(iqr[index])}

    return {
        "target": table.target.slug,
        **table.target.to_dict(),
        "kind": table.kind,
        "interval": table.provenance.interval,
        "norm": table.norm,
        "points": len(table.grid),
        "grid": {name: list(axis) for name, axis in zip(AXES, table.grid.axes, strict=True)},
        "fastest": point(int(flat.argmin())),
        "slowest": point(int(flat.argmax())),
        "outside": table.outside.to_dict(),
        "outside_ms": dict(zip(map(str, table.grid.embed_dim), table.outside_ms.tolist(), strict=True)),
        "provenance": table.provenance.to_dict(),
    }


def evidence(table: "LatencyTable") -> str:
    """The kind, and where a table is modelled how far off it may be."""
    interval = table.provenance.interval
    return table.kind if interval is None else f"{table.kind}, x{interval[0]:.3g} to x{interval[1]:.3g}"


app.command("list")(cli_latency.targets)
app.command()(cli_profile.validate)


@app.command()
def show(name: TableName, as_json: JsonOption = False) -> None:
    """Show what a table is of, how its numbers came about, and what it covers."""
    table = open_table(name)
    document = describe(table)
    if as_json:
        print_json(document)
        return
    provenance = table.provenance
    facts = [("kind", evidence(table)), ("points", document["points"]), ("norm", table.norm)]
    facts += [(axis, " ".join(map(str, sizes))) for axis, sizes in document["grid"].items()]
    for extreme in ("fastest", "slowest"):
        point = document[extreme]
        sizes = "EMB {embed_dim}, H {num_heads}, QK {qk_dim}, V {v_dim}, MLP {mlp_dim}".format(**point)
        ends = provenance.interval_ms(point["latency_ms"])
        facts.append((f"{extreme} block", f"{with_interval('{:.4g} ms'.format(point['latency_ms']), ends)} at {sizes}"))
    facts.append(("outside the blocks", " ".join(f"{ms:.4g}" for ms in table.outside_ms) + " ms by embed_dim"))
    facts += [
        (field.replace("_", " "), value)
        for field in ("method", "created_at", "created_by", "device", "driver", "clocks", "source", "license")
        if (value := getattr(provenance, field))
    ]
    facts += [(f"version of {library}", version) for library, version in provenance.versions.items()]
    facts += [(name.replace("_", " "), f"{value:.4g}") for name, value in provenance.quality.items()]
    width = max(len(fact) for fact, _ in facts)
    say(table.target.slug, *(f"  {fact:<{width}}  {value}" for fact, value in facts))


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The foreign table.")],
    form: Annotated[str, typer.Option("--format", "-f", help="nvit (nested JSON, seconds) or csv.")],
    device: Annotated[str | None, typer.Option(help="For example v100, or cpu-name-4t for 4 threads.")] = None,
    runtime: Annotated[str | None, typer.Option(help="For example eager.")] = None,
    dtype: Annotated[str | None, typer.Option(help="For example fp32, amp.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at a time.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Sequence length.")] = None,
    outside_ms: Annotated[
        str | None,
        typer.Option(help="ms outside the blocks: one number, or by embed_dim, 256=1.2,512=1.9. 0 must be said."),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="layer or rms. Default: layer, where the file says nothing.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Default: 224, for 196 to 201 tokens.")] = None,
    patch_size: Annotated[int | None, typer.Option(min=1, help="Default: 16, for 196 to 201 tokens.")] = None,
    in_chans: Annotated[int, typer.Option(min=1, help="Channels of the image.")] = 3,
    num_classes: Annotated[int, typer.Option(min=0, help="Classes of the classifier that was timed.")] = 1000,
    source: Annotated[str | None, typer.Option(help="Where the figures come from.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="The terms of the figures.")] = None,
    out_path: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the library.")] = None,
    replace: Annotated[bool, typer.Option(help="Overwrite a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring in a table of another format; one that cannot be trusted is refused, and nothing is written."""
    from latency.errors import TableError
    from latency.interop import Description, import_table
    from latency.storage import save_table

    target = _target({"device": device, "runtime": runtime, "dtype": dtype, "batch": batch, "tokens": tokens})
    if target is None and not (image_size is patch_size is None):
        raise typer.BadParameter("an image belongs to a target; give --device and the rest", param_hint="--image-size")
    table = import_table(
        path,
        form,
        Description(
            imported_at=datetime.now(UTC).isoformat(timespec="seconds"),
            target=target,
            norm=norm or ("layer" if target else None),  # without a target the file itself says all of it
            outside=_outside(image_size, patch_size, in_chans, num_classes, target.tokens) if target else None,
            outside_ms=_outside_ms(outside_ms),
            source=source,
            license=license_,
        ),
    )
    to = out_path or open_library().root / "tables" / f"{table.target.slug}.parquet"
    if to.exists() and not replace:
        raise TableError(f"{to} is there already; give --replace to overwrite it, or another --out")
    save_table(table, to)
    if out_path is None:
        for entry in open_library().targets():
            if entry.file == to.name and entry.error is not None:
                err.print(f"note: {escaped(entry.error)}", highlight=False, soft_wrap=True)
    if as_json:
        print_json({"path": str(to), **describe(table)})
        return
    say(f"{table.target.slug}: {len(table.grid)} points ({evidence(table)}) in {to}")


@app.command()
def export(
    name: TableName,
    form: Annotated[str, typer.Option("--format", "-f", help="nvit (nested JSON, seconds), csv or parquet.")],
    out_path: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    as_json: JsonOption = False,
) -> None:
    """Hand a table on; CSV and Parquet carry all of it, NViT's format the blocks' times alone."""
    from latency.interop import export_table

    table = open_table(name)
    export_table(table, out_path, form)
    if form == "nvit":
        err.print(
            f"note: NViT's format says neither that these times are {evidence(table)}, nor the target "
            f"{table.target.slug}, nor the time outside the blocks",
            highlight=False,
            soft_wrap=True,
        )
    if as_json:
        print_json({"target": table.target.slug, "path": str(out_path), "format": form, "points": len(table.grid)})
        return
    say(f"{table.target.slug}: {len(table.grid)} points in {out_path}")


@app.command("compare")
def compare_(
    names: Annotated[list[str], typer.Argument(metavar="TABLE TABLE...", help="Slugs or .parquet files.")],
    as_json: JsonOption = False,
) -> None:
    """Compare tables with the first of them: latency per image, the order of blocks, and presets side by side."""
    from latency.compare import compare

    if len(names) < 2:
        raise typer.BadParameter("give at least two tables", param_hint="TABLE TABLE...")
    first, *others = tables = [open_table(name) for name in names]
    comparisons = [compare(first, other) for other in others]
    presets = _presets(tables)
    if as_json:
        print_json(
            {
                "tables": [
                    {"target": t.target.slug, "kind": t.kind, "interval": t.provenance.interval} for t in tables
                ],
                "comparisons": [
                    {
                        "table": names[index],
                        "with": names[0],
                        "bounds": c.bounds,
                        "points": c.points,
                        "latency_ratio_percentiles": c.ratio,
                        "rank_correlation": c.rank_correlation,
                    }
                    for index, c in enumerate(comparisons, start=1)
                ],
                "presets": presets,
            }
        )
        return
    for index, table in enumerate(tables, start=1):  # slugs are long: columns carry a number
        say(f"table {index}: {table.target.slug} ({evidence(table)})")
    rows = [
        (
            f"table {index}",
            c.points,
            *(f"{c.ratio[q]:.3f}" for q in (5, 50, 95)),
            "none" if c.rank_correlation is None else f"{c.rank_correlation:.4f}",
        )
        for index, c in enumerate(comparisons, start=2)
    ]
    columns = ("", "blocks", "5 %", "median", "95 %", "rank correlation")
    print_table("latency of a block per image, as a multiple of table 1", columns, rows)
    print_table(
        "presets that all of them answer for, ms per batch",
        ("preset", *(f"table {index}" for index in range(1, len(tables) + 1))),
        [
            (row["preset"], *(with_interval(f"{e['latency_ms']:.3f}", e["interval_ms"]) for e in row["estimates"]))
            for row in presets
        ],
    )


def say(*lines: str) -> None:
    """Lines as they are: names and paths are no markup and are not wrapped."""
    out.print(*lines, sep="\n", highlight=False, markup=False, soft_wrap=True)


def _presets(tables: list["LatencyTable"]) -> list[dict[str, Any]]:
    """Latencies of the presets that every table covers, in the order of the tables."""
    from latency.errors import OutsideGridError, TargetError
    from latency.estimate import estimate

    rows = []
    for name in PRESETS:
        try:
            estimates = [estimate(table, preset(name)) for table in tables]
        except (OutsideGridError, TargetError):
            continue
        found = [{"latency_ms": e.latency_ms, "interval_ms": e.interval_ms, "kind": e.kind} for e in estimates]
        rows.append({"preset": name, "estimates": found})
    return rows


def _target(parts: dict[str, Any]) -> "Target | None":
    """The target that the options name; None where they name none."""
    from latency.target import Target

    missing = [name for name, value in parts.items() if value is None]
    if len(missing) == len(parts):
        return None
    if missing:
        raise typer.BadParameter(f"a target also needs --{missing[0]}", param_hint=f"--{missing[0]}")
    return Target(**parts)


def _outside(image_size: int | None, patch_size: int | None, in_chans: int, num_classes: int, tokens: int) -> "Outside":
    from api.table_description import outside_of
    from latency.errors import TableError

    try:
        return outside_of(image_size, patch_size, in_chans, num_classes, tokens)
    except TableError as error:
        raise typer.BadParameter(str(error), param_hint="--image-size, --patch-size") from None


def _outside_ms(text: str | None) -> float | dict[int, float] | None:
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.split("=") for part in text.split(",")]
        times = {int(embed): float(ms) for embed, ms in pairs}
    except ValueError:
        raise typer.BadParameter(
            f"{text!r:.100} is neither a number of ms nor like 256=1.2,512=1.9", param_hint="--outside-ms"
        ) from None
    if len(times) < len(pairs):
        raise typer.BadParameter(f"{text!r:.100} has an embed_dim twice", param_hint="--outside-ms")
    return times
