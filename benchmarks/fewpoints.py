"""How many points does a table need?

    $ python benchmarks/fewpoints.py [TABLE.parquet] [--quick]

From a fully measured table, N points are kept and the grid is filled from them (physical model, smooth correction).
Errors are of the grid's other points as they were measured, and, on the machine that the table is of, of random blocks
off the grid measured now: there the fully measured table has an error of its own to compare with.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import print_goal, print_machine

import lut_data
from latency.accuracy import Accuracy
from latency.errors import TargetError
from latency.estimate import points_of
from latency.physics import fit
from latency.plan import order, sizes
from latency.profiler import plan_like
from latency.runtimes import device_of
from latency.storage import load_table
from latency.surrogate import fit_surrogate, held_out
from latency.table import LatencyTable
from latency.validation import random_architecture, validate


def measured_blocks(table: LatencyTable, count: int, rounds: int) -> tuple[np.ndarray, np.ndarray, Accuracy] | None:
    """Sizes and steady ms of random blocks, and how far two measurements of them are apart; None: another machine."""
    try:
        device = device_of(table.target)
    except TargetError as error:
        print(f"random blocks are not measured: {error}")
        return None
    *_, last = validate(table, device, models=0, blocks=count, rounds=rounds)
    found = last.result
    assert found is not None
    assert found.blocks_floor is not None
    template = plan_like(table).template
    blocks = [random_architecture(template, table.bounds, 1, (0, 1, i)) for i in range(count)]
    assert found.drift is not None
    print(f"{count} random blocks, twice {rounds} times; the machine takes {found.drift:.3f} of the table's reference")
    return np.concatenate([points_of(b) for b in blocks]), np.array(found.measured_ms) / found.drift, found.blocks_floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path, help="default: the first fully measured one that is shipped")
    parser.add_argument("--quick", action="store_true", help="two numbers of points, one seed, few blocks")
    args = parser.parse_args()
    path = args.table or next(p for p in lut_data.tables() if load_table(p).kind == "measured")
    table = load_table(path)
    grid, tokens, ms = table.grid, table.target.tokens, table.block_ms.ravel()
    everything = sizes(grid, np.arange(len(grid)))
    counts, seeds, blocks, rounds = ((64, 100), 1, 6, 1) if args.quick else ((32, 64, 100, 200, 400, 1000), 5, 60, 3)
    print_machine("torch", "scipy", "scikit-learn")
    print(
        f"{table.target.slug}, {table.kind} {table.provenance.created_at}, {len(grid)} points; seeds 0 to {seeds - 1}"
    )
    raw = np.concatenate([np.diff(table.block_ms, axis=a).ravel() for a in range(5)])
    by_axis = ", ".join(
        f"{name} {np.mean(np.diff(table.block_ms, axis=a) < 0):.1%}" for a, name in enumerate(grid.to_dict())
    )
    print(f"neighbours where the larger block was timed faster: {np.mean(raw < 0):.1%} ({by_axis})")
    live = measured_blocks(table, blocks, rounds)
    whole = None
    if live is not None:
        where, truth, floor = live
        whole = Accuracy.of(table.block_times(where), truth)
        print(f"off the grid, all {len(grid)} points: MAPE {whole.mape:.2%} p95 {whole.p95:.2%}")
        print(f"off the grid, measured twice:      MAPE {floor.mape:.2%} p95 {floor.p95:.2%}")
    print("median over seeds     other grid points, %                   it says   off the grid, %   over all points")
    print("points   physical MAPE   filled MAPE    p95    rank corr.    MAPE    filled MAPE  p95    MAPE / MAPE")
    for count in counts:
        rows = []
        for seed in range(seeds):
            chosen = order(grid, seed)[:count]
            rest = np.setdiff1d(np.arange(len(grid)), chosen)
            surrogate = fit_surrogate(everything[chosen], ms[chosen], tokens)
            filled = surrogate.block_times(everything)
            physical = Accuracy.of(fit(everything[chosen], ms[chosen], tokens).block_times(everything[rest]), ms[rest])
            found = Accuracy.of(filled[rest], ms[rest])
            says = held_out(everything[chosen], ms[chosen], tokens)
            row = [physical.mape, found.mape, found.p95, found.rank_correlation, says.mape]
            if whole is not None:
                sparse = replace(table, block_ms=filled.reshape(grid.shape))
                off = Accuracy.of(sparse.block_times(where), truth)
                row += [off.mape, off.p95, off.mape / whole.mape]
            rows.append(row)
        m = np.median(rows, axis=0)
        line = (
            f"{count:6}   {100 * m[0]:13.2f}   {100 * m[1]:11.2f}  {100 * m[2]:5.2f}   {m[3]:11.5f}  {100 * m[4]:6.2f}"
        )
        if whole is not None:
            ratios = [row[7] for row in rows]
            line += f"    {100 * m[5]:11.2f}  {100 * m[6]:5.2f}  {m[7]:11.2f}  [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(line, flush=True)
        if count == 100 and whole is not None:
            ratio = float(m[7])
    if whole is not None:
        print_goal("hundred-points-error-over-full-grid", ratio, 1.5, at_least=False)


if __name__ == "__main__":
    main()
