"""What does an RMS norm cost beside LayerNorm, in each runtime?

    $ python benchmarks/norms.py [--quick]

Whole models of EMB 192 and of EMB 384 with either norm, one CPU thread, timed in interleaved rounds in every runtime
that runs here in fp32. compress gives its models
LayerNorm again either way, for one channel of the stream.
"""

import argparse

import numpy as np
from common import print_goal, print_machine, spread

from latency.bench import random_weights
from latency.errors import TargetError
from latency.runtimes import RUNTIMES, find_device, local_target, prepare
from latency.timer import Effort, time_call
from vit.architecture import Architecture, BlockShape
from vit.model import VisionTransformer
from vit.presets import preset

SMALL = Architecture(
    image_size=(32, 32),
    patch_size=(8, 8),
    in_chans=3,
    num_classes=10,
    embed_dim=64,
    blocks=(BlockShape(2, 32, 32, 128),) * 2,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one round, not compiled")
    quick = parser.parse_args().quick
    archs = {"EMB 64": SMALL} if quick else {"EMB 192": preset("deit-t"), "EMB 384": preset("deit-s")}
    batch, rounds = (2, 1) if quick else (4, 7)
    device = find_device()
    print_machine("torch", "onnxruntime")
    print(f"batch {batch}, fp32, {rounds} rounds of 7 samples, RMS over LayerNorm; median [range]")
    ratios: dict[str, list[float]] = {}
    with device.active():
        for name, arch in archs.items():
            for runtime in RUNTIMES:
                if quick and runtime == "compile":
                    continue
                try:
                    target = local_target(device, runtime, "fp32", batch, arch.tokens)
                except TargetError as error:
                    print(f"left out: {error}")
                    continue
                calls = [
                    prepare(
                        target,
                        device,
                        [random_weights(VisionTransformer(arch.replace(norm=norm)))],
                        (arch.in_chans, *arch.image_size),
                    )
                    for norm in ("layer", "rms")
                ]
                found = []
                for _ in range(rounds):
                    layer, rms = (
                        time_call(call, Effort(warmup=2), stopwatch=device.stopwatch()).measurement.median_ms
                        for call in calls
                    )
                    found.append(rms / layer)
                print(f"{name} {runtime:11} {spread(found)}", flush=True)
                ratios.setdefault(runtime, []).append(float(np.median(found)))
    for runtime, medians in ratios.items():
        print_goal(f"rms-over-layer-norm-{runtime}", max(medians), 1.0, at_least=False)


if __name__ == "__main__":
    main()
