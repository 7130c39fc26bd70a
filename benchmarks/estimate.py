"""How many whole-model estimates per second on one core, in how much memory, and how soon after a table is opened?

    $ python benchmarks/estimate.py            # --quick for a few seconds

vitfit (`latency.estimate.model_times`) against SciPy's RegularGridInterpolator (linear) called once a block, as NViT's
authors do, and called once for the whole batch, for batches from one model to ten thousand. All time the same random
models of 12 blocks (sizes as float64) on the same table of 9,375 points, take turns in random order, and must agree on
every latency.

Memory: what a child process that has answered for a few models grows by, at its peak, while it makes a million models
(int16) and answers for all of them: the models, the answers and everything in between. Loading: the table from Parquet,
the file in the system's cache, pyarrow imported.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

import numpy as np
import numpy.typing as npt
from common import print_goal, print_machine
from scipy.interpolate import RegularGridInterpolator

from latency.estimate import model_times
from latency.grid import Grid
from latency.measurement import Measurement
from latency.storage import load_table, save_table
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target

Array = npt.NDArray[np.float64]

DEPTH = 12
BATCHES = (1, 10, 100, 500, 1_000, 10_000)
"""Models a call; SciPy is fastest at about 500 to 1,000, larger arrays leave the cache."""
RATE_BATCH = 1_000
"""For the goal in models a second."""
PER_BLOCK = 5
"""Models a sample for SciPy called once a block, whose rate is the same at any number."""
GRID = Grid(
    embed_dim=(64, 192, 384, 576, 768),
    num_heads=(1, 3, 6, 9, 12),
    qk_dim=(8, 16, 32, 48, 64),
    v_dim=(8, 16, 32, 48, 64),
    mlp_dim=(16, 64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 2688, 3072),
)


def affine_table() -> LatencyTable:
    """Made-up milliseconds, affine in every size: estimates cost the same on any numbers."""
    embed, heads, qk, v, mlp = np.meshgrid(*map(np.array, GRID.axes), indexing="ij")
    block_ms = 0.05 + 1e-4 * embed + 1e-2 * heads + 1e-3 * (qk + v) + 1e-4 * mlp
    outside_ms = 0.1 + 1e-4 * np.array(GRID.embed_dim)
    return LatencyTable(
        target=Target("synthetic", "none", "fp32", 1, 197),
        grid=GRID,
        block_ms=block_ms,
        block_iqr_ms=np.zeros(GRID.shape),
        outside=Outside((224, 224), (16, 16), 3, 1000),
        outside_ms=outside_ms,
        outside_iqr_ms=np.zeros(len(GRID.embed_dim)),
        norm="layer",
        provenance=Provenance("modelled", "", "affine numbers for a benchmark", interval=(1.0, 1.0)),
    )


def random_models(count: int, seed: int) -> npt.NDArray[np.int16]:
    """Sizes between the grid's ends, one embed_dim per model; shape (count, DEPTH, 5)."""
    low, high = ([axis[end] for axis in GRID.axes] for end in (0, -1))
    draw = np.random.default_rng(seed)
    sizes = draw.integers(low, high, (count, DEPTH, 5), np.int16, endpoint=True)
    sizes[:, :, 0] = sizes[:, :1, 0]
    return sizes


def growth_mb(count: int, seed: int) -> float:
    """MB that the peak of this process grows by while it makes and times this many models."""
    table = affine_table()
    model_times(table, random_models(10, seed))  # compiled, and the table laid out
    before = _peak_mb()
    model_times(table, random_models(count, seed))
    return _peak_mb() - before


