"""Training and fine-tuning to the end: judged, kept, stopped and gone on with, as an iterator of reports."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from recovery import processes
from recovery.data import Dataset, Split
from recovery.errors import FailedStepError, TrainingError
from recovery.feed import held_out
from recovery.recipes import Recipe, after_refit
from recovery.run_file import Arguments, Best, load_run, save_run, weights_id
from recovery.training import Trainer, TrainReport
from vit.masks import SparsityMask
from vit.model import VisionTransformer

__all__ = ["Recipe", "TrainReport", "Trainer", "TrainingError", "accuracy", "after_refit", "finetune"]


def finetune(
    model: VisionTransformer,
    data: Dataset,
    recipe: Recipe,
    teacher: VisionTransformer | None = None,
    external: nn.Module | None = None,
    *,
    mask: SparsityMask | None = None,
    resume: Path | None = None,
    save_every: int = 100,
) -> Iterator[TrainReport]:
    """Train `model` in place, with distillation if there is a teacher; yields reports.

    Where images are held out (`recipe.validation`), it ends with the weights, or the running mean of the weights, that
    were best on them, those at the start included. Where not, with the last: with their running mean if there is one.

    Args:
        teacher: the uncut model.
        external: any module from images to logits, for hard distillation.
        mask: weights that stay zero.
        resume: a run file, written every `save_every` steps. Where it exists the run goes on from it and ends as if it
            had never stopped. It stays there at the end. In several processes it is one file that all can read.

    Raises:
        DataError: the data does not fit the model.
        MaskError: the mask does not fit the model.
        TrainingError: the recipe, the teachers or the run file do not fit; a loss or gradient is not finite, or the
            memory too small: the model then holds the last good weights, the best ones where images are held out.
    """
    data = held_out(data, recipe.validation, recipe.seed)
    arguments = {} if resume is None else _arguments(model, data, recipe, teacher, external, mask)
    trainer = Trainer(
        model, data, recipe, teacher, external, mask
    )  # what cannot be is refused here, before the first step
    return _judged(trainer, data.validation, arguments, resume, save_every)


def _judged(
    trainer: Trainer, judge: Split | None, arguments: Arguments, resume: Path | None, save_every: int
) -> Iterator[TrainReport]:
    recipe, model, best = trainer.recipe, trainer.model, None
    if resume is not None and resume.exists():
        state, best = load_run(resume, arguments)
        trainer.load_state(state)
    elif judge is not None:
        _, best = _evaluated(trainer, judge, None)
    if not processes.agree(trainer.step, next(model.parameters()).device):
        raise TrainingError(f"not all processes find the same run at {resume}; it has to be a file that all share")
    pauses = [every for every, wanted in ((recipe.evaluate_every, judge), (save_every, resume)) if wanted is not None]
    try:
        while trainer.step < trainer.steps:
            stop = min([trainer.steps, *((trainer.step // every + 1) * every for every in pauses)])
            for report in trainer.train(stop):
                if judge is not None and (report.step == trainer.steps or report.step % recipe.evaluate_every == 0):
                    found, best = _evaluated(trainer, judge, best)
                    report = replace(report, accuracy=found, best=best.accuracy, kept=best.step == report.step)
                yield report
            if resume is not None and stop % save_every == 0 and processes.share()[0] == 0:
                save_run(resume, arguments, trainer.state(), best)
    except FailedStepError as error:
        if best is None:
            raise
        model.load_state_dict(dict(best.weights))
        raise error.holding(f"the best weights, of step {best.step}") from None
    finally:
        model.eval()
    if best is not None:
        model.load_state_dict(dict(best.weights))
    elif trainer.averaged is not model:
        model.load_state_dict(trainer.averaged.state_dict())


def _evaluated(trainer: Trainer, judge: Split, best: Best | None) -> tuple[float, Best]:
    """The better accuracy of weights and running mean, and the best so far; of two equal ones, the later."""
    found = -1.0
    for model in [trainer.model] if trainer.averaged is trainer.model else [trainer.model, trainer.averaged]:
        counts = _right_and_total(model, judge, 250, processes.share())
        processes.add_up([counts])
        right, total = counts.tolist()
        if right / total > found:
            found, better = right / total, model
    if best is None or found >= best.accuracy:
        best = Best(found, trainer.step, {name: tensor.clone() for name, tensor in better.state_dict().items()})
    return found, best


def _arguments(
    model: VisionTransformer,
    data: Dataset,
    recipe: Recipe,
    teacher: VisionTransformer | None,
    external: nn.Module | None,
    mask: SparsityMask | None,
) -> Arguments:
    return {
        **recipe.to_dict(),
        "model": weights_id(model, parameters_alone=True),  # 8 bit: ranges that were seen depend on the machine
        "data": f"{data.name}:{data.fingerprint}",
        "teacher": weights_id(teacher),
        "external teacher": weights_id(external),
        "mask": "" if mask is None else mask.fingerprint,
        "processes": processes.share()[1],
    }


def accuracy(model: VisionTransformer, split: Split, batch_size: int = 250) -> float:
    """Top-1 accuracy in [0, 1], in eval mode."""
    right, total = _right_and_total(model, split, batch_size, (0, 1)).tolist()
    return right / total


@torch.no_grad()
def _right_and_total(model: VisionTransformer, split: Split, batch_size: int, share: tuple[int, int]) -> Tensor:
    """How many images are classified right, and how many there are, in every so manieth batch."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    counts = torch.zeros(2, dtype=torch.long, device=device)
    for index, (images, labels) in enumerate(split.ordered(batch_size)):
        if index % share[1] == share[0]:
            right = (model(images.to(device)).argmax(dim=1) == labels.to(device)).sum()
            counts += torch.stack([right, torch.tensor(len(labels), device=device)])
    model.train(training)
    return counts
