"""How does compress compare with Torch-Pruning's best criterion at the same measured latency?

    $ python benchmarks/peers.py [--quick]

Gratings (16 classes, noise 1.2), one model trained per seed. compress is given 2,048 training images and no labels, and
trains nothing. Torch-Pruning (Fang et al., CVPR 2023; PyPI torch-pruning) prunes the same weights in timm's model, with
the same images and their labels, one shot, by

    magnitude    GroupMagnitudeImportance, p = 2
    taylor       GroupTaylorImportance
    taylor-sum   the same, multivariable: products of weights and gradients are summed before the absolute value
    hessian      GroupHessianImportance. Its accumulate_grad of 1.6.1 looks parameters up by name but stores them by
                 tensor, so only the last image would count; it is given the mean over all images that it documents

and is reported without training and after a short fine-tune without a teacher. Every criterion prunes in several ways,
of which each budget takes the best afterwards, by the very test accuracy that is reported:

    ranking     over all layers (global), or over layers of the same structure (isomorphic, Fang et al., ECCV 2024)
    attention   channels of heads, or whole heads. Q, K and V are cut alike, and all heads of a block to one size:
                other sizes it cannot give
    stream      cut like everything else, by half the ratio, or left whole (the bottleneck of its examples)

Left out are ways that were tried once (seed 0, 40 % of the MACs) and were never the best: the same share of every
layer, the isomorphic ranking or whole heads with a cut stream, heads and channels at once, p = 1, scores normalised by
LAMP or not at all, steps in place of one shot. As in its examples, the factor on q·k follows the new size of the
heads, which keeps more accuracy than the old factor. Pruned models are converted as any model of timm's is, so that one
implementation runs all of them.

Budgets are of MACs, free of noise, and of latency measured on this CPU (batch 64, one thread), namely what the answer
of compress takes that is estimated at a share of the latency. Torch-Pruning's ratio is found by bisection of what the
table of this CPU says, which is corrected twice by what all models take in one interleaved run; a last run is reported.
Torch-Pruning's steps are coarse, so it may be estimated at 1 % more than the budget. It does not prune a group of which
nothing would remain, so a way may not reach a budget; what does not in every seed does not count there.
"""

import argparse
import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import print_machine, spread
from criteria import ARCH, IN_STEPS, cpu_latency
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from api.compress import Based, Calibration, Compressed, fit, in_its_basis, score
from api.compress_job import calibration_of
from api.workflow import measure
from latency.analytic import MacsModel
from latency.estimate import LatencyModel, estimate
from latency.extrapolate import Extrapolated
from latency.runtimes import find_device
from latency.table import LatencyTable
from recovery.data import Dataset, load_dataset
from recovery.loop import Recipe, accuracy, finetune
from search.frontier import Frontier
from search.saliency import Saliency
from vit.architecture import Architecture
from vit.cost import macs
from vit.model import VisionTransformer
from vit.timm_models import from_timm

OVER = 1.01
FIRST_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
HALVINGS = 5
CRITERIA = ("magnitude", "taylor", "taylor-sum", "hessian")

Grads = Mapping[str, Tensor]


class Budget(NamedTuple):
    """A share of the whole model's MACs or latency."""

    unit: str
    share: float

    def __str__(self) -> str:
        return f"{self.share:.0%} {self.unit}"


class Setting(NamedTuple):
    """One way to prune with Torch-Pruning."""

    criterion: str
    ranking: str
    attention: str
    stream: str

    def __str__(self) -> str:
        return f"{self.criterion:10} {self.ranking:10} {self.attention:8} {self.stream:5}"


class Result(NamedTuple):
    """
    Attributes:
        macs: share of the whole model's.
        ms, over: measured latency, and its ratio to that of compress's model; NaN where the budget is of MACs.
        cut, tuned: accuracy without training and after the fine-tune (compress: no fine-tune, so both are one).
    """

    macs: float
    ms: float
    over: float
    cut: float
    tuned: float