def _peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def load_times(rounds: int) -> list[float]:
    """ms of every load of the table from Parquet."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        save_table(affine_table(), path)
        for _ in range(rounds):
            started = time.perf_counter()
            load_table(path)
            times.append(1e3 * (time.perf_counter() - started))
    return times


def take_turns(runs: dict[str, Callable[[], object]], rounds: int, calls: int, seed: int) -> dict[str, Measurement]:
    """ms of a call of each, in samples of so many calls."""
    draw = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in draw.permutation(list(runs)):
            started = time.perf_counter()
            for _ in range(calls):
                runs[name]()
            samples[name].append(1e3 * (time.perf_counter() - started) / calls)
    return {name: Measurement.of(ms) for name, ms in samples.items()}


def contestants(table: LatencyTable) -> dict[str, Callable[[Array], Array]]:
    """Name -> models (count, DEPTH, 5) to milliseconds (count,)."""
    blocks = RegularGridInterpolator(GRID.axes, table.block_ms)
    rest = RegularGridInterpolator(GRID.axes[:1], table.outside_ms)

    def scipy_per_block(models: Array) -> Array:
        return np.array([sum(blocks(block)[0] for block in model) + rest(model[0, :1])[0] for model in models])

    def scipy_batched(models: Array) -> Array:
        total: Array = blocks(models).sum(axis=-1) + rest(models[:, 0, 0])
        return total

    return {
        "vitfit": lambda models: model_times(table, models),
        "scipy-batched": scipy_batched,
        "scipy-per-block": scipy_per_block,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    # First, while this process is small: the child's peak counts from that of its parent.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        million_mb = child.submit(growth_mb, 1_000_000, options.seed).result()

    rounds = 5 if options.quick else 25
    effort = 500 if options.quick else 2_000
    contestant = contestants(affine_table())
    models = random_models(max(BATCHES), options.seed).astype(np.float64)
    truth = contestant["scipy-batched"](models)

    print_machine("numpy", "scipy", "numba", "pyarrow")
    print(f"one core; models of {DEPTH} blocks, a table of {len(GRID):,} points")
    print(f"{rounds} samples each, taken in turns in random order, seed {options.seed}\n")
    print(f"{'':16} {'models a sample':>15} {'models/s':>10} {'µs a model':>11} {'IQR':>6}")
    rates: dict[tuple[str, int], float] = {}
    for batch in (*BATCHES, PER_BLOCK):
        names = ("scipy-per-block",) if batch == PER_BLOCK else ("vitfit", "scipy-batched")
        calls = min(max(effort // batch, 1), 200) if batch != PER_BLOCK else max(effort // 500, 1)
        runs = {name: partial(contestant[name], models[:batch]) for name in names}
        for run in runs.values():  # agreement, and warm-up
            np.testing.assert_allclose(run(), truth[:batch], rtol=1e-9)
        for name, measured in take_turns(runs, rounds, calls, options.seed).items():
            rates[name, batch] = 1e3 * batch / measured.median_ms
            taken = f"{calls} x {batch:,}"
            share = f"{measured.iqr_ms / measured.median_ms:.1%}"
            note = "" if measured.is_stable else "  unstable"
            microseconds = 1e3 * measured.median_ms / batch
            print(f"{name:16} {taken:>15} {rates[name, batch]:10,.0f} {microseconds:11.3g} {share:>6}{note}")

    first, *later = load_times(rounds + 1)
    load = Measurement.of(later)
    print(f"\na million models, made (int16) and timed: the process grows by {million_mb:.0f} MB at its peak")
    print(f"load: first {first:.1f} ms, then {load.median_ms:.2f} ms, IQR {load.iqr_ms / load.median_ms:.1%}")
    ratio = {batch: rates["vitfit", batch] / rates["scipy-batched", batch] for batch in BATCHES}
    print("times scipy-batched: " + ", ".join(f"{value:.3g} at {batch:,}" for batch, value in ratio.items()) + "\n")
    per_block = rates["vitfit", RATE_BATCH] / rates["scipy-per-block", PER_BLOCK]
    print_goal("estimates-per-second", rates["vitfit", RATE_BATCH], 1_000_000, at_least=True)
    print_goal("estimates-over-scipy-per-block", per_block, 100, at_least=True)
    print_goal("estimates-over-scipy-batched-worst-batch", min(ratio.values()), 8, at_least=True)
    print_goal("million-models-mb", million_mb, 200, at_least=False)
    print_goal("table-load-ms", load.median_ms, 20, at_least=False)


if __name__ == "__main__":
    main()
