"""Tables from and for others: NViT's JSON and CSV, read and written.

A file that comes in is bounded before it is read, must be a full grid of positive times, and must imply a speed that a
device can have (`plausible`). What a format cannot hold is given by the caller (`Description`), never assumed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from latency.errors import TableError, TargetError
from latency.interop.common import Description, read_text
from latency.interop.csv_file import read_csv, write_csv
from latency.interop.nvit import read_nvit, write_nvit
from latency.interop.plausible import check_speed
from latency.storage import save_table
from latency.table import LatencyTable
from vit.errors import UnknownNameError
from vit.files import write_text

__all__ = ["READERS", "WRITERS", "Description", "export_table", "import_table"]

READERS: Mapping[str, Callable[[str, Description], LatencyTable]] = {"nvit": read_nvit, "csv": read_csv}

WRITERS: Mapping[str, Callable[[LatencyTable, Path], None]] = {
    "nvit": lambda table, path: write_text(path, write_nvit(table)),
    "csv": lambda table, path: write_text(path, write_csv(table)),
    "parquet": lambda table, path: save_table(table, path),
}
"""All of them write atomically: `path` holds a whole file or what it held before."""


def import_table(path: Path, form: str, description: Description) -> LatencyTable:
    """
    Args:
        form: a name of READERS.

    Raises:
        UnknownNameError: no such format.
        TableError: a file that cannot be trusted; names the first offending point or field.
    """
    if form not in READERS:
        raise UnknownNameError("table format", form, READERS)
    try:
        table = READERS[form](read_text(path), description)
        check_speed(table)
    except (TableError, TargetError) as error:
        raise TableError(f"{path}: {error}") from None
    return table


def export_table(table: LatencyTable, path: Path, form: str) -> None:
    """
    Args:
        form: a name of WRITERS.

    Raises:
        UnknownNameError: no such format.
    """
    if form not in WRITERS:
        raise UnknownNameError("table format", form, WRITERS)
    WRITERS[form](table, path)
