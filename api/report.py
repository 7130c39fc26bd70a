"""The demo's result as one HTML file that needs nothing else: charts (ECharts, inlined), a table beside each chart."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from latency.table import LatencyTable
from vit.files import write_text

HERE = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class ReportData:
    """What the report shows.

    Attributes:
        data: the images in words.
        method: criterion of our method; the other rows are comparisons.
        table: of the target.
        rows: the result table, the uncut model first.
        frontier: (ms, share of saliency kept), fastest first.
    """

    title: str
    data: str
    method: str
    table: LatencyTable
    rows: list[dict[str, Any]]
    frontier: list[tuple[float, float]]


def write_report(path: Path, report: ReportData) -> None:
    """Render and write atomically."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    vendor = HERE / "static" / "vendor" / "echarts"
    page = environment.get_template("report.html").render(
        report=report,
        provenance=report.table.provenance,
        target=report.table.target,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        charts=_script_json({"rows": report.rows, "frontier": report.frontier, "method": report.method}),
        echarts=(vendor / "echarts.min.js").read_text(encoding="utf-8"),
        script=(HERE / "static" / "report.js").read_text(encoding="utf-8"),
    )
    write_text(path, page)


def _script_json(document: object) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(document).replace("<", "\\u003c")