WAYS = (
    ("global", "channels", "whole"),
    ("global", "channels", "half"),
    ("global", "channels", "cut"),
    ("global", "heads", "whole"),
    ("isomorphic", "channels", "whole"),
)


def trained(data: Dataset, seed: int, steps: int) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(ARCH)
    nn.init.normal_(model.pos_embed, std=0.02)
    recipe = Recipe(steps=steps, lr=1e-3, warmup=50, distillation=0.0, seed=seed, report_every=steps)
    for _ in finetune(model, data, recipe):
        pass
    return model


def tuned(model: VisionTransformer, data: Dataset, steps: int, seed: int) -> VisionTransformer:
    model = copy.deepcopy(model)
    recipe = Recipe(steps=steps, lr=5e-4, warmup=6, distillation=0.0, seed=seed + 5, report_every=steps)
    for _ in finetune(model, data, recipe):
        pass
    return model


# --- Torch-Pruning -----------------------------------------------------------------------------------------------


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


@dataclass
class Peer:
    """A trained model, to be pruned by Torch-Pruning."""

    model: VisionTransformer
    grads: Mapping[str, Grads]
    archs: dict[tuple[Setting, float], Architecture] = field(default_factory=dict)

    @classmethod
    def of(cls, model: VisionTransformer, calibration: Calibration) -> "Peer":
        theirs = as_timm(model)
        images, _ = next(iter(calibration.batches()))
        with torch.no_grad():
            torch.testing.assert_close(theirs(images), model(images))
        first = mean_gradients(theirs, calibration)
        second = mean_squared_gradients(theirs, calibration)
        return cls(model, {"magnitude": {}, "taylor": first, "taylor-sum": first, "hessian": second})

    def arch(self, setting: Setting, ratio: float) -> Architecture:
        if (setting, ratio) not in self.archs:
            self.archs[setting, ratio] = self.pruned(setting, ratio).arch
        return self.archs[setting, ratio]

    def pruned(self, setting: Setting, ratio: float) -> VisionTransformer:
        import torch_pruning as tp

        importance: dict[str, Callable[[], Any]] = {
            "magnitude": partial(tp.importance.GroupMagnitudeImportance, p=2),
            "taylor": tp.importance.GroupTaylorImportance,
            "taylor-sum": partial(tp.importance.GroupTaylorImportance, multivariable=True),
            "hessian": tp.importance.GroupHessianImportance,
        }
        model = as_timm(self.model)
        for name, parameter in model.named_parameters():
            if name in self.grads[setting.criterion]:
                parameter.grad = self.grads[setting.criterion][name].clone()
        blocks = list(model.blocks)
        kept: list[nn.Module | nn.Parameter] = [model.head]
        tokens = (model.cls_token, model.pos_embed)
        if setting.stream == "whole":
            kept += [model.patch_embed.proj, *tokens, *(b.attn.proj for b in blocks), *(b.mlp.fc2 for b in blocks)]
        heads = setting.attention == "heads"
        pruner = tp.pruner.BasePruner(
            model,
            torch.zeros(1, ARCH.in_chans, *ARCH.image_size),
            importance=importance[setting.criterion](),
            global_pruning=True,
            isomorphic=setting.ranking == "isomorphic",
            pruning_ratio=ratio,
            ignored_layers=kept,
            unwrapped_parameters=[(token, 2) for token in tokens],
            pruning_ratio_dict={model.patch_embed.proj: ratio / 2} if setting.stream == "half" else None,
            num_heads={b.attn.qkv: b.attn.num_heads for b in blocks},
            prune_num_heads=heads,
            prune_head_dims=not heads,
            head_pruning_ratio=ratio if heads else 0.0,
        )
        for group in pruner.step(interactive=True):
            group.prune()
        for attn in (b.attn for b in blocks):  # what timm knows of sizes beside the weights
            # It refuses to remove all heads of a block, but then counts none.
            attn.num_heads = pruner.num_heads[attn.qkv] or attn.num_heads
            attn.attn_dim = attn.proj.in_features
            attn.head_dim = attn.attn_dim // attn.num_heads
            attn.scale = attn.head_dim**-0.5
        model.embed_dim = model.patch_embed.proj.out_channels
        return from_timm(model)

    def ratio_within(self, setting: Setting, latency: LatencyModel, budget_ms: float) -> float | None:
        """The smallest pruning ratio that is not over budget; None: out of reach."""

        def fits(ratio: float) -> bool:
            return estimate(latency, self.arch(setting, ratio)).latency_ms <= OVER * budget_ms

        low = 0.0
        for high in FIRST_RATIOS:  # a group of which nothing would remain is not pruned: larger ratios may prune less
            if fits(high):
                break
            low = high
        else:
            return None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high


