"""How many images a second does the trainer train with, beside a bare PyTorch loop?

    $ python benchmarks/throughput.py [--quick] [--device cpu|cuda] [--amp none|bf16|fp16]

The same model, images in the same order, AdamW, rates, loss and clipping; by turns in one run, a round each, on one
thread of a CPU. Plaids of 32 x 32, EMB 192 and 4 blocks; EMB 384 and 12 blocks on a GPU. Both have to end with the
same weights.
"""

import argparse
import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from common import print_goal, print_machine, spread

from latency.runtimes import find_device
from recovery.data import Dataset, plaids
from recovery.recipes import Recipe
from recovery.training import Trainer
from vit.architecture import Architecture, BlockShape
from vit.model import VisionTransformer, initialise


def small(data: Dataset, embed_dim: int, depth: int) -> Architecture:
    return Architecture(
        image_size=data.image_size,
        patch_size=(4, 4),
        in_chans=data.in_chans,
        num_classes=data.num_classes,
        embed_dim=embed_dim,
        blocks=(BlockShape(embed_dim // 64 or 1, 64, 64, 4 * embed_dim),) * depth,
    )


def bare(model: VisionTransformer, data: Dataset, recipe: Recipe, every: int) -> Iterator[None]:
    """The loop that anybody would write; pauses every so many steps."""
    device = next(model.parameters()).device
    plain = [p for name, p in model.named_parameters() if p.ndim <= 1 or "token" in name or name == "pos_embed"]
    rest = [p for name, p in model.named_parameters() if not (p.ndim <= 1 or "token" in name or name == "pos_embed")]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": recipe.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    steps = recipe.steps or 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
    dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.amp]
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
    model.train()
    step = 0
    for epoch in range(steps):
        for images, labels in data.train.shuffled(recipe.batch_size, recipe.seed * 100_003 + epoch, augment=True):
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = model(images.to(device))
            loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=recipe.label_smoothing)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            step += 1
            if step % every == 0:
                yield
            if step == steps:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, few steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", default="none")
    given = parser.parse_args()
    on_gpu = given.device == "cuda"
    find_device(given.device)
    torch.set_num_threads(1)
    rounds, every = (3, 4) if given.quick else (9, 50 if on_gpu else 8)
    batch = 16 if given.quick else 256 if on_gpu else 32
    recipe = Recipe(
        steps=(rounds + 1) * every, batch_size=batch, warmup=0, distillation=0.0, amp=given.amp, report_every=every
    )
    data = plaids(train=64 * batch, test=1)
    arch = small(data, 64 if given.quick else 384 if on_gpu else 192, 2 if given.quick else 12 if on_gpu else 4)
    print_machine("torch", "timm")
    print(
        f"EMB {arch.embed_dim}, {arch.depth} blocks, batch {batch}, amp {given.amp}; {rounds} rounds of {every} steps"
    )

    models = [initialise(VisionTransformer(arch), torch.Generator().manual_seed(0)).to(given.device) for _ in range(2)]
    trainer, loop = Trainer(models[0], data, recipe), bare(models[1], data, recipe, every)

    def timed(ours: bool) -> float:
        started = time.perf_counter()
        if ours:
            for _ in trainer.train(trainer.step + every):
                pass
        else:
            next(loop)
        if on_gpu:
            torch.cuda.synchronize()
        return every * batch / (time.perf_counter() - started)

    found: dict[bool, list[float]] = {True: [], False: []}
    for index in range(rounds + 1):  # the first one warms up
        for ours in (True, False) if index % 2 else (False, True):
            rate = timed(ours)
            if index:
                found[ours].append(rate)
    for name, ours in (("bare loop", False), ("trainer", True)):
        print(f"{name:10} {spread(found[ours])} images/s")
    ratios = sorted(ours / theirs for ours, theirs in zip(found[True], found[False], strict=True))
    print(f"trainer over bare loop, round by round: {spread(ratios)}")
    weights = (model.state_dict().values() for model in models)
    apart = max(float((a - b).abs().max()) for a, b in zip(*weights, strict=True))
    print(f"weights at the end differ by {apart:.1e} at most")
    print_goal("trainer-over-bare-loop", ratios[len(ratios) // 2], 0.95, at_least=True)


if __name__ == "__main__":
    main()
