"""What `vitfit compress` promised and on what evidence, as a page; made from its JSON report alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api.page import write_page
from latency.table import Provenance
from search.constraints import Constraints

LATENCIES = {"analytic": "MACs of one image", "modelled": "latency, modelled"}
"""What a number of a target is called, by kind; of all other kinds there are tables."""


def write_compress_page(path: Path, report: Mapping[str, Any]) -> None:
    """Render and write atomically.

    Args:
        report: as in `api.compress_job`. Of files and folders the page shows the names alone, for it may travel.
    """
    unit = "M MACs" if report["kind"] == "analytic" else "ms"
    provenance = Provenance.from_dict(report["provenance"])
    write_page(
        path,
        "compress",
        {
            "before": report["before"]["architecture"],
            "after": report["after"]["architecture"],
            "refits": report["refits"],
        },
        title=f"{Path(report['model']).name}, compressed to {report['latency_ms']:.3g} {unit}",
        report=report,
        provenance=provenance,
        full_interval_ms=provenance.interval_ms(report["full_ms"]),
        unit=unit,
        latency=LATENCIES.get(report["kind"], f"latency by the table ({report['kind']})"),
        model=Path(report["model"]).name,
        data=Path(report["calibration"]["data"]).name,
        measured={row["model"]: row for row in report["measured"] or ()},
        limits=[words for words, _ in Constraints.from_dict(report["constraints"]).without()],
    )
