"""What does attention with unequal QK and V cost: as it is, written out, or padded to the wider of the two?

    $ python benchmarks/attention.py [--quick]

Interleaved rounds on one thread; attention alone, without its projections.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import print_machine, spread

from latency.runtimes import keep_memory
from latency.timer import CpuStopwatch, Effort, time_call

BATCH, HEADS, TOKENS, SCALE = 8, 6, 197, 0.125
WIDTHS = ((64, 64), (32, 64), (64, 32), (48, 64))


def split(x: torch.Tensor, qk: int, v: int) -> list[torch.Tensor]:
    parts = x.split((HEADS * qk, HEADS * qk, HEADS * v), dim=-1)
    return [p.view(BATCH, TOKENS, HEADS, -1).transpose(1, 2) for p in parts]


def plain(x: torch.Tensor, qk: int, v: int) -> torch.Tensor:
    return F.scaled_dot_product_attention(*split(x, qk, v), scale=SCALE)


def written_out(x: torch.Tensor, qk: int, v: int) -> torch.Tensor:
    query, key, value = split(x, qk, v)
    return ((query * SCALE) @ key.transpose(-2, -1)).softmax(dim=-1) @ value


def padded(x: torch.Tensor, qk: int, v: int) -> torch.Tensor:
    width = max(qk, v)
    parts = [F.pad(part, (0, width - part.shape[-1])) for part in split(x, qk, v)]
    return F.scaled_dot_product_attention(*parts, scale=SCALE)[..., :v]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    rounds = 1 if parser.parse_args().quick else 9
    torch.set_num_threads(1)
    print_machine("torch")
    print(f"allocator: {keep_memory()}; {BATCH} images, {HEADS} heads, {TOKENS} tokens; {rounds} rounds of 7 samples")
    ways: dict[str, Callable[[torch.Tensor, int, int], torch.Tensor]] = {
        "as it is": plain,
        "written out": written_out,
        "padded": padded,
    }
    ms = defaultdict(list)
    with torch.inference_mode():
        inputs = {w: torch.randn(BATCH, TOKENS, HEADS * (2 * w[0] + w[1])) for w in WIDTHS}
        for _ in range(rounds):
            for (qk, v), x in inputs.items():
                for name, way in ways.items():

                    def call(way=way, x=x, qk=qk, v=v) -> object:
                        return way(x, qk, v).transpose(1, 2).reshape(BATCH, TOKENS, -1)

                    timing = time_call(call, Effort(samples=7), stopwatch=CpuStopwatch(single_threaded=True))
                    ms[qk, v, name].append(timing.measurement.median_ms)
    for (qk, v, name), values in ms.items():
        print(f"QK {qk:2} V {v:2} {name:12} {spread(values)} ms")


if __name__ == "__main__":
    main()
