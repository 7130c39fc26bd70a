"""What does a point cost in each runtime, and do a model's parts add up to the model?

    $ python benchmarks/runtimes.py [--quick]

For every runtime and dtype that runs on this CPU with one thread: seconds to prepare a block of new sizes with as many
sets of weights as the model has blocks, and to time it; then, in interleaved rounds, the whole model beside its blocks
and the part outside them. The parts add up if the ratio is 1.
"""

import argparse
import copy
import time
from collections.abc import Iterator

import numpy as np
import torch
from common import print_machine, spread

from latency.bench import random_weights
from latency.errors import TargetError
from latency.runtimes import RUNTIMES, Call, Device, find_device, local_target, prepare
from latency.target import Target
from latency.timer import Effort, time_call
from vit.architecture import Architecture, BlockShape
from vit.model import Block, VisionTransformer

ARCH = Architecture(
    image_size=(64, 64),
    patch_size=(16, 16),
    in_chans=3,
    num_classes=10,
    embed_dim=192,
    blocks=(BlockShape(3, 64, 64, 768), BlockShape(3, 48, 64, 512)) * 6,
)
SMALL = ARCH.replace(embed_dim=64, blocks=(BlockShape(2, 32, 32, 128), BlockShape(2, 16, 32, 96)))


def targets(device: Device, batch: int, arch: Architecture) -> Iterator[Target]:
    """Of every runtime and dtype that runs here."""
    for runtime, row in RUNTIMES.items():
        for dtype in row.dtypes.get("cpu", ()):
            try:
                yield local_target(device, runtime, dtype, batch, arch.tokens)
            except TargetError as error:
                print(f"left out: {error}")


def block_call(target: Target, device: Device, arch: Architecture, index: int) -> Call:
    block = random_weights(Block(arch, index))
    copies = [block, *(copy.deepcopy(block) for _ in range(arch.depth - 1))]
    return prepare(target, device, copies, (arch.tokens, arch.embed_dim))


def image_call(target: Target, device: Device, module: VisionTransformer) -> Call:
    return prepare(target, device, [random_weights(module)], (module.arch.in_chans, *module.arch.image_size))


def outside_of(arch: Architecture) -> VisionTransformer:
    module = VisionTransformer(arch)
    module.blocks = torch.nn.Sequential()
    return module


def cost_of_points(target: Target, device: Device, arch: Architecture, count: int) -> tuple[list[float], list[float]]:
    """Seconds to prepare and to time blocks of sizes that were not seen before; the first, which warms up, is left
    out."""
    preparing, timing = [], []
    for index in range(count + 1):
        first = arch.blocks[0]
        shape = BlockShape(first.num_heads, first.qk_dim - 8, first.v_dim, first.mlp_dim - 8 * index)
        started = time.perf_counter()
        call = block_call(target, device, arch.replace(blocks=(shape,) * arch.depth), 0)
        prepared = time.perf_counter()
        time_call(call, Effort(warmup=arch.depth), stopwatch=device.stopwatch())
        preparing.append(prepared - started)
        timing.append(time.perf_counter() - prepared)
    return preparing[1:], timing[1:]


def parts_over_whole(
    target: Target, device: Device, arch: Architecture, rounds: int
) -> tuple[list[float], list[float]]:
    """ms of the whole model, and the sum of its parts over it, one of each a round."""
    kinds = {shape: index for index, shape in enumerate(arch.blocks)}
    calls = {shape: block_call(target, device, arch, index) for shape, index in kinds.items()}
    outside = image_call(target, device, outside_of(arch))
    whole = image_call(target, device, VisionTransformer(arch))

    def ms(call: Call) -> float:
        timing = time_call(call, Effort(warmup=arch.depth), stopwatch=device.stopwatch())
        return timing.measurement.median_ms

    wholes, ratios = [], []
    for _ in range(rounds):
        wholes.append(ms(whole))
        found = {shape: ms(call) for shape, call in calls.items()}
        ratios.append((ms(outside) + sum(found[shape] for shape in arch.blocks)) / wholes[-1])
    return wholes, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one point and one round, not compiled")
    quick = parser.parse_args().quick
    arch, batch, points, rounds = (SMALL, 2, 1, 1) if quick else (ARCH, 8, 5, 9)
    device = find_device()
    print_machine("torch", "onnxruntime")
    print(
        f"{arch.depth} blocks, EMB {arch.embed_dim}, {arch.tokens} tokens, batch {batch}; {points} points after a first"
    )
    print(f"one, {rounds} rounds of 7 samples; median [range]")
    with device.active():
        for target in targets(device, batch, arch):
            if quick and target.runtime == "compile":
                continue
            preparing, timing = cost_of_points(target, device, arch, points)
            wholes, ratios = parts_over_whole(target, device, arch, rounds)
            iqr = np.subtract(*np.percentile(wholes, (75, 25))) / np.median(wholes)
            print(
                f"{target.runtime:11} {target.dtype:4}  prepare {spread(preparing)} s, time {spread(timing)} s; "
                f"model {spread(wholes)} ms{' (unstable)' if iqr > 0.1 else ''}, parts / whole {spread(ratios)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
