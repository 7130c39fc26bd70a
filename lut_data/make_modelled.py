"""Makes every modelled target's coefficients and default table from the published figures; twice the same.

$ python -m lut_data.make_modelled [FOLDER]
"""

import json
import sys
from pathlib import Path

from latency.calibration import read_figures
from latency.devices import Calibration, DeviceModel, Traits, table_of
from latency.grid import GRIDS
from latency.modelled import calibrate
from latency.storage import save_table
from latency.table import LatencyTable, Outside
from lut_data import FOLDER
from vit.files import write_text

BATCH, TOKENS = 256, 197
"""NViT's published table is of batch 256. 197 tokens are 196 patches and a class token, as in DeiT-T, -S and -B and
most published ViTs; distilled models have 198 and are answered by `latency.devices.device_model`."""

IMAGENET = Outside((224, 224), (16, 16), 3, 1000)


def default_table(calibration: Calibration) -> LatencyTable:
    """The 9,375 points that are shipped."""
    return table_of(DeviceModel(calibration, BATCH, TOKENS, IMAGENET, Traits()), GRIDS["vitfit"])


def make(folder: Path) -> list[Path]:
    """Write modelled.json and one table a target; the tables' paths."""
    calibrations = calibrate(read_figures((FOLDER / "published_throughput.csv").read_text(encoding="utf-8")))
    text = json.dumps([c.to_dict() for c in calibrations], indent=2, sort_keys=True) + "\n"
    write_text(folder / "modelled.json", text)
    paths = []
    for calibration in calibrations:
        table = default_table(calibration)
        paths.append(folder / f"{table.target.slug}.parquet")
        save_table(table, paths[-1])
    return paths


if __name__ == "__main__":
    for path in make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(path)
