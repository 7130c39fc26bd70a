"""A small library whose latencies are known in closed form.

    block_ms = 0.1 + 0.01 E + 0.2 H + 0.03 QK + 0.02 V + 0.005 M        outside_ms = 0.5 + 0.02 E

Interpolation reproduces an affine function exactly, so a test can write the truth down.
"""

from pathlib import Path

import numpy as np

from latency.grid import Grid
from latency.storage import save_table
from latency.table import LatencyTable, Provenance
from latency.target import Target
from search.saliency import save_saliency
from tests.tables import mesh, random_saliency, table_of
from vit.architecture import Architecture, BlockShape
from vit.presets import preset

SLOPES = (0.01, 0.2, 0.03, 0.02, 0.005)

TINY = Architecture(
    image_size=(16, 16),
    patch_size=(8, 8),
    in_chans=3,
    num_classes=5,
    embed_dim=16,
    blocks=(BlockShape(2, 8, 8, 16), BlockShape(2, 8, 4, 32)),
)
"""Five tokens; small enough to try every way to cut it."""

TINY_STEPS = {"embed_dim": 8, "num_heads": 1, "qk_dim": 4, "v_dim": 4, "mlp_dim": 16}

TINY_GRID = Grid((8, 16), (1, 2, 3), (4, 8), (4, 8), (8, 16, 32))
IMAGENET_GRID = Grid((64, 384, 768), (1, 12), (8, 64), (8, 64), (16, 3072))

MEASURED = Provenance("measured", "2026-01-01T00:00:00+00:00", "made up for a test")
MODELLED = Provenance(
    "modelled",
    "2026-01-01T00:00:00+00:00",
    "made up for a test",
    quality={"held_out_error": 0.04},
    interval=(0.95, 1.06),
)

TINY_TARGET = Target("testbed", "eager", "fp32", 2, TINY.tokens)
V100 = Target("v100", "eager", "amp", 256, 197)


DIGITS = Architecture(
    image_size=(16, 16),
    patch_size=(4, 4),
    in_chans=1,
    num_classes=10,
    embed_dim=32,
    blocks=(BlockShape(2, 16, 16, 64),) * 2,
)
"""Takes scikit-learn's digits."""

GRATINGS = DIGITS.replace(image_size=(24, 24), num_classes=16, embed_dim=64)
"""Takes gratings, and longer."""


def block_ms(embed_dim: int, block: BlockShape) -> float:
    sizes = (embed_dim, block.num_heads, block.qk_dim, block.v_dim, block.mlp_dim)
    return 0.1 + sum(slope * size for slope, size in zip(SLOPES, sizes, strict=True))


def outside_ms(embed_dim: int) -> float:
    return 0.5 + 0.02 * embed_dim


def model_ms(arch: Architecture) -> float:
    return outside_ms(arch.embed_dim) + sum(block_ms(arch.embed_dim, block) for block in arch.blocks)


def affine_table(grid: Grid, target: Target, arch: Architecture, provenance: Provenance = MEASURED) -> LatencyTable:
    return table_of(
        0.1 + mesh(grid) @ np.array(SLOPES),
        grid,
        outside_ms=np.array([outside_ms(embed) for embed in grid.embed_dim]),
        arch=arch,
        target=target,
        provenance=provenance,
    )


def tiny_table(provenance: Provenance = MEASURED) -> LatencyTable:
    return affine_table(TINY_GRID, TINY_TARGET, TINY, provenance)


def fill(root: Path) -> Path:
    """A measured table of a tiny model's tokens, a modelled one of DeiT's, and the tiny model's saliency."""
    save_table(tiny_table(), root / "tables" / "testbed.parquet")
    save_table(affine_table(IMAGENET_GRID, V100, preset("deit-s"), MODELLED), root / "tables" / "v100.parquet")
    save_saliency(random_saliency(TINY, seed=0), root / "saliencies" / "tiny.safetensors")
    return root


def save_model(arch: Architecture, path: Path, lineage: tuple[dict[str, object], ...] = ()) -> None:
    """A checkpoint of random weights, the same ones every time."""
    import torch

    from vit.checkpoint import Checkpoint, save_checkpoint
    from vit.model import VisionTransformer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(Checkpoint.of(VisionTransformer(arch), lineage), path)
