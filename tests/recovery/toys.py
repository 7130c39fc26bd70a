"""A tiny model, images and runs that the tests of training share; its main trains one in a process of its own."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from recovery.data import Dataset, TensorSplit
from recovery.loop import finetune
from recovery.recipes import Recipe
from tests.cases import CLASS_TOKEN, generator
from vit.architecture import Architecture
from vit.model import VisionTransformer, initialise

ARCH = CLASS_TOKEN.replace(num_classes=3, in_chans=1, image_size=(8, 8), patch_size=(4, 4))

PLAIN = Recipe(
    steps=12,
    batch_size=16,
    lr=3e-3,
    warmup=2,
    label_smoothing=0.0,
    distillation=0.0,
    report_every=4,
    seed=3,
)
RICH = replace(PLAIN, ema=0.7, mixup=0.8, cutmix=1.0, erasing=0.5, drop_path=0.4, layer_decay=0.8, label_smoothing=0.1)
"""All that is drawn at random, and all that is remembered from step to step."""


def stripes(count=96, noise=0.3, seed=0):
    """Rows, columns or a chequer board, in noise."""
    labels = torch.arange(count) % 3
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    patterns = torch.stack([rows % 2, columns % 2, (rows + columns) % 2]).float() - 0.5
    images = patterns[labels][:, None] + noise * torch.randn(count, 1, 8, 8, generator=generator(seed))
    split = TensorSplit(images, labels)
    return Dataset("stripes", split, split, 3, 1, (8, 8), f"{count}-{noise}-{seed}")


def fresh(arch: Architecture = ARCH, seed: int = 0) -> VisionTransformer:
    return initialise(VisionTransformer(arch), generator(seed))


RUNS = {
    "rich": replace(RICH, validation=0.25, evaluate_every=3, steps=14),
    "shared": replace(
        PLAIN, batch_size=32, ema=0.7, distillation=0.3, validation=0.25, evaluate_every=4, micro_batch=6
    ),
}


def main(name: str, weights: str, run_file: str = "", store: str = "", rank: str = "0", world: str = "1") -> None:
    """Trains a recipe, saving a run file every step, and writes the weights at the end; alone or as one of several."""
    torch.set_num_threads(1)
    if store:
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=int(rank), world_size=int(world))
    model = fresh(seed=int(rank))  # the first one's weights are everybody's
    resume = Path(run_file) if run_file else None
    for report in finetune(model, stripes(), RUNS[name], fresh(seed=9), resume=resume, save_every=1):
        print(report.step, report.loss, report.accuracy, flush=True)
    torch.save(model.state_dict(), weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
