"""Must a block be timed with changing weights to be timed like a block of a model?

    $ python benchmarks/copies.py [--quick]

A 12-block model (EMB 192, 17 tokens, batch 8) whose weights outgrow the second-level cache: tables made with 1, 4 and
12 sets of weights in turn, then whole models, measured, against what each table predicts.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import print_machine, spread

from api.profiling import measure, run_profile
from latency.grid import grid_below
from latency.plan import ProfilePlan
from latency.runtimes import find_device, local_target
from latency.storage import load_table
from vit.architecture import Architecture, BlockShape

ARCH = Architecture(
    image_size=(64, 64),
    patch_size=(16, 16),
    in_chans=3,
    num_classes=10,
    embed_dim=192,
    blocks=(BlockShape(3, 64, 64, 768),) * 12,
)


def models(count: int, seed: int) -> list[Architecture]:
    """The whole model and random smaller ones."""
    draw = np.random.default_rng(seed)

    def size(largest: int, step: int) -> int:
        return int(draw.integers(1, largest // step + 1)) * step

    small = [
        ARCH.replace(
            embed_dim=int(draw.integers(12, 25)) * 8,
            blocks=tuple(BlockShape(size(3, 1), size(64, 8), size(64, 8), 8 + size(760, 8)) for _ in range(12)),
        )
        for _ in range(count)
    ]
    return [ARCH, *small]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat on a small grid")
    quick = parser.parse_args().quick
    repeats, planes, rounds, count = (1, (2, 2, 2, 2, 2), 1, 2) if quick else (3, (4, 3, 2, 2, 3), 2, 8)
    device = find_device()
    target = local_target(device, "eager", "fp32", 8, ARCH.tokens)
    print_machine("torch")
    print(f"seeds 0 to {repeats - 1}, {rounds} visits a point; error in % = predicted / measured - 1, median [range]")
    for repeat in range(repeats):
        for copies in (1, 4, 12):
            plan = ProfilePlan(
                target, grid_below(ARCH, planes=planes), ARCH, rounds=rounds, extra=0, copies=copies, seed=repeat
            )
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "table.parquet"
                for _ in run_profile(plan, device, path):
                    pass
                table = load_table(path)
            measured = measure(models(count, repeat), device, target, table, rounds=5)
            errors = [100 * (m.error or 0.0) for m in measured]
            print(
                f"seed {repeat}  copies {copies:2}  error {spread(errors)} %  "
                f"reference now / while profiling {measured[0].drift:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
