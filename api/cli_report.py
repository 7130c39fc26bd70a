"""vitfit report: a run or a checkpoint as one page."""

from pathlib import Path
from typing import Annotated

import typer

from api.console import JsonOption, err, print_json


def report(
    source: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run (`prune`, `sparsify --sweep`).")],
    out_path: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: beside it, NAME.report.html, or .lineage.html.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file, without anything outside it, on a run or a checkpoint: what, why, figures, lineage."""
    from api.run_report import write_run_report

    source = source.resolve()
    # What compress promised has a page of its own beside the checkpoint, which stays.
    suffix = ".report.html" if source.is_dir() else ".lineage.html"
    stem = source.name if source.is_dir() else source.stem
    path = out_path or source.with_name(stem + suffix)
    write_run_report(source, path)
    if as_json:
        print_json({"path": str(path)})
    else:
        err.print(f"wrote {path}", highlight=False, soft_wrap=True)
