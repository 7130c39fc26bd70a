"""The demo's result as a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.demo_plan import COMPRESS
from api.page import write_page
from latency.table import LatencyTable


@dataclass(frozen=True, eq=False)
class ReportData:
    """What the report shows.

    Attributes:
        data: the images in words.
        finetune_steps: that the models for comparison were trained for.
        table: of the target.
        rows: the result table, the uncut model first.
        frontier: (ms, share of saliency kept), fastest first.
    """

    title: str
    data: str
    finetune_steps: int
    table: LatencyTable
    rows: list[dict[str, Any]]
    frontier: list[tuple[float, float]]


def write_report(path: Path, report: ReportData) -> None:
    """Render and write atomically."""
    write_page(
        path,
        "report",
        {"rows": report.rows, "frontier": report.frontier, "method": COMPRESS},
        title=report.title,
        report=report,
        method=COMPRESS,
        provenance=report.table.provenance,
        target=report.table.target,
    )
