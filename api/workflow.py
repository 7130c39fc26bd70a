"""The composition root: one function for each thing that vitfit does to a model. Search and recovery meet here, in
`compress` and in `prune_run`, and nowhere else; the edges call these functions and print what they yield."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latency.estimate import LatencyModel
from recovery.data import HALVES, Dataset, load_dataset
from recovery.errors import TrainingError
from recovery.loop import Recipe, accuracy
from recovery.losses import cross_entropy
from recovery.quantise import settled
from search.criteria import compute_saliency, criterion_named
from search.errors import BudgetError
from search.gates import own_label_loss, own_labels
from search.protocols import Score
from search.prune import SELECTIONS, PruneStep, Select, greedy_with, prune
from search.saliency import Saliency
from vit.architecture import Architecture
from vit.checkpoint import Checkpoint, load_checkpoint
from vit.errors import CheckpointError, UnknownNameError
from vit.groups import Keep
from vit.masks import SparsityMask
from vit.model import VisionTransformer
from vit.surgery import cut_masks
from vit.tokens import plan_of

LABELS = ("model", "data")
"""Whose labels saliency reads: drawn from the model's own predictions, or the data's."""

AMP = {"bf16": torch.bfloat16}
"""Number types of mixed precision."""


def load_model(name: str, *, pretrained: bool = False) -> Checkpoint:
    """A checkpoint file, or a timm model by name (random weights unless `pretrained` can be fetched)."""
    if name.endswith(".safetensors"):
        return load_checkpoint(Path(name))
    if "/" in name or name.endswith((".pt", ".pth", ".bin")):
        raise CheckpointError(
            f"{name} is no vitfit checkpoint (.safetensors); "
            "bring weights of a timm model (vit_*, deit_*, deit3_*) in with `vitfit import TIMM_NAME --weights FILE`"
        )
    return import_timm(name, None, pretrained=pretrained)


def import_timm(
    name: str, weights: Path | None, *, pretrained: bool = False, options: dict[str, object] | None = None
) -> Checkpoint:
    """A timm model with a user's own weights (read without unpickling code), its published ones, or random ones.

    Args:
        options: of timm, as num_classes, img_size or in_chans.

    Raises:
        UnknownNameError, UnsupportedModelError: no such model, or none of those that are supported.
        CheckpointError: the weights cannot be read, fetched, or do not fit; says what to pass.
    """
    from vit.timm_models import create, normalisation

    model = create(name, weights=weights, pretrained=pretrained, **(options or {}))
    mean, std = normalisation(name)
    step = {
        "step": "import",
        "timm": name,
        "pretrained": pretrained,
        "weights": "" if weights is None else weights.name,
        "mean": mean,
        "std": std,
    }
    return Checkpoint.of(model, (step,))


def dataset_for(checkpoint: Checkpoint, name: str, *, auto_augment: str | None = None) -> Dataset:
    """A data set as a model wants it: its size, and the normalisation of its pixels where the lineage knows it.

    Args:
        auto_augment: as in `recovery.data.load_dataset`.

    Raises:
        UnknownNameError, DataError: no such data, or not for this model.
        CheckpointError: a lineage with a damaged normalisation.
    """
    return load_dataset(name, checkpoint.arch, checkpoint.normalisation() or HALVES, auto_augment=auto_augment)


# --- saliency and cutting ----------------------------------------------------------------------------------------


def calibration(data: Dataset, batches: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training images as they are, in random order; goes round again where there are too few."""
    given, epoch = 0, 0
    while given < batches:
        for batch in data.train.shuffled(batch_size, seed + epoch, augment=False):
            yield batch
            given += 1
            if given == batches:
                return
        epoch += 1


def model_id(checkpoint: Checkpoint) -> str:
    """Changes with the architecture and with any weight."""
    digest = hashlib.sha256(checkpoint.arch.to_json().encode())
    for name in sorted(checkpoint.weights):
        digest.update(checkpoint.weights[name].contiguous().numpy().tobytes())
    return "model-" + digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How to score units.

    Attributes:
        criterion: one of `search.criteria.CRITERIA`.
        labels: those of the `data`, or drawn from the `model`'s own predictions.
        batches, batch_size: calibration images.
        amp: number type of mixed precision, one of AMP; None: as the weights are.
        micro_batch: images at a time, where a batch does not fit into memory; the saliency is the same.
        seed: of the images and of drawn labels.

    Raises:
        UnknownNameError: a name that is not in its list.
    """

    criterion: str
    labels: str = "data"
    batches: int = 16
    batch_size: int = 64
    amp: str | None = None
    micro_batch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        criterion_named(self.criterion)
        if self.labels not in LABELS:
            raise UnknownNameError("labels", self.labels, LABELS)
        if self.amp is not None and self.amp not in AMP:
            raise UnknownNameError("number type of mixed precision", self.amp, AMP)

    def on(self, data: Dataset) -> Score:
        """Scores what is left of a model where it is, on other training images in every round; processes that joined
        (`api.processes`) share them."""

        def score(model: VisionTransformer, round_index: int) -> Saliency:
            seed = self.seed + 1000 * round_index
            images, of_model = calibration(data, self.batches, self.batch_size, seed), self.labels == "model"
            return compute_saliency(
                model,
                own_labels(images, seed) if of_model else images,
                self.criterion,
                own_label_loss if of_model else cross_entropy,
                data_id=f"{data.name}:{data.fingerprint}",
                autocast=None if self.amp is None else AMP[self.amp],
                micro_batch=self.micro_batch,
            )

        return score


def saliency_of(
    checkpoint: Checkpoint, data: Dataset, how: Scoring, device: torch.device = torch.device("cpu")
) -> Saliency:
    """Saliency of a checkpoint on a data set's training images, computed on a device."""
    data.check(checkpoint.arch)
    model = checkpoint.model().to(device)
    return replace(how.on(data)(model, 0), model=model_id(checkpoint))


