"""`finetune` and `quantise` as the command line and jobs run them: checkpoint, data and recipe in, a checkpoint out.

The run file holds the state to go on from; a killed run that is begun again with the same arguments ends as if it had
never stopped.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from api.workflow import quantised_checkpoint, trained_checkpoint
from recovery.data import Dataset
from recovery.feed import held_out
from recovery.loop import TrainReport, finetune
from recovery.quantise import calibrate, with_int8
from recovery.recipes import Recipe
from vit.checkpoint import Checkpoint
from vit.token_plan import TokenPlan
from vit.tokens import TokenPrunedTransformer

CALIBRATION_BATCHES = 8
"""Batches of training images that the ranges of 8-bit inputs start from."""


class Finetuning:
    """
    Attributes:
        recipe: as it is used, in steps.
        data: as it is used, with images held out where the recipe says so.
        student: what is trained.
    """

    def __init__(
        self,
        before: Checkpoint,
        data: Dataset,
        recipe: Recipe,
        run_file: Path,
        *,
        teacher: Checkpoint | None = None,
        external: nn.Module | None = None,
        external_name: str = "",
        tokens: TokenPlan | None = None,
        int8: bool = False,
        device: torch.device = torch.device("cpu"),
        save_every: int = 100,
    ) -> None:
        """
        Args:
            external: another teacher, whose decisions are distilled, too.
            tokens: train it to drop patch tokens.
            int8: train it in simulated 8 bit.

        Raises:
            UnsupportedModelError, TrainingError: a model that cannot be trained so.
        """
        self._before, self._teacher, self._external, self._name = before, teacher, external, external_name
        self.data = held_out(data, recipe.validation, recipe.seed)
        self._given, self._run_file, self._save_every = recipe, run_file, save_every
        self.recipe = recipe.resolved(len(self.data.train))
        self.student, self._int8 = before.model().to(device), int8
        if tokens is not None:
            self.student = TokenPrunedTransformer.of(self.student, tokens, torch.Generator().manual_seed(recipe.seed))
        if int8:
            self.student = with_int8(self.student)
            shown = self.data.train.shuffled(recipe.batch_size, recipe.seed, augment=False)
            calibrate(self.student, (images for images, _ in islice(shown, CALIBRATION_BATCHES)))

    def reports(self) -> Iterator[TrainReport]:
        """Train to the end. What cannot be is told at once, before the first step.

        Raises:
            As `recovery.loop.finetune`.
        """
        teacher = None if self._teacher is None else self._teacher.model()
        return finetune(
            self.student,
            self.data,
            self._given,
            teacher,
            self._external,
            mask=self._before.masks,
            resume=self._run_file,
            save_every=self._save_every,
        )

    def result(self) -> Checkpoint:
        """What came of it, once `reports` has come to its end."""
        if self._int8:
            return quantised_checkpoint(self.student, self._before, self.recipe, self.data, self._teacher)
        return trained_checkpoint(
            self.student, self._before, self.recipe, self.data, self._teacher, self._name, self._before.masks
        )
