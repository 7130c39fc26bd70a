"""Is a table's unit right? A table a thousand times off implies a machine that does not exist.

A time is judged by the multiply-adds a second that it implies,

    speed = block_macs(tokens, sizes) · batch / time          [MAC/s]

against what machines can do. No block may be faster than the device can multiply; the *largest* block, where overhead
and memory weigh least, may not be slower than the device's least plus a fixed overhead; and no block may end sooner
than one kernel can start and end. The more the device's name says, the closer the bounds:

| device's name | at most | at least | a thousand times too long, too short |
| --- | --- | --- | --- |
| a GPU of `PEAK_TFLOPS` | 2 x its peak (2:4 sparsity) | a thousandth of its peak | both refused |
| ends in `-{n}t`: CPU, n threads | n x 3e11 in fp32, else 4e12 | n x 1e8, 1e9 of AMD and Intel | both refused in fp32 |
| anything else | 2.3e15, 9.2e15 below 16 bits (B200) | 1e8 (Raspberry Pi 3, one core) | one of them as a rule |

Below 16 bits a GPU's peak counts four times.

**What cannot be decided.** Where the name says nothing, a V100 table a thousand times too long is a fair table of a
small CPU, and a CPU table a thousand times too short is one of a GPU: both pass. So does a table of blocks so small
that time is all overhead, unless it falls below the shortest kernel or above the longest overhead; and one of a slow
CPU in 16 bits. A factor of 10 or 60 can be seen nowhere. Times outside the blocks are judged by the patch embedding
alone, and against the largest block.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latency.errors import TableError
from latency.interop.common import described
from latency.table import LatencyTable
from latency.target import Target
from vit.cost import block_macs

Array = npt.NDArray[np.float64]

PEAK_TFLOPS: Mapping[str, float] = {
    "p100": 21.2,
    "v100": 125,
    "t4": 65,
    "a10": 125,
    "a10g": 70,
    "a30": 165,
    "a40": 150,
    "a100": 312,
    "l4": 121,
    "l40": 181,
    "l40s": 362,
    "h100": 989,
    "h200": 989,
    "b200": 2250,
    "rtx-2080": 81,
    "rtx-3060": 51,
    "rtx-3070": 81,
    "rtx-3080": 119,
    "rtx-3090": 142,
    "rtx-4070": 117,
    "rtx-4080": 195,
    "rtx-4090": 330,
    "rtx-5090": 419,
    "mi250x": 383,
    "mi300x": 1307,
}
"""Dense 16-bit TFLOP/s (two to a MAC) from the makers' data sheets, by a part of the device's name. Bounds are far
wider than what variants of one name differ by."""

_SIXTEEN_BITS_OR_MORE = ("fp32", "tf32", "amp", "bf16", "fp16")
_ANY_DEVICE = (1e8, 2.3e15)
_CPU_THREAD = {"fp32": (1e8, 3e11), "apple": (1e9, 4e12), "": (1e8, 4e12)}
"""MAC/s of one thread: from a Raspberry Pi 3 to two AVX-512 units at 5 GHz in fp32, to matrix units (AMX, SME) in less;
Apple's have them for fp32 too."""
_X86 = ("amd", "epyc", "ryzen", "intel", "xeon", "core-i")
"""Parts of the names of processors whose threads make at least 1e9 MAC/s: four a cycle, at a quarter of a gigahertz."""
_SHORTEST_MS = 1e-3
"""One kernel, started and ended; a block is several."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a device can do.

    Attributes:
        slowest, fastest: MAC/s of the largest block, of any block.
        overhead_ms: that a block may take however small it is.
        of: what the bounds were taken from.
    """

    slowest: float
    fastest: float
    overhead_ms: float
    of: str