# --- compress ----------------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """A trained model, to be compressed to any budget."""

    based: Based
    saliency: Saliency
    calibration: Calibration

    @classmethod
    def of(cls, model: VisionTransformer, calibration: Calibration) -> "Ours":
        based = in_its_basis(model, calibration)
        return cls(based, score(based.model, calibration), calibration)

    def within(self, latency: LatencyModel, budget_ms: float) -> Compressed:
        choice = Frontier(self.saliency, latency, IN_STEPS).best(budget_ms)
        return fit(self.based, self.saliency, choice, self.calibration)


# --- the same budget ---------------------------------------------------------------------------------------------


Pruned = dict[Setting, tuple[float, float]]
"""Pruning ratio, and measured ms or NaN."""


def at_the_same_macs(peer: Peer, settings: list[Setting], budget: float) -> Pruned:
    ratios = {setting: peer.ratio_within(setting, MacsModel(ARCH), budget) for setting in settings}
    return {setting: (ratio, math.nan) for setting, ratio in ratios.items() if ratio is not None}


def at_the_same_latency(
    peer: Peer, settings: list[Setting], ours: Architecture, table: LatencyTable, corrections: int, rounds: int
) -> tuple[Pruned, float]:
    """Also measured ms of compress's model."""
    wide = Extrapolated(table)  # they may leave the range in which compress looks
    budgets = dict.fromkeys(settings, estimate(wide, ours).latency_ms)
    for _ in range(corrections + 1):
        found = {setting: peer.ratio_within(setting, wide, budget) for setting, budget in budgets.items()}
        ratios = {setting: ratio for setting, ratio in found.items() if ratio is not None}
        archs = {setting: peer.arch(setting, ratio) for setting, ratio in ratios.items()}
        measured = measure([ours, *archs.values()], find_device(), table.target, rounds=rounds)
        own_ms, *others = (m.latency_ms for m in measured)
        ms = dict(zip(archs, others, strict=True))
        budgets = {setting: estimate(wide, archs[setting]).latency_ms * own_ms / ms[setting] for setting in archs}
    iqr = [100 * m.iqr_ms / m.latency_ms for m in measured]
    print(f"IQR of the rounds, % of the median, {len(iqr)} models: {spread(iqr)}")
    return {setting: (ratios[setting], ms[setting]) for setting in archs}, own_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, short training: seconds, figures mean nothing")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if find_spec("torch_pruning") is None:
        print_machine("torch", "timm")
        print("torch-pruning is not installed; python -m pip install 'vitfit[bench]'")
        return
    print_machine("torch", "timm", "torch-pruning")
    seeds, steps, tuning, images = (1, 30, 5, 256) if options.quick else (options.seeds, 500, 30, 2048)
    corrections, rounds = (0, 1) if options.quick else (2, 11)
    budgets = [Budget("MACs", 0.5), Budget("MACs", 0.3), Budget("latency", 0.6), Budget("latency", 0.45)]
    criteria, ways = CRITERIA, WAYS
    if options.quick:
        budgets, criteria, ways = budgets[::2], (CRITERIA[0], CRITERIA[-1]), WAYS[:1]
    settings = [Setting(criterion, *way) for criterion in criteria for way in ways]
    print(
        f"seeds 0 to {seeds - 1}, {steps} training steps, {tuning} fine-tuning steps, {images} calibration images, "
        f"medians of {rounds} rounds"
    )
    table = cpu_latency(1 if options.quick else 3)
    assert isinstance(table, LatencyTable)
    results: dict[tuple[Budget, Setting | None], list[Result]] = defaultdict(list)
    for seed in range(seeds):
        data = load_dataset(f"gratings:noise=1.2,seed={seed}")
        dense = trained(data, seed, steps)
        print(f"seed {seed}: dense {accuracy(dense, data.test):.1%}", flush=True)
        ours = Ours.of(dense, calibration_of(data, images, 64, seed))
        peer = Peer.of(dense, calibration_of(data, images, 64, seed, labels="data"))
        for budget in budgets:
            latency = MacsModel(ARCH) if budget.unit == "MACs" else table
            target = budget.share * estimate(latency, ARCH).latency_ms
            small = ours.within(latency, target).model
            if budget.unit == "MACs":
                pruned, own_ms = at_the_same_macs(peer, settings, target), math.nan
            else:
                pruned, own_ms = at_the_same_latency(peer, settings, small.arch, table, corrections, rounds)
            own = accuracy(small, data.test)
            results[budget, None].append(Result(macs(small.arch) / macs(ARCH), own_ms, 1.0, own, own))
            for setting, (ratio, ms) in pruned.items():
                model = peer.pruned(setting, ratio)
                after = accuracy(tuned(model, data, tuning, seed), data.test)
                results[budget, setting].append(
                    Result(macs(model.arch) / macs(ARCH), ms, ms / own_ms, accuracy(model, data.test), after)
                )
            print(f"seed {seed}: {budget}, compress {own:.1%}", flush=True)
    report(results, budgets, settings)


