"""How large the demo is, and the folder that belongs to one such plan."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vit.errors import VitfitError
from vit.files import write_text

COMPRESS = "compress"
"""The method of the main line, in the demo's tables; the others are named by their criterion."""


class DemoError(VitfitError, ValueError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """Sizes of the demo.

    Attributes:
        embed_dim, depth, num_heads: of the model.
        train_steps, finetune_steps: optimiser steps.
        images: that compress reads at most.
        batch: images at a time in the latency target.
        planes: sizes per axis of the latency table.
        rounds: visits of every point of the table.
        budgets: shares of the whole model's latency.
        criteria: for comparison: the model as it is, scored, cut to the same budgets in one shot, then fine-tuned.
    """

    embed_dim: int = 128
    depth: int = 6
    num_heads: int = 4
    train_steps: int = 700
    finetune_steps: int = 100
    images: int = 1024
    batch: int = 64
    planes: tuple[int, ...] = (5, 4, 3, 3, 5)
    rounds: int = 3
    budgets: tuple[float, ...] = (0.6, 0.45, 0.25)
    criteria: tuple[str, ...] = ("nvit", "magnitude")


FULL = DemoPlan()
QUICK = DemoPlan(
    embed_dim=64,
    depth=2,
    num_heads=2,
    train_steps=60,
    finetune_steps=20,
    images=256,
    batch=32,
    planes=(2, 2, 2, 2, 2),
    rounds=2,
    budgets=(0.6, 0.5),
    criteria=("nvit",),
)


def claim(folder: Path, plan: DemoPlan) -> None:
    """Take an empty folder, or one that a demo of the same plan began.

    Raises:
        DemoError: it holds something else.
    """
    document = json.loads(json.dumps(asdict(plan)))
    path = folder / "plan.json"
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != document:
            raise DemoError(f"{folder} holds a demo of another size; choose another --out, or delete the folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise DemoError(f"{folder} is not empty and holds no demo; choose another --out")
    write_text(path, json.dumps(document, indent=2) + "\n")
