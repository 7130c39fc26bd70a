"""The demo's result table: one row a model."""

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One model of the result table.

    Attributes:
        method: `compress`, or the criterion that was cut by; None for the uncut model.
        budget, budget_ms: share of the uncut model's latency, and the milliseconds that it makes; None for that model.
        accuracy_untrained: as cut (by compress also refitted), in [0, 1]; None for the uncut model.
        accuracy_trained: of the uncut model, and after a fine-tune; None where nothing was trained.
    """

    name: str
    method: str | None
    budget: float | None
    budget_ms: float | None
    predicted_ms: float
    measured_ms: float
    iqr_ms: float
    error: float
    drift: float
    params: int
    macs: int
    accuracy_untrained: float | None
    accuracy_trained: float | None
    architecture: dict[str, Any]


COLUMNS = ("model", "predicted", "measured", "error", "params", "MACs", "untrained", "trained")


def print_results(rows: list[DemoRow], console: Console) -> None:
    """The result table."""
    table = Table(
        title="ms of a batch on this CPU (median ±IQR); accuracy",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.budget != row.budget:
            table.add_section()
        table.add_row(
            row.name,
            f"{row.predicted_ms:.2f}",
            f"{row.measured_ms:.2f} ±{row.iqr_ms:.2f}",
            f"{row.error:+.1%}",
            f"{row.params / 1e3:.0f}k",
            f"{row.macs / 1e6:.1f}M",
            _percent(row.accuracy_untrained),
            _percent(row.accuracy_trained),
        )
    console.print(table)
    worst = max(abs(row.error) for row in rows[1:])
    console.print(
        "\ncompress changes the basis, chooses, cuts and refits; it does not train. The others are cut by that "
        "criterion to the same budgets, then fine-tuned.\n"
        f"The largest error of a smaller model's predicted latency is {worst:.1%}. While measuring, this machine took "
        f"{rows[0].drift:.2f} times as long for the reference block as while profiling.",
        highlight=False,
        soft_wrap=True,
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
