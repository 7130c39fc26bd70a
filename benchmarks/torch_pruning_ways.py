"""A trained model, pruned by Torch-Pruning in several ways: what `peers.py` compares compress with."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from api.compress import Calibration
from latency.estimate import LatencyModel, estimate
from vit.architecture import Architecture
from vit.model import VisionTransformer
from vit.timm_models import from_timm

STEP_PERCENT, LAST_PERCENT = 5, 75
"""Of many steps. 1.6.1 fails at a step that is to remove no head, so each has to remove one of at least 20."""
PERCENT = (*range(10, 100, 10), 95)
"""Pruning ratios to look at first."""

Grads = Mapping[str, Tensor]


class Setting(NamedTuple):
    """One way to prune.

    Attributes:
        criterion: one of GRADIENTS.
        attention: what leaves it: whole `heads` by the ratio, `channels` of heads by the ratio, or `both`, heads by
            half of it. Q, K and V are cut alike, and all heads of a block to one size: other sizes it cannot give.
        stream: `cut` like everything else, or left `whole` (the bottleneck of its examples).
        round_to: sizes are multiples of this; None: any.
        steps: `one` shot, or `many` of STEP_PERCENT, with gradients of the model as it then is.
    """

    criterion: str
    attention: str
    stream: str
    round_to: int | None
    steps: str

    def __str__(self) -> str:
        return f"{self.criterion:10} {self.attention:8} {self.stream:6} {self.round_to or 'any':>3}  {self.steps:4}"


WAYS: tuple[tuple[str, str, int | None, str], ...] = (
    ("heads", "cut", 8, "one"),
    ("heads", "cut", 8, "many"),
    ("heads", "whole", 8, "one"),
    ("both", "whole", 8, "one"),
    ("channels", "cut", 8, "one"),
    ("heads", "cut", None, "one"),
)
"""Attention, stream, round_to and steps of each criterion's settings."""


def as_timm(model: VisionTransformer) -> TimmVisionTransformer:
    """The same weights in timm's model."""
    arch, shape = model.arch, model.arch.blocks[0]
    theirs = TimmVisionTransformer(
        img_size=arch.image_size,
        patch_size=arch.patch_size,
        in_chans=arch.in_chans,
        num_classes=arch.num_classes,
        embed_dim=arch.embed_dim,
        depth=arch.depth,
        num_heads=shape.num_heads,
        mlp_ratio=shape.mlp_dim / arch.embed_dim,
    )
    theirs.load_state_dict(model.state_dict())
    for block in theirs.blocks:
        block.attn.fused_attn = False  # vmap has no rule for the fused kernel
    return theirs.eval()


