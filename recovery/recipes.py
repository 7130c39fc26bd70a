"""How to train, as plain values: a recipe checks itself, and those of papers say where their numbers are from."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from recovery.errors import TrainingError

SCHEDULES = ("cosine", "cyclic", "constant")
AMP = ("none", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    Attributes:
        steps, epochs: optimiser steps, or passes over the training images; exactly one of them.
        batch_size: images a step, of all processes together.
        micro_batch: images that a process takes through the model at a time, the gradients added up; None: all of its.
        lr: peak learning rate of AdamW, for batches of `lr_batch` images: in larger ones it is larger in proportion.
            lr_batch None: as it is, whatever the batch size. No other number is scaled.
        min_lr: where the schedule ends.
        schedule: cosine, cyclic (linear from lr to min_lr, `cycles` times; oViT Eq. 8) or constant.
        warmup: length of a linear warm-up, in steps or epochs as the recipe's length is; at most a fifth of it.
        weight_decay: of matrices; not of norms, biases, tokens and positions.
        layer_decay: factor on the learning rate from each block to the one before; 1: none.
        backbone_lr: factor on the learning rate of all but the predictors, in models that drop tokens.
        label_smoothing: as usual.
        mixup, cutmix: alpha of their Beta distributions; 0: none. Each batch draws one of the two.
        erasing: probability of an image that a rectangle is filled with noise.
        auto_augment: of image files, a policy as timm writes it, rand-m9-mstd0.5-inc1; "": none.
        drop_path: probability that the last block's branches are left out, rising linearly over the blocks.
        ema: decay a step of a running mean of the weights; 0: none.
        clip_grad: largest gradient norm; 0: any.
        distillation, temperature: weight of the uncut model's soft labels and their temperature.
        hard_distillation: weight of the external teacher's decisions (of the uncut model's if there is none), on the
            distillation token's classifier where the model has one. What the two leave of 1 is the labels' weight.
        amp: none, bf16 or fp16 (with a scaled gradient, CUDA): the precision of multiplications.
        validation: share of the training images that is held out to choose the best weights by; 0: the last are taken.
        evaluate_every: steps between two looks at them; 0: an epoch.
        report_every: steps between two reports.
        seed: of the order of the images, their augmentation, and all that is drawn.
        source: where the numbers are from.

    Raises:
        TrainingError: a number outside its range, with the range.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 64
    micro_batch: int | None = None
    lr: float = 1e-3
    lr_batch: int | None = None
    min_lr: float = 0.0
    schedule: str = "cosine"
    cycles: int = 1
    warmup: int = 10
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    backbone_lr: float = 1.0
    label_smoothing: float = 0.05
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    auto_augment: str = ""
    drop_path: float = 0.0
    ema: float = 0.0
    clip_grad: float = 1.0
    distillation: float = 0.5
    temperature: float = 2.0
    hard_distillation: float = 0.0
    amp: str = "none"
    validation: float = 0.0
    evaluate_every: int = 0
    report_every: int = 20
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        for names, holds, rule in _RULES:
            for name in names:
                value = getattr(self, name)
                if value is None and name in _OPTIONAL:
                    continue
                if not holds(value):
                    raise TrainingError(f"{name} must be {rule}, got {value!r:.80}")
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            raise TrainingError(f"a recipe has either steps or epochs, got {given}")
        if self.distillation + self.hard_distillation > 1 + 1e-9:
            raise TrainingError(
                "distillation and hard_distillation are shares of one loss and at most 1 together, "
                f"got {self.distillation} and {self.hard_distillation}"
            )
        if self.min_lr > self.peak_lr:
            raise TrainingError(f"min_lr {self.min_lr} is above the peak learning rate {self.peak_lr}")
        if self.cycles > 1 and self.schedule != "cyclic":
            raise TrainingError(f"cycles belong to the schedule cyclic, got {self.cycles} with {self.schedule}")
        if self.mixes and self.batch_size % 2:
            raise TrainingError(
                f"mixup and cutmix take images in pairs; batch_size must be even, got {self.batch_size}"
            )

    @property
    def peak_lr(self) -> float:
        """The largest learning rate, scaled to the batch size where the recipe says so."""
        return self.lr if self.lr_batch is None else self.lr * self.batch_size / self.lr_batch

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def resolved(self, images: int) -> "Recipe":
        """For that many training images: all lengths in steps, the learning rate as it is used."""
        epoch = max(images // self.batch_size, 1)  # the last incomplete batch is left out
        unit = 1 if self.epochs is None else epoch
        steps = (self.steps or 0) + (self.epochs or 0) * epoch
        return replace(
            self,
            steps=steps,
            epochs=None,
            warmup=min(self.warmup * unit, steps // 5),
            evaluate_every=self.evaluate_every or epoch,
            lr=self.peak_lr,
            lr_batch=None,
        )

    def lasting(self, *, steps: int | None = None, epochs: int | None = None) -> "Recipe":
        """With another length, of which the warm-up is the share that it is now."""
        changed = replace(self, steps=steps, epochs=epochs)
        length, new = self.steps or self.epochs or 1, steps or epochs or 1
        return replace(changed, warmup=round(self.warmup * new / length))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Recipe":
        """
        Raises:
            TrainingError: an unknown name, or a value outside its range.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in document if name not in known]:
            raise TrainingError(f"a recipe has no {unknown[0]!r:.60}; it has {', '.join(known)}")
        return cls(**document)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_OPTIONAL = ("steps", "epochs", "micro_batch", "lr_batch")
