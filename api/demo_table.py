"""The demo's result table: one row a model."""

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One model of the result table; accuracies in [0, 1], None where it does not apply."""

    name: str
    criterion: str | None
    budget: float | None
    budget_ms: float | None
    predicted_ms: float
    measured_ms: float
    iqr_ms: float
    error: float
    drift: float
    params: int
    macs: int
    accuracy_cut: float | None
    accuracy: float
    architecture: dict[str, Any]


def print_results(rows: list[DemoRow], console: Console) -> None:
    """The result table."""
    table = Table(
        title="ms of a batch on this CPU (median ±IQR); accuracy when cut, when recovered",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(("model", "predicted", "measured", "error", "params", "MACs", "cut", "recovered")):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.predicted_ms:.2f}",
            f"{row.measured_ms:.2f} ±{row.iqr_ms:.2f}",
            f"{row.error:+.1%}",
            f"{row.params / 1e3:.0f}k",
            f"{row.macs / 1e6:.1f}M",
            "" if row.accuracy_cut is None else f"{row.accuracy_cut:.1%}",
            f"{row.accuracy:.1%}",
        )
    console.print(table)
    worst = max(abs(row.error) for row in rows[1:])
    console.print(
        f"The largest error of a cut model's predicted latency is {worst:.1%}. While measuring, this machine took "
        f"{rows[0].drift:.2f} times as long for the reference block as while profiling.",
        highlight=False,
        soft_wrap=True,
    )