def mean_gradients(model: nn.Module, calibration: Calibration) -> Grads:
    """Of the loss, what the Taylor criterion reads."""
    for images, labels in calibration.batches():
        (F.cross_entropy(model(images), labels, reduction="sum") / calibration.images).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def mean_squared_gradients(model: nn.Module, calibration: Calibration) -> Grads:
    """Of every image's loss, what the Hessian criterion reads."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: Grads, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    of_each = vmap(grad(loss), in_dims=(None, 0, 0))
    mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for images, labels in calibration.batches():
        for name, gradient in of_each(weights, images, labels).items():
            mean[name] += gradient.square().sum(dim=0) / calibration.images
    return mean


GRADIENTS: Mapping[str, Callable[[nn.Module, Calibration], Grads]] = {
    "taylor": mean_gradients,
    "taylor-sum": mean_gradients,
    "hessian": mean_squared_gradients,
}


class Scored(NamedTuple):
    """A model with what a criterion reads of it, by parameter."""

    model: TimmVisionTransformer
    grads: Grads

    def give(self) -> None:
        """Lay the gradients where Torch-Pruning looks for them."""
        for name, gradient in self.grads.items():
            self.model.get_parameter(name).grad = gradient.clone()


@dataclass
class Peer:
    """A trained model, to be pruned. Ratios are in percent.

    Attributes:
        grads: what each criterion reads.
        few: images that it is scored on again, where it is cut in steps.
    """

    model: VisionTransformer
    grads: Mapping[str, Grads]
    few: Calibration
    archs: dict[tuple[Setting, int], Architecture] = field(default_factory=dict)
    walks: dict[Setting, list["Scored"]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: VisionTransformer, calibration: Calibration, few: Calibration) -> "Peer":
        theirs = as_timm(model)
        images, _ = next(iter(calibration.batches()))
        with torch.no_grad():
            torch.testing.assert_close(theirs(images), model(images))
        grads = {}
        for criterion, gradients in GRADIENTS.items():
            theirs.zero_grad()
            grads[criterion] = gradients(theirs, calibration)
        return cls(model, grads, few)

    def arch(self, setting: Setting, percent: int) -> Architecture:
        if (setting, percent) not in self.archs:
            self.archs[setting, percent] = self.pruned(setting, percent).arch
        return self.archs[setting, percent]

    def pruned(self, setting: Setting, percent: int) -> VisionTransformer:
        if setting.steps == "one":
            return _cut(self._begin(setting.criterion), setting, percent / 100)
        if setting not in self.walks:
            self.walks[setting] = list(self._walk(setting))
        done = min(percent, LAST_PERCENT) // STEP_PERCENT
        scored = copy.deepcopy(self.walks[setting][done])
        rest = 1 - (100 - percent) / (100 - done * STEP_PERCENT)
        return _cut(scored, setting, rest) if rest else from_timm(scored.model)

    def _begin(self, criterion: str) -> "Scored":
        return Scored(as_timm(self.model), self.grads[criterion])

    def _walk(self, setting: Setting) -> Iterator["Scored"]:
        """Models at 0, STEP_PERCENT, ... LAST_PERCENT, each cut from the one before by new gradients."""
        scored, steps = self._begin(setting.criterion), LAST_PERCENT // STEP_PERCENT
        pruner = _pruner(scored, setting, LAST_PERCENT / 100, steps)
        yield copy.deepcopy(scored)
        for _ in range(steps):
            _step(scored.model, pruner)
            scored.model.zero_grad()
            scored = Scored(scored.model, GRADIENTS[setting.criterion](scored.model, self.few))
            scored.give()
            yield copy.deepcopy(scored)

    def around(self, setting: Setting, latency: LatencyModel, budget_ms: float) -> tuple[int, int] | None:
        """Neighbouring ratios, in percent: the smallest within a budget, and one less; None: out of reach."""

        def fits(percent: int) -> bool:
            return estimate(latency, self.arch(setting, percent)).latency_ms <= budget_ms

        # A group of which nothing would remain is not pruned: larger ratios may prune less, so not by halving at once.
        low, high = 0, next((percent for percent in PERCENT if fits(percent)), 0)
        if not high:
            return None
        low = max(percent for percent in (0, *PERCENT) if percent < high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return low, high


IMPORTANCES: Mapping[str, Callable[[], Any]] = {
    "taylor": lambda: _importances().GroupTaylorImportance(),
    "taylor-sum": lambda: _importances().GroupTaylorImportance(multivariable=True),
    "hessian": lambda: _importances().GroupHessianImportance(),
}


def _importances() -> Any:
    """Imported late: the benchmark says what to install where it is missing."""
    import torch_pruning as tp

    return tp.importance


def _pruner(scored: Scored, setting: Setting, ratio: float, steps: int) -> Any:
    import torch_pruning as tp

    scored.give()
    model = scored.model
    blocks, (height, width) = list(model.blocks), model.patch_embed.img_size
    kept: list[nn.Module | nn.Parameter] = [model.head]
    tokens = (model.cls_token, model.pos_embed)
    if setting.stream == "whole":
        kept += [model.patch_embed.proj, *tokens, *(b.attn.proj for b in blocks), *(b.mlp.fc2 for b in blocks)]
    return tp.pruner.BasePruner(
        model,
        torch.zeros(1, model.patch_embed.proj.in_channels, height, width),
        importance=IMPORTANCES[setting.criterion](),
        global_pruning=True,
        pruning_ratio=ratio,
        iterative_steps=steps,
        ignored_layers=kept,
        unwrapped_parameters=[(token, 2) for token in tokens],
        round_to=setting.round_to,
        num_heads={b.attn.qkv: b.attn.num_heads for b in blocks},
        prune_num_heads=setting.attention != "channels",
        prune_head_dims=setting.attention != "heads",
        head_pruning_ratio={"heads": ratio, "both": ratio / 2, "channels": 0.0}[setting.attention],
    )


def _step(model: TimmVisionTransformer, pruner: Any) -> None:
    for group in pruner.step(interactive=True):
        group.prune()
    for attn in (b.attn for b in model.blocks):  # what timm knows of sizes beside the weights
        # It refuses to remove all heads of a block, but then counts none, and fails at the next step.
        attn.num_heads = pruner.num_heads[attn.qkv] or attn.num_heads
        pruner.num_heads[attn.qkv] = pruner.out_channel_groups[attn.qkv] = attn.num_heads
        attn.attn_dim = attn.proj.in_features
        attn.head_dim = attn.attn_dim // attn.num_heads
        attn.scale = attn.head_dim**-0.5
    model.embed_dim = model.patch_embed.proj.out_channels


def _cut(scored: Scored, setting: Setting, ratio: float) -> VisionTransformer:
    """At once."""
    _step(scored.model, _pruner(scored, setting, ratio, 1))
    return from_timm(scored.model)
