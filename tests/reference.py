"""Slow, obvious truths and small values that tests of several packages share."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latency.estimate import LatencyModel
from latency.grid import Grid
from latency.table import LatencyTable
from search.saliency import Saliency
from tests.tables import GRID, mesh, random_saliency, table_of  # noqa: F401 - shared from here, too
from vit.architecture import BLOCK_UNITS, SIZE_FIELD, Architecture, Unit
from vit.groups import EMBED, Group, groups, resize, size
from vit.model import VisionTransformer

Array = npt.NDArray[np.float64]


def random_table(seed: int, grid: Grid = GRID, arch: Architecture | None = None, **kwargs: object) -> LatencyTable:
    """Times without any order: a bigger block may well be faster."""
    draw = np.random.default_rng(seed)
    return table_of(draw.uniform(0.1, 2.0, grid.shape), grid, arch=arch, **kwargs)  # type: ignore[arg-type]


def monotone_table(seed: int, grid: Grid = GRID, arch: Architecture | None = None) -> LatencyTable:
    """Times that grow along every axis, in random steps."""
    times = np.random.default_rng(seed).uniform(0.05, 1.0, grid.shape)
    for axis in range(times.ndim):
        times = np.cumsum(times, axis=axis)
    return table_of(times / times.mean(), grid, arch=arch)


def multilinear(seed: int) -> Callable[[Array], Array]:
    """A random function of five sizes that is linear in each of them and positive for positive sizes."""
    weights = np.random.default_rng(seed).uniform(0.1, 1.0, (2,) * 5)

    def function(points: Array) -> Array:
        total = np.zeros(points.shape[:-1])
        for powers in itertools.product((0, 1), repeat=5):
            total += weights[powers] * np.prod(points ** np.array(powers), axis=-1)
        return total

    return function


def sizes_in_steps(largest: int, step: int, low: int, high: int) -> list[int]:
    """What search may cut a group to, said once more: multiples of `step`, and `largest` itself, within the bounds."""
    return [n for n in range(1, largest + 1) if (n % step == 0 or n == largest) and low <= n <= high]


def every_architecture(
    arch: Architecture, latency: LatencyModel, steps: Mapping[Unit, int]
) -> Iterator[tuple[dict[Group, int], Architecture]]:
    """All that `arch` can be cut to in these steps within the bounds of a table."""
    units = [EMBED, *(Group(unit, block) for block in range(arch.depth) for unit in BLOCK_UNITS)]
    choices = [
        sizes_in_steps(size(arch, group), steps[group.unit], *latency.bounds[SIZE_FIELD[group.unit]]) for group in units
    ]
    for combination in itertools.product(*choices):
        sizes = dict(zip(units, combination, strict=True))
        yield sizes, resize(arch, sizes)


def slow_kept(saliency: Saliency, sizes: Mapping[Group, int]) -> float:
    """Saliency that stays when the largest `sizes[group]` entries of every group stay."""
    return sum(sum(sorted(saliency.values[group].tolist(), reverse=True)[:count]) for group, count in sizes.items())


# --- what belongs to a unit ---------------------------------------------------------------------------------------


def slices(arch: Architecture, group: Group, unit: int) -> list[tuple[str, Any]]:
    """(parameter, index) of everything that leaves with a unit of a distilled model with registers and layer scale,
    parameter by parameter from timm's layout."""
    every = slice(None)
    if group == EMBED:
        found = [("patch_embed.proj.weight", unit), ("patch_embed.proj.bias", unit)]
        found += [(name, (every, every, unit)) for name in ("cls_token", "dist_token", "reg_token", "pos_embed")]
        found += [("norm.weight", unit), ("norm.bias", unit)]
        found += [("head.weight", (every, unit)), ("head_dist.weight", (every, unit))]
        for b in range(arch.depth):
            found += [(f"blocks.{b}.norm{n}.{kind}", unit) for n in (1, 2) for kind in ("weight", "bias")]
            found += [(f"blocks.{b}.{name}.weight", (every, unit)) for name in ("attn.qkv", "mlp.fc1")]
            found += [(f"blocks.{b}.{n}.{k}", unit) for n in ("attn.proj", "mlp.fc2") for k in ("weight", "bias")]
            found += [(f"blocks.{b}.ls{n}.gamma", unit) for n in (1, 2)]
        return found
    b, shape = group.block, arch.blocks[group.block]
    heads, qk, v = shape.num_heads, shape.qk_dim, shape.v_dim
    if group.unit is Unit.MLP:
        return [(f"blocks.{b}.mlp.fc1.{kind}", unit) for kind in ("weight", "bias")] + [
            (f"blocks.{b}.mlp.fc2.weight", (every, unit))
        ]
    rows, columns = {
        Unit.HEAD: (
            [
                *range(unit * qk, (unit + 1) * qk),
                *range((heads + unit) * qk, (heads + unit + 1) * qk),
                *range(2 * heads * qk + unit * v, 2 * heads * qk + (unit + 1) * v),
            ],
            [*range(unit * v, (unit + 1) * v)],
        ),
        Unit.QK: ([half * heads * qk + head * qk + unit for half in (0, 1) for head in range(heads)], []),
        Unit.V: (
            [2 * heads * qk + head * v + unit for head in range(heads)],
            [head * v + unit for head in range(heads)],
        ),
    }[group.unit]
    found = [(f"blocks.{b}.attn.qkv.{kind}", row) for row in rows for kind in ("weight", "bias")]
    return found + [(f"blocks.{b}.attn.proj.weight", (every, column)) for column in columns]


def open_gates(arch: Architecture, count: int) -> dict[Group, Tensor]:
    """Ones, (B, units): a gate for every unit and image."""
    return {group: torch.ones(count, size(arch, group), dtype=torch.float64) for group in groups(arch)}


def gated(model: VisionTransformer, batch: Tensor, gates: Mapping[Group, Tensor], *, qk: str = "query") -> Tensor:
    """The model written out, with a gate on all that a unit puts out.

    Args:
        gates: (B, units) each.
        qk: where the gates of QK sit: on the `query`, on the `key`, or on the query `before norm`.
    """
    arch = model.arch
    stream = gates[EMBED][:, None, :]
    x = stream * model.embed(batch)
    for index, block in enumerate(model.blocks):
        shape, attention = arch.blocks[index], block.attn
        gate = {unit: gates[Group(unit, index)] for unit in BLOCK_UNITS}
        channel = gate[Unit.QK][:, None, None, :]
        widths = [shape.num_heads * width for width in (shape.qk_dim, shape.qk_dim, shape.v_dim)]
        query, key, value = (  # B H N channels
            piece.unflatten(2, (shape.num_heads, -1)).transpose(1, 2)
            for piece in attention.qkv(block.norm1(x)).split(widths, dim=2)
        )
        query = attention.q_norm(channel * query if qk == "before norm" else query)
        key = attention.k_norm(key)
        query = channel * query if qk == "query" else query
        key = channel * key if qk == "key" else key
        value = gate[Unit.HEAD][:, :, None, None] * gate[Unit.V][:, None, None, :] * value
        mixed = (arch.scales[index] * query @ key.mT).softmax(dim=-1) @ value
        x = x + stream * block.ls1(attention.proj(mixed.transpose(1, 2).flatten(2)))
        hidden = gate[Unit.MLP][:, None, :] * block.mlp.act(block.mlp.fc1(block.norm2(x)))
        x = x + stream * block.ls2(block.mlp.fc2(hidden))
    return model.classify(x)
