"""What is left of a model's accuracy when units, single weights and tokens are pruned and it is trained to 8 bit?

    $ python benchmarks/together.py [--quick] [--seeds 3] [--data gratings,digits] [--epochs 20] [--workers 2]
        [--keep FOLDER]

The models of oneshot.py, and after each step a fine-tune of as many epochs, with the dense model as teacher, or, for
tokens and 8 bit, the model of the step before:

    units      NViT's criterion, ten rounds, to 60 % of the MACs
    weights    oViT, 75 % of the weights of the blocks' linear layers
    tokens     a fifth of the patch tokens, three times (DynamicViT), the backbone at a hundredth of the predictors'
               learning rate, as published; and all at one rate
    8 bit      of both; exported, and asked in ONNX Runtime

Accuracy on the test images; MACs an image that are not multiplied by a zero or of a token that left; bytes of the file.
"""

import argparse
import itertools
import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from common import add_keep, kept, print_goal, print_machine
from compress import cut_by_nvit, trained
from oneshot import BATCH, GRADIENTS, TASKS, tuned

from api.sparsify_run import Calibrating, mean_loss
from recovery.data import Dataset, load_dataset
from recovery.int8_onnx import export_int8, images_to_compare
from recovery.loop import Recipe, accuracy
from recovery.quantise import calibrate, settled, with_int8
from recovery.recipes import RECIPES
from sparsity.oneshot import Sparsify, sparsify
from vit.checkpoint import Checkpoint, save_checkpoint
from vit.cost import block_macs, macs
from vit.masks import SparsityMask
from vit.model import VisionTransformer
from vit.token_plan import TokenPlan
from vit.tokens import TokenPrunedTransformer, plan_of

UNITS, WEIGHTS = 0.6, 0.75
BACKBONES = {"backbone at 1/100": 0.01, "one rate": 1.0}
MOST_LOST = {"tokens": 1.0, "8 bit": 0.5}
"""Points of accuracy below the step before; the paper's tables have less than one and next to nothing."""

Row = tuple[str, float, float, float]
"""Step, accuracy, MACs and bytes."""


def useful_macs(model: VisionTransformer, masks: SparsityMask | None) -> float:
    """Of one image: less those of tokens that left, and those with a weight that is zero."""
    arch, plan = model.arch, plan_of(model)
    tokens = (arch.tokens,) * arch.depth if plan is None else plan.tokens(arch)
    total = macs(arch) - sum(
        block_macs(arch.tokens, arch.embed_dim, s.num_heads, s.qk_dim, s.v_dim, s.mlp_dim)
        - block_macs(left, arch.embed_dim, s.num_heads, s.qk_dim, s.v_dim, s.mlp_dim)
        for s, left in zip(arch.blocks, tokens, strict=True)
    )
    if masks is not None:
        total -= sum(int((~keep).sum()) * tokens[int(name.split(".")[1])] for name, keep in masks.keep.items())
    return float(total)


def bytes_of(model: VisionTransformer, masks: SparsityMask | None) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_checkpoint(Checkpoint.of(model, ({"step": "benchmark"},), masks), path)
        return path.stat().st_size


def in_onnx_runtime(path: Path, data: Dataset) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = total = 0
    for images, labels in data.test.ordered(250):
        right += int((session.run(None, {"images": images.numpy()})[0].argmax(axis=1) == labels.numpy()).sum())
        total += len(labels)
    return right / total


