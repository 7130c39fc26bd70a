"""What a reader of the docs has before the first command: images, a model, tables and saliencies, all tiny."""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from latency.grid import Grid
from latency.interop import export_table
from latency.storage import save_table
from latency.table import LatencyTable
from latency.target import Target
from search.saliency import save_saliency
from tests.tables import mesh, random_saliency, table_of
from vit.architecture import Architecture, BlockShape
from vit.checkpoint import Checkpoint, save_checkpoint
from vit.model import VisionTransformer
from vit.presets import preset

TINY = Architecture(
    image_size=(16, 16),
    patch_size=(4, 4),
    in_chans=3,
    num_classes=4,
    embed_dim=32,
    blocks=(BlockShape(2, 16, 16, 64),) * 2,
)
DEEPER = TINY.replace(blocks=TINY.blocks[:1] * 6)
"""A rule with ends and a middle needs so many blocks."""

GRID = Grid((8, 16, 24, 32), (1, 2), (4, 8, 16), (4, 8, 16), (8, 16, 32, 64))
"""Covers all that can be cut out of TINY."""


def make_ready(folder: Path) -> None:
    """`path/to/images`, `dense.safetensors`, `table.*`, `theirs.json`, ..., and `library/` with some of them."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for name in ("a", "b", "c", "d"):
            place = folder / "path/to/images" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{index}.png")
    torch.manual_seed(0)
    normalised = ({"step": "import", "mean": [0.5] * 3, "std": [0.5] * 3},)
    save_checkpoint(Checkpoint.of(VisionTransformer(TINY), normalised), folder / "dense.safetensors")
    (folder / "tiny.json").write_text(TINY.to_json())
    (folder / "my-model.json").write_text(preset("deit-t").to_json())
    (folder / "small-grid.json").write_text(
        '{"embed_dim": [16, 24, 32], "num_heads": [1, 2], "qk_dim": [4, 16], "v_dim": [4, 16], "mlp_dim": [8, 32, 64]}'
    )
    for seed in range(2):
        save_saliency(random_saliency(DEEPER, seed), folder / f"s{seed}.safetensors")
    for form in ("csv", "parquet"):
        export_table(timed("testbed", 32, 40), folder / f"table.{form}", form)
    for name in ("theirs.json", "nvit.json"):
        export_table(timed("testbed", 256, 40), folder / name, "nvit")

    library = folder / "library"
    for part in ("tables", "models", "saliencies", "datasets"):
        (library / part).mkdir(parents=True)
    for batch, whole_ms in ((1, 100), (8, 54), (64, 30)):
        table = timed("amd-epyc-1t", batch, whole_ms)
        save_table(table, library / "tables" / f"{table.target.slug}.parquet")
    for name in ("dense", "small"):
        shutil.copy(folder / "dense.safetensors", library / "models" / f"{name}.safetensors")
    save_saliency(random_saliency(TINY, 0), library / "saliencies" / "gates.safetensors")
    shutil.copytree(folder / "path/to/images", library / "datasets" / "flowers")


def timed(device: str, batch: int, whole_ms: float) -> LatencyTable:
    """A made-up table on which TINY takes so many milliseconds, in proportion to the multiply-adds of its blocks."""
    embed, heads, qk, v, mlp = np.moveaxis(mesh(GRID), -1, 0)
    cost = embed * heads * (qk + v) + embed * mlp + 100
    shape = TINY.blocks[0]
    whole = TINY.depth * (32 * shape.num_heads * (shape.qk_dim + shape.v_dim) + 32 * shape.mlp_dim + 100)
    outside_ms = 0.01 * whole_ms * np.array(GRID.embed_dim) / 32
    target = Target(device, "eager", "fp32", batch, TINY.tokens)
    return table_of(0.99 * whole_ms / whole * cost, GRID, outside_ms=outside_ms, arch=TINY, target=target)
