"""How much of a small model's time on a CPU is page faults and small pages, and do lone blocks have the same share?

    $ python benchmarks/allocator.py

Three processes in turn: glibc's defaults, freed memory kept, and kept in huge pages. Each times a model of equal blocks
and 1, 4 and 6 of its blocks in a row (times are scaled to 6 blocks), and a model of six different blocks beside the sum
of these blocks, each timed alone.
"""

import argparse
import os
import resource
import subprocess
import sys
from collections import defaultdict

import numpy as np
from common import print_machine, spread

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def child() -> None:
    """Prints `name ms faults` lines, with whatever allocator the environment asks for."""
    import torch

    from latency.bench import random_weights
    from latency.runtimes import find_device
    from latency.runtimes.pytorch import eager
    from latency.timer import CpuStopwatch, time_call
    from vit.architecture import Architecture, BlockShape
    from vit.model import Block, VisionTransformer

    torch.set_num_threads(1)
    arch = Architecture(
        image_size=(16, 16),
        patch_size=(4, 4),
        in_chans=1,
        num_classes=10,
        embed_dim=128,
        blocks=(BlockShape(4, 32, 32, 512),) * 6,
    )
    device = find_device()
    model = random_weights(VisionTransformer(arch))
    calls = {"model": (eager([model], torch.randn(64, 1, 16, 16), device, "fp32")[0], 6)}
    for count in (1, 4, 6):
        blocks = torch.nn.Sequential(*(Block(arch, index) for index in range(count)))
        calls[f"{count} blocks"] = (eager([random_weights(blocks)], torch.randn(64, 17, 128), device, "fp32")[0], count)
    sizes = ((6, 48, 48, 1400), (2, 24, 16, 192), (5, 32, 40, 900), (3, 16, 24, 320), (8, 24, 32, 640), (1, 32, 48, 96))
    unequal = arch.replace(embed_dim=144, blocks=tuple(BlockShape(*one) for one in sizes))
    model, x = random_weights(VisionTransformer(unequal)), torch.randn(64, 17, 144)
    calls["unequal model"] = (eager([model], torch.randn(64, 1, 16, 16), device, "fp32")[0], 6)
    calls |= {f"lone {index}": (eager([block], x, device, "fp32")[0], 6) for index, block in enumerate(model.blocks)}
    for name, (call, count) in calls.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        timing = time_call(call, stopwatch=CpuStopwatch(single_threaded=True))
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(name.replace(" ", "_"), timing.measurement.median_ms / count * 6, faults / 9 / count * 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return
    print_machine("torch")
    rounds = 1 if options.quick else 5
    ms, faults = defaultdict(list), defaultdict(list)
    for _ in range(rounds):
        for allocator, settings in (("default", {}), ("kept", KEPT), ("huge", KEPT | HUGE)):
            command = [sys.executable, __file__, "--child"]
            result = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
            found = defaultdict(lambda: np.zeros(2))
            for line in result.stdout.splitlines():
                name, *figures = line.split()
                found["sum_of_lone" if name.startswith("lone") else name] += np.array(figures, dtype=float)
            for name, (time, count) in found.items():
                ms[allocator, name].append(time)
                faults[allocator, name].append(count)
    print(f"{rounds} processes each, median [range]")
    for allocator, name in ms:
        print(
            f"{allocator:8} {name:13} {spread(ms[allocator, name])} ms per 6 blocks, "
            f"{spread(faults[allocator, name])} page faults"
        )


if __name__ == "__main__":
    main()