def steps(epochs: int, quick: bool, task: str, seed: int) -> Iterator[Row]:
    data = load_dataset(TASKS[task].data.format(seed=seed))
    dense = trained(TASKS[task], data, seed, 20 if quick else None)
    short = Recipe(epochs=epochs, batch_size=128, lr=5e-4, warmup=0, seed=seed)

    def row(name: str, model: VisionTransformer, masks: SparsityMask | None = None) -> Row:
        return name, accuracy(model, data.test), useful_macs(model, masks), bytes_of(model, masks)

    yield row("dense", dense)
    cut = tuned(cut_by_nvit(dense, data, UNITS * macs(dense.arch) / 1e6, seed), data, short, None, dense)
    yield row("units", cut)
    batches = Calibrating(gradients=8 if quick else GRADIENTS, batch_size=BATCH, seed=seed).of(data)
    made = sparsify(cut, batches, mean_loss, Sparsify(sparsity=WEIGHTS))
    masks, slow = made.mask, replace(short, lr=1e-4, min_lr=1e-5, schedule="cyclic")
    sparse = tuned(made.model, data, slow, masks, dense)
    yield row("weights", sparse, masks)
    for name, factor in BACKBONES.items():
        fewer = TokenPrunedTransformer.of(sparse, TokenPlan.usual(sparse.arch), torch.Generator().manual_seed(seed))
        recipe = replace(short, lr=1e-3, backbone_lr=factor, distillation=1 / 3, temperature=1.0)
        fewer = tuned(fewer, data, recipe, masks, sparse)
        yield row(f"tokens, {name}", fewer, masks)
        student = with_int8(fewer)
        calibrate(student, (images for images, _ in itertools.islice(data.train.ordered(128), 8)))
        student = tuned(student, data, replace(RECIPES["int8"], epochs=epochs, batch_size=128, seed=seed), masks, fewer)
        images, _ = next(iter(data.test.ordered(64)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            export_int8(student, images_to_compare(student, images), path)
            yield (
                f"8 bit, {name}",
                in_onnx_runtime(path, data),
                useful_macs(settled(student), masks),
                path.stat().st_size,
            )


def one(epochs: int, quick: bool, keep: Path | None, job: tuple[str, int]) -> tuple[str, int, list[Row]]:
    torch.set_num_threads(1)
    task, seed = job
    return task, seed, kept(keep, f"{task}-{seed}", lambda: list(steps(epochs, quick, task, seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default=",".join(TASKS), help=", ".join(TASKS))
    parser.add_argument("--epochs", type=int, default=20, help="after each step")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    add_keep(parser)
    options = parser.parse_args()
    tasks = ["digits"] if options.quick else options.data.split(",")
    seeds, epochs = (1, 1) if options.quick else (options.seeds, options.epochs)
    print_machine("torch", "torchao", "timm", "onnxruntime")
    print(f"seeds 0 to {seeds - 1}, {epochs} epochs after each step")
    found: dict[str, list[list[Row]]] = defaultdict(list)
    jobs = [(task, seed) for seed in range(seeds) for task in tasks]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for task, seed, rows in pool.map(partial(one, epochs, options.quick, options.keep), jobs):
            found[task].append(rows)
            print(f"{task} {seed}: done", flush=True)
    for task in tasks:
        print(f"{task}: accuracy in percent, mean [every seed]; MACs and bytes over the dense model's, mean")
        mean = {}
        for index, (name, *_) in enumerate(found[task][0]):
            rows = [rows[index] for rows in found[task]]
            values = [100 * right for _, right, _, _ in rows]
            work = np.mean([row[2] / rows[0][2] for row, rows in zip(rows, found[task], strict=True)])
            size = np.mean([row[3] / rows[0][3] for row, rows in zip(rows, found[task], strict=True)])
            mean[name] = float(np.mean(values))
            each = " ".join(f"{value:.1f}" for value in values)
            print(f"{task} {name:26} {mean[name]:5.1f} [{each}]  MACs {work:4.0%}  bytes {size:4.0%}")
        for name, factor in BACKBONES.items():
            for step, before in (("tokens", "weights"), ("8 bit", f"tokens, {name}")):
                lost = mean[before] - mean[f"{step}, {name}"]
                label = f"{step}-{'slow-backbone' if factor < 1 else 'one-rate'}".replace(" ", "-")
                print_goal(f"{task}-{label}-loses", lost, MOST_LOST[step], at_least=False)


if __name__ == "__main__":
    main()