_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("steps", "epochs", "batch_size", "micro_batch", "lr_batch", "cycles", "report_every"),
        lambda v: _whole(v) and v >= 1,
        "at least 1",
    ),
    (("warmup", "evaluate_every", "seed"), lambda v: _whole(v) and v >= 0, "a whole number from 0"),
    (("lr", "temperature"), lambda v: _real(v) and v > 0, "a positive number"),
    (("min_lr", "weight_decay", "mixup", "cutmix", "clip_grad"), lambda v: _real(v) and v >= 0, "a number from 0"),
    (("distillation", "hard_distillation", "erasing"), lambda v: _real(v) and 0 <= v <= 1, "from 0 to 1"),
    (
        ("label_smoothing", "drop_path", "ema", "validation"),
        lambda v: _real(v) and 0 <= v < 1,
        "from 0 to less than 1",
    ),
    (("layer_decay", "backbone_lr"), lambda v: _real(v) and 0 < v <= 1, "above 0 and at most 1"),
    (("schedule",), lambda v: v in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
    (("amp",), lambda v: v in AMP, f"one of {', '.join(AMP)}"),
    (("auto_augment", "source"), lambda v: isinstance(v, str), "a text"),
)


HELD_OUT = 0.05
"""Of the training images, by recipes that promise to end no worse than they start. Published ones train on all."""


def after_refit(steps: int, seed: int = 0) -> Recipe:
    """A short fine-tune that does not undo a refit: towards the uncut model's outputs alone, at a low learning rate,
    and back to what the refit left where images that are held out say so.

    With labels and the learning rate of training, thirty steps lowered what a refit had reached (docs/compress.md).
    """
    return Recipe(
        steps=steps,
        lr=2e-5,
        warmup=steps // 10,
        weight_decay=0.0,
        label_smoothing=0.0,
        distillation=1.0,
        temperature=2.0,
        validation=HELD_OUT,
        seed=seed,
        source="vitfit, docs/compress.md",
    )


_DEIT = Recipe(
    epochs=300,
    batch_size=1024,
    lr=5e-4,
    lr_batch=512,  # Table 9: 0.0005 x batchsize / 512
    min_lr=1e-5,  # their code; the paper is silent
    warmup=5,
    weight_decay=0.05,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    erasing=0.25,
    auto_augment="rand-m9-mstd0.5-inc1",  # Table 9: Rand Augment 9/0.5
    drop_path=0.1,
    clip_grad=0.0,
    distillation=0.0,
    source="Touvron et al., DeiT, ICML 2021, Table 9",
)
"""Without their repeated augmentation. With an external teacher, hard_distillation=0.5 is their Eq. 3."""