def selection_named(name: str, eta: float | None = None) -> Select:
    """
    Raises:
        UnknownNameError: no such way to choose sizes.
        BudgetError: an eta for a selection that has none.
    """
    if name not in SELECTIONS:
        raise UnknownNameError("selection", name, SELECTIONS)
    if eta is None:
        return SELECTIONS[name]
    if name != "greedy":
        raise BudgetError(f"eta is the latency weight of the greedy selection; {name} has none")
    return greedy_with(eta)


def cut_once(
    checkpoint: Checkpoint, saliency: Saliency, latency: LatencyModel, budget_ms: float, *, selection: str = "frontier"
) -> PruneStep:
    """Cut a checkpoint to a budget in one shot, without training, by a saliency that is there."""
    (step,) = prune(checkpoint.model(), lambda _, __: saliency, latency, budget_ms, select=selection_named(selection))
    return step


def masks_after(masks: SparsityMask | None, arch: Architecture, keep: Keep) -> SparsityMask | None:
    """What is left of a model's masks when it is cut; `arch` is that before the cut."""
    return None if masks is None else cut_masks(arch, keep, masks)


def pruned_checkpoint(checkpoint: Checkpoint, step: PruneStep, data: Dataset) -> Checkpoint:
    """The result of a step with its place in the lineage; the masks are cut like the weights."""
    return Checkpoint.of(
        step.model,
        (
            *checkpoint.lineage,
            {
                "step": "prune",
                "from": model_id(checkpoint),
                "from_architecture": checkpoint.arch.id,
                "criterion": step.saliency.criterion,
                "data": f"{data.name}:{data.fingerprint}",
                "rounds": step.round + 1,
                "budget_ms": step.choice.budget_ms,
                "latency_ms": step.choice.latency_ms,
                "saliency_kept": step.choice.kept,
            },
        ),
        masks_after(checkpoint.masks, checkpoint.arch, step.keep),
    )


# --- training ----------------------------------------------------------------------------------------------------


def external_teacher(name: str, weights: Path | None, data: Dataset) -> nn.Module:
    """A module from images to logits: a checkpoint of ours, or any timm model with its published weights or yours.

    Raises:
        CheckpointError: a checkpoint or weights that cannot be read.
        UnknownNameError: no timm model of that name.
        TrainingError: published weights that cannot be fetched.
    """
    import timm

    if name.endswith(".safetensors"):
        return load_checkpoint(Path(name)).model()
    if name.split(".")[0] not in timm.list_models():
        known = timm.list_models(f"*{name.split('_')[0]}*") or ["regnety_160", "deit_base_patch16_224"]
        raise UnknownNameError("external teacher", name, (*known[:12], "a checkpoint (.safetensors)"))
    if weights is not None and not weights.is_file():
        raise CheckpointError(f"no weights at {weights}")
    options: dict[str, Any] = {"num_classes": data.num_classes, "in_chans": data.in_chans}
    if weights is not None:
        options["checkpoint_path"] = str(weights)
    try:
        return timm.create_model(name, pretrained=weights is None, **options).eval()
    except Exception as error:  # timm, torch, safetensors and the network each have their own
        if weights is not None:
            raise CheckpointError(f"{weights} does not fit {name}: {error!s:.300}") from None
        raise TrainingError(
            f"the published weights of {name} cannot be had: {error!s:.200}; give a file of them (--external-weights)"
        ) from None


def trained_checkpoint(
    model: VisionTransformer,
    before: Checkpoint,
    recipe: Recipe,
    data: Dataset,
    teacher: Checkpoint | None = None,
    external: str = "",
    masks: SparsityMask | None = None,
) -> Checkpoint:
    """A fine-tuned model with its place in the lineage.

    Args:
        recipe: as it was used.
        external: name of the external teacher.
        masks: that training held; those of `before` are gone without them, and the lineage says so.
    """
    plan = plan_of(model)
    return Checkpoint.of(
        model,
        (
            *before.lineage,
            {
                "step": "finetune",
                "from": model_id(before),
                "data": f"{data.name}:{data.fingerprint}",
                "teacher": "" if teacher is None else model_id(teacher),
                "external_teacher": external,
                "recipe": recipe.to_dict(),
                **({} if plan is None else {"tokens": asdict(plan)}),
                **({"masks": "dropped"} if before.masks is not None and masks is None else {}),
            },
        ),
        masks,
    )


def quantised_checkpoint(
    model: VisionTransformer, before: Checkpoint, recipe: Recipe, data: Dataset, teacher: Checkpoint | None = None
) -> Checkpoint:
    """A model trained to 8 bit, with ordinary layers on the grid of their 8 bits, and its place in the lineage."""
    step = {
        "step": "quantise",
        "bits": 8,
        "from": model_id(before),
        "data": f"{data.name}:{data.fingerprint}",
        "teacher": "" if teacher is None else model_id(teacher),
        "recipe": recipe.to_dict(),
    }
    return Checkpoint.of(settled(model), (*before.lineage, step), before.masks)


def evaluate(checkpoint: Checkpoint, data: Dataset) -> float:
    """Top-1 accuracy on the test split, in [0, 1]."""
    data.check(checkpoint.arch)
    return accuracy(checkpoint.model(), data.test)