STAGES = {"cut": "no training", "tuned": "fine-tuned"}


def mean_of(field: str, found: list[Result]) -> float:
    return float(np.mean([getattr(result, field) for result in found]))


def each(values: list[float]) -> str:
    """Mean, and every seed."""
    return f"{np.mean(values):5.1f} [{' '.join(f'{v:5.1f}' for v in values)}]"


def report(
    results: defaultdict[tuple[Budget, Setting | None], list[Result]], budgets: list[Budget], settings: list[Setting]
) -> None:
    print("accuracy in percent, mean [every seed]; means of the share of MACs, of ms and of ms over compress's")
    print("budget       criterion  ranking    of heads stream   MACs     ms  ratio    no training, fine-tuned")
    for budget in budgets:
        for setting in (None, *settings):
            found = results[budget, setting]
            name = f"{'compress':36}" if setting is None else str(setting)
            if len(found) < len(results[budget, None]):
                print(f"{budget!s:12} {name}  out of reach")
                continue
            timed = "" if budget.unit == "MACs" else f"{mean_of('ms', found):.3f}  {mean_of('over', found):.3f}"
            after = "" if setting is None else f"   {each([100 * r.tuned for r in found])}"
            print(
                f"{budget!s:12} {name}  {mean_of('macs', found):5.1%}  {timed:13}  "
                f"{each([100 * r.cut for r in found])}{after}"
            )
    print("points by which compress, without training, leads Torch-Pruning's best way, mean [every seed]")
    for budget, (stage, name) in itertools.product(budgets, STAGES.items()):
        for criterion in (*dict.fromkeys(s.criterion for s in settings), "any"):
            complete = [s for s in settings if len(results[budget, s]) == len(results[budget, None])]
            candidates = [setting for setting in complete if criterion in (setting.criterion, "any")]
            best = max(candidates, key=lambda setting: mean_of(stage, results[budget, setting]))
            pairs = zip(results[budget, None], results[budget, best], strict=True)
            lead = [100 * (ours.cut - getattr(theirs, stage)) for ours, theirs in pairs]
            print(f"{budget!s:12} over {criterion:10} {name:12} {each(lead)}   {best}")


if __name__ == "__main__":
    main()