_LIGHT1 = Recipe(
    epochs=300,
    batch_size=1024,
    lr=5e-4,  # Table 4 gives it for batches of 1024 and no rule for others
    min_lr=1e-5,
    schedule="cyclic",
    cycles=15,  # 300 epochs, pruning every 20
    warmup=0,  # not in the paper
    weight_decay=0.03,
    label_smoothing=0.1,
    auto_augment="rand-m2-mstd0.5-inc1",  # Table 3: Rand Augment 2/0.5
    clip_grad=1.0,
    distillation=0.0,
    source="Kuznedelev et al., oViT, Tables 3 and 4 (DeiT-Tiny)",
)

RECIPES: dict[str, Recipe] = {
    "short": Recipe(steps=200, lr=5e-4, warmup=20, validation=HELD_OUT, source="vitfit"),
    "after-refit": after_refit(100),
    "int8": Recipe(
        epochs=50,
        lr=1e-4,
        min_lr=1e-5,
        schedule="cyclic",  # in one cycle: linear
        warmup=0,  # this and what follows are not in the paper
        weight_decay=0.0,
        label_smoothing=0.0,
        source="Kuznedelev et al., oViT, Appendix F.1",
    ),
    "nvit": replace(
        _DEIT,  # augmentation, smoothing, weight decay: not known, but its code is made from DeiT's
        min_lr=0.0,  # not known
        # 300 epochs, cosine, no warm-up, AdamW, 32 GPUs of 144 images: as released.
        batch_size=32 * 144,
        lr=2e-4,
        lr_batch=512,
        warmup=0,
        # 0.5 labels + 0.5 teacher's decisions + 1e5 times the KL divergence at T = 20 averaged over images *and* 1000
        # classes. That is 100 KL, or 0.25 of T² KL; of the sum 1.25 the shares are 0.4, 0.4 and 0.2.
        hard_distillation=0.4,
        distillation=0.2,
        temperature=20.0,
        source="Yang et al., NViT, CVPR 2023, released fine-tune; augmentation and weight decay of DeiT",
    ),
    "prune": Recipe(
        steps=100,  # between rounds; how many rounds there are is not the recipe's
        # 1e-4 for their batches of 512, AdamW, constant, weight decay 0.05: as released. Kept at any batch size: the
        # steps are few.
        lr=1e-4,
        schedule="constant",
        warmup=0,
        label_smoothing=0.0,
        # 1e5 times the KL divergence at T = 3 averaged over images and 1000 classes, or 11 of T² KL, beside 1 for
        # DeiT's loss on the labels and on an external teacher, who is not asked here.
        distillation=0.92,
        temperature=3.0,
        source="Yang et al., NViT, CVPR 2023, released pruning",
    ),
    "deit": _DEIT,
    "light1": _LIGHT1,
    "dynamicvit": replace(
        _DEIT,
        epochs=30,
        warmup=0,
        backbone_lr=0.01,  # as released, there after two epochs of none
        # 1 for the labels and 0.5 for the KL divergence, beside the losses of the tokens.
        distillation=1 / 3,
        temperature=1.0,
        source="Rao et al., DynamicViT, NeurIPS 2021, Section 4.1 and Eq. 15",
    ),
    "ovit-deit": replace(
        _LIGHT1,
        weight_decay=0.05,
        drop_path=0.1,
        clip_grad=0.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        mixup=0.8,
        cutmix=1.0,
        erasing=0.25,
        source="Kuznedelev et al., oViT, Tables 3 and 4 (DeiT-Small)",
    ),
}
"""By name. oViT's two are its gradual pruning; the 100 epochs after that it trained with schedule=cosine, lr=5e-5."""
