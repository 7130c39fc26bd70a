"""vitfit's main line: any latency budget on any target, certified, without training.

    basis, saliency    once a model: `in_its_basis`, `score`
    frontier           once a target, then any budget: `search.frontier.Frontier`
    cut, refit         once a budget: `fit`

    from api.compress import compress
    small = compress(model, images, load_table(path), budget_ms=2.5)
    small.model, small.choice.latency_ms, small.choice.gap

A few hundred images are enough, and no labels. The composition of search and recovery, hence in `api`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latency.estimate import LatencyModel
from recovery.losses import cross_entropy
from recovery.refit import RIDGE, RefitReport, refit
from search.constraints import Constraints
from search.criteria import compute_saliency, criterion_named
from search.errors import BudgetError, SaliencyError
from search.frontier import Choice, Frontier
from search.gates import own_label_loss, own_labels
from search.protocols import Loss
from search.saliency import Saliency
from search.sensitivity import token_sensitivity
from vit.architecture import Architecture
from vit.basis import rebase, with_layer_norm
from vit.errors import UnsupportedModelError
from vit.groups import EMBED
from vit.model import VisionTransformer
from vit.moments import Sensitivity, checked_images
from vit.surgery import shrink

Batches = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and of how much."""


ACTIVATION_BYTES = 2**30
"""What the activations of one backward pass may take."""


