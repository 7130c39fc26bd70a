"""`finetune` as the command line and jobs run it: a checkpoint, data and a recipe in, a checkpoint out.

The run file holds the state to go on from; a killed run that is begun again with the same arguments ends as if it had
never stopped.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from api.workflow import trained_checkpoint
from recovery.data import Dataset
from recovery.feed import held_out
from recovery.loop import TrainReport, finetune
from recovery.recipes import Recipe
from vit.checkpoint import Checkpoint
from vit.token_plan import TokenPlan
from vit.tokens import TokenPrunedTransformer


class Finetuning:
    """
    Attributes:
        recipe: as it is used, in steps.
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
        device: torch.device = torch.device("cpu"),
        save_every: int = 100,
    ) -> None:
        """
        Args:
            external: another teacher, whose decisions are distilled, too.
            tokens: train it to drop patch tokens.
        """
        self._before, self._teacher, self._external, self._name = before, teacher, external, external_name
        self._data = held_out(data, recipe.validation, recipe.seed)
        self._given, self._run_file, self._save_every = recipe, run_file, save_every
        self.recipe = recipe.resolved(len(self._data.train))
        self._student = before.model().to(device)
        if tokens is not None:
            self._student = TokenPrunedTransformer.of(self._student, tokens, torch.Generator().manual_seed(recipe.seed))

    def reports(self) -> Iterator[TrainReport]:
        """Train to the end. What cannot be is told at once, before the first step.

        Raises:
            As `recovery.loop.finetune`.
        """
        teacher = None if self._teacher is None else self._teacher.model()
        return finetune(
            self._student,
            self._data,
            self._given,
            teacher,
            self._external,
            mask=self._before.masks,
            resume=self._run_file,
            save_every=self._save_every,
        )

    def result(self) -> Checkpoint:
        """What came of it, once `reports` has come to its end."""
        return trained_checkpoint(
            self._student, self._before, self.recipe, self._data, self._teacher, self._name, self._before.masks
        )