def speeds(target: Target) -> Speeds:
    """The closest bounds that the names of device and dtype allow."""
    narrow = 1.0 if target.dtype in _SIXTEEN_BITS_OR_MORE else 4.0
    known = [name for name in PEAK_TFLOPS if f"-{name}-" in f"-{target.device}-"]
    if known:
        peak = PEAK_TFLOPS[known[0]] * 1e12 / 2
        return Speeds(narrow * peak / 1000, 2 * narrow * peak, 10.0, f"a {known[0]}")
    if match := re.search(r"-(\d{1,4})t$", target.device):
        threads = max(int(match[1]), 1)
        least, most = _CPU_THREAD["apple" if "apple" in target.device else "fp32" if target.dtype == "fp32" else ""]
        if any(name in target.device for name in _X86):
            least = max(least, 1e9)
        return Speeds(threads * least, threads * most, 100.0, f"{threads} CPU thread(s)")
    return Speeds(_ANY_DEVICE[0], narrow * _ANY_DEVICE[1], 100.0, "any device")


def check_speed(table: LatencyTable) -> None:
    """
    Raises:
        TableError: a time that no device of that name can have; the point is named.
    """
    bounds = speeds(table.target)
    points = np.stack(np.meshgrid(*table.grid.axes, indexing="ij"), axis=-1).astype(np.float64)
    macs = table.target.batch * block_macs(table.target.tokens, *np.moveaxis(points, -1, 0))
    speed = macs / (table.block_ms / 1e3)
    fastest = int(speed.argmax())
    if speed.flat[fastest] > bounds.fastest:
        embed, b = table.grid.point(fastest)
        raise TableError(
            f"{described((embed, b.num_heads, b.qk_dim, b.v_dim, b.mlp_dim))} in {table.block_ms.flat[fastest]:g} ms "
            f"would be {speed.flat[fastest]:.2g} MAC/s for {_loads(table)}, and {bounds.of} does at most "
            f"{bounds.fastest:.2g}; {_ASK}"
        )
    shortest = int(table.block_ms.argmin())
    if table.block_ms.flat[shortest] < _SHORTEST_MS:
        embed, b = table.grid.point(shortest)
        raise TableError(
            f"{described((embed, b.num_heads, b.qk_dim, b.v_dim, b.mlp_dim))} takes "
            f"{table.block_ms.flat[shortest]:g} ms, less than the {_SHORTEST_MS:g} ms of any kernel; {_ASK}"
        )
    largest_ms = float(table.block_ms.flat[-1])
    longest_ms = bounds.overhead_ms + 1e3 * float(macs.flat[-1]) / bounds.slowest
    if largest_ms > longest_ms:
        embed, b = table.grid.point(len(table.grid) - 1)
        raise TableError(
            f"{described((embed, b.num_heads, b.qk_dim, b.v_dim, b.mlp_dim))} in {largest_ms:g} ms would be "
            f"{float(speed.flat[-1]):.2g} MAC/s for {_loads(table)}, and {bounds.of} takes at most "
            f"{longest_ms:.3g} ms; {_ASK}"
        )
    _check_outside(table, bounds)


def _check_outside(table: LatencyTable, bounds: Speeds) -> None:
    """Zero passes: it says that nothing outside the blocks is counted."""
    height, width = table.outside.image_size
    embed = np.array(table.grid.embed_dim, dtype=np.float64)
    macs = table.target.batch * height * width * table.outside.in_chans * embed
    longest_ms = 100 * float(table.block_ms.max()) + bounds.overhead_ms
    for size, ms, count in zip(table.grid.embed_dim, table.outside_ms.tolist(), macs.tolist(), strict=True):
        if ms > longest_ms or (ms > 0 and count / (ms / 1e3) > bounds.fastest):
            raise TableError(
                f"outside_ms at embed_dim={size} is {ms:g} ms, which {bounds.of} cannot have beside blocks of up to "
                f"{float(table.block_ms.max()):g} ms; {_ASK}"
            )


_ASK = "are the unit (ms, s, us), the batch, the tokens and the device right?"


def _loads(table: LatencyTable) -> str:
    return f"batch {table.target.batch} of {table.target.tokens} tokens"