def images_at_once(arch: Architecture) -> int:
    """As many images as a backward pass can hold in ACTIVATION_BYTES of float32, at most 64."""
    channels = sum(8 * arch.embed_dim + 4 * b.num_heads * (b.qk_dim + b.v_dim) + 4 * b.mlp_dim for b in arch.blocks)
    return max(1, min(64, ACTIVATION_BYTES // (4 * arch.tokens * channels)))


def _silent(stage: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The images that a model is compressed with.

    Attributes:
        batches: batches of (images, labels) from the first one on, every time it is called.
        images: how many they are.
        own_labels: whether saliency reads labels drawn from the model's own predictions, in place of those given.
        seed: of these draws.
    """

    batches: Callable[[], Batches]
    images: int
    own_labels: bool = True
    seed: int = 0

    @classmethod
    def of(cls, images: Tensor, labels: Tensor | None = None, batch_size: int = 64, seed: int = 0) -> "Calibration":
        """Images (N, C, height, width) in memory, with labels (N,) to use them."""
        given = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
        return cls(
            lambda: zip(torch.split(images, batch_size), torch.split(given, batch_size), strict=True),
            len(images),
            own_labels=labels is None,
            seed=seed,
        )

    def labelled(self, stage: str, progress: Progress) -> Batches:
        """The batches, checked and counted, with what `loss` reads in the place of labels.

        Raises:
            CalibrationError: images that teach nothing (`vit.moments.checked_images`).
        """
        latest: list[Tensor] = []
        given = own_labels(self.batches(), self.seed) if self.own_labels else self.batches()

        def pictures() -> Iterator[Tensor]:
            for images, labels in given:
                latest[:] = [labels]
                yield images

        done = 0
        progress(stage, 0, self.images)
        for images in checked_images(pictures()):
            yield images, latest[0]
            done += len(images)
            progress(stage, done, self.images)

    def pictures(self, stage: str, progress: Progress) -> Iterator[Tensor]:
        """The images alone."""
        return (images for images, _ in self.labelled(stage, progress))

    def loss(self) -> Loss:
        """What saliency and sensitivity are derivatives of."""
        return own_label_loss if self.own_labels else cross_entropy


@dataclass(frozen=True, eq=False)
class Based:
    """A model in its basis.

    Attributes:
        model: the same function as the original.
        layer_norm: whether what is cut from it is given LayerNorm again, for one channel of the stream.
        sensitivity: how much the loss feels each token; None: all alike.
        skipped: changes of basis that this model does not allow, each with the reason.
    """

    model: VisionTransformer
    layer_norm: bool
    sensitivity: Sensitivity | None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Compressed:
    """
    Attributes:
        model: the small model, refitted.
        choice: its architecture, latency and certificate.
        refits: what each layer's refit brought, first to last.
        skipped: changes of basis that the model does not allow.
        warnings: what to know before trusting it.
    """

    model: VisionTransformer
    choice: Choice
    refits: tuple[RefitReport, ...]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]


def in_its_basis(model: VisionTransformer, calibration: Calibration, progress: Progress = _silent) -> Based:
    """
    Raises:
        UnsupportedModelError: no classifier: there is nothing to score or to refit to.
        CalibrationError: images that teach nothing.
    """
    if not model.arch.num_classes:
        raise UnsupportedModelError("compress needs a model with a classifier (num_classes above 0)")
    rebased = rebase(
        model, calibration.pictures("basis", progress), lambda folded: sensitivity_of(folded, calibration, progress)
    )
    layer_norm = model.arch.norm == "layer" and rebased.model.arch.norm == "rms"
    return Based(rebased.model, layer_norm, rebased.sensitivity, rebased.skipped)


def sensitivity_of(model: VisionTransformer, calibration: Calibration, progress: Progress = _silent) -> Sensitivity:
    """How much the loss feels each token, over the calibration images."""
    return token_sensitivity(model, calibration.labelled("tokens", progress), calibration.loss())


def score(
    model: VisionTransformer, calibration: Calibration, criterion: str = "gates", progress: Progress = _silent
) -> Saliency:
    """Saliency of a model's units on the calibration images.

    Raises:
        UnknownNameError: no such criterion.
        SaliencyError: loss or gradients that are not finite, or saliency without any signal.
    """
    labelled = calibration.labelled("saliency", progress)
    saliency = compute_saliency(model, labelled, criterion, calibration.loss())
    if saliency.total == 0:
        raise SaliencyError("the saliency is zero everywhere; nothing can be ranked")
    return saliency


def fit(
    based: Based,
    saliency: Saliency,
    choice: Choice,
    calibration: Calibration,
    *,
    ridge: float = RIDGE,
    progress: Progress = _silent,
) -> Compressed:
    """Cut to the sizes that were chosen on a saliency of the model in its basis, and refit.

    Raises:
        BudgetError: a stream of one channel.
    """
    sizes = choice.sizes()
    if based.layer_norm:
        if sizes[EMBED] < 2:
            raise BudgetError("LayerNorm over one channel leaves nothing; ask for an embed_dim of at least 2")
        sizes[EMBED] -= 1  # LayerNorm needs one channel for the mean that it subtracts
    keep = saliency.keep(sizes)
    small = shrink(based.model, keep)
    reports = []
    pictures = calibration.pictures("images", _silent)
    for report in refit(based.model, small, keep, pictures, ridge=ridge, sensitivity=based.sensitivity):
        reports.append(report)
        progress("refit", report.done, report.total)
    if based.layer_norm:
        small = with_layer_norm(small)
    return Compressed(
        small.eval(),
        replace(choice, arch=small.arch),
        tuple(reports),
        based.skipped,
        tuple(_warnings(small.arch, calibration.images)),
    )


def _warnings(arch: Architecture, images: int) -> Iterator[str]:
    """Least squares wants more rows than columns: the classifier has one row an image, the others one a token."""
    widest = max(max(b.mlp_dim, b.num_heads * b.v_dim) for b in arch.blocks)
    sensible = max(arch.embed_dim, math.ceil(max(widest, arch.embed_dim) / arch.tokens))
    if images < sensible:
        yield (
            f"{images} calibration images are fewer than the classifier has inputs; the ridge copes, but give at least "
            f"{sensible}, better {4 * sensible}"
        )


def compress(
    model: VisionTransformer,
    images: Tensor | Calibration,
    table: LatencyModel,
    budget_ms: float,
    *,
    criterion: str = "gates",
    constraints: Constraints | None = None,
    ridge: float = RIDGE,
    progress: Progress = _silent,
) -> Compressed:
    """The best architecture of a model for one budget on one target, with its weights; `model` is untouched.

    Args:
        images: (N, C, height, width), normalised as for training; or a Calibration.
        table: a LatencyTable, a modelled device, or the analytic target `macs`.

    Raises:
        BudgetError: outside what the model, the table and the constraints allow; names the ends.
        CalibrationError, SaliencyError, TargetError, OutsideGridError: what was given does not go together.
    """
    at_once = images_at_once(model.arch)
    calibration = images if isinstance(images, Calibration) else Calibration.of(images, batch_size=at_once)
    criterion_named(criterion)
    based = in_its_basis(model, calibration, progress)
    saliency = score(based.model, calibration, criterion, progress)
    choice = Frontier(saliency, table, constraints).best(budget_ms)
    return fit(based, saliency, choice, calibration, ridge=ridge, progress=progress)
