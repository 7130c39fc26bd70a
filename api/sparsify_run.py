"""`sparsify`: single weights out of a checkpoint, at once, or in a run of many phases with training in between.

A run is a folder, and nothing of it is lost by kill -9:

    run.jsonl                       what was asked for, then one line a phase
    phase-003.safetensors           model and masks after phase 3, trained
    phase-003.trainer.safetensors   the optimiser then, of the last phase alone

A phase counts when its line is there; one that was killed is done again from the files of the one before, with the
same images and random numbers, so a run that was resumed ends with the same masks and weights, to the bit.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from api.workflow import calibration, model_id
from recovery import processes
from recovery.data import Dataset
from recovery.errors import TrainingError
from recovery.loop import finetune
from recovery.losses import cross_entropy
from recovery.recipes import Recipe
from recovery.training import Trainer, TrainReport
from sparsity.gradients import Batch
from sparsity.gradual import Change, Phase, gradual, sweep
from sparsity.layers import SELECTIONS, Selection, prunable
from sparsity.oneshot import Batches, Sparsified, Sparsify, sparsify
from sparsity.schedule import PHASES, levels
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.errors import JournalError, UnknownNameError, VitfitError
from vit.files import write_atomically
from vit.journal import Journal, read_journal
from vit.masks import SparsityMask
from vit.model import VisionTransformer

OnReport = Callable[[int, TrainReport], None]
"""Called with the phase and its training's progress."""

TAIL = {"schedule": "cosine", "cycles": 1, "lr": 5e-5, "min_lr": 1e-5, "lr_batch": None}
"""What differs in the fine-tune of each target after the sweep: 100 epochs of it (oViT, Appendix B)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrating:
    """Which batches a pruning step looks at.

    Attributes:
        gradients: batches, one gradient each; the paper's 4,096.
        batch_size: images of each.
        seed: of their order; every step of a run draws others.
    """

    gradients: int = 512
    batch_size: int = 16
    seed: int = 0

    def of(self, data: Dataset) -> Batches:
        def batches(step: int) -> Iterator[Batch]:
            return calibration(data, self.gradients, self.batch_size, self.seed + 1000 * step)

        return batches


def mean_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a batch, on the model's device."""
    device = next(model.parameters()).device
    return cross_entropy(model, images.to(device), labels.to(device))  # type: ignore[arg-type]


def document_of(request: Sparsify) -> dict[str, Any]:
    """What was asked for, in JSON."""
    return {**asdict(request), "pattern": str(request.pattern)}


def sparsify_checkpoint(
    checkpoint: Checkpoint,
    data: Dataset,
    request: Sparsify,
    how: Calibrating,
    device: torch.device = torch.device("cpu"),
) -> tuple[Checkpoint, Sparsified[VisionTransformer]]:
    """One pruning step, without training.

    Raises:
        DataError: the data does not fit the model.
        SparsityError, PatternError, GradientError: as `sparsity.oneshot.sparsify`.
    """
    data.check(checkpoint.arch)
    model = checkpoint.model().to(device)
    made = sparsify(model, how.of(data), mean_loss, request, checkpoint.masks)
    step = {
        "step": "sparsify",
        "from": model_id(checkpoint),
        "data": f"{data.name}:{data.fingerprint}",
        "gradients": made.gradients,
        "batch_size": how.batch_size,
        "seed": how.seed,
        "skipped": list(made.skipped),
        "reached": made.mask.sparsity,
        **document_of(request),
    }
    return Checkpoint.of(made.model, (*checkpoint.lineage, step), made.mask), made


# --- many phases -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRequest:
    """A sweep over sparsities with training in between.

    Attributes:
        levels: sparsity of each phase (`sparsity.schedule.levels`).
        targets: those of which a checkpoint is wanted.
        request: method, scope and the rest; its sparsity is not looked at.
        how: batches of each pruning step.
        recipe: of all phases together; a cyclic one has a cycle for each phase.
        tail: of each target after the sweep; None: none.

    Raises:
        TrainingError: a recipe with a running mean of the weights, of which nothing would come out.
    """

    levels: tuple[float, ...]
    targets: tuple[float, ...]
    request: Sparsify
    how: Calibrating = field(default_factory=Calibrating)
    recipe: Recipe
    tail: Recipe | None = None

    def __post_init__(self) -> None:
        if self.recipe.ema:
            raise TrainingError("ema is for a fine-tune; phases of pruning go on from the weights themselves")

    def training(self, images: int) -> Recipe:
        """The recipe in steps, as many in each phase, and a cycle for each where it is cyclic."""
        used = self.recipe.resolved(images)
        each = -(-(used.steps or 1) // len(self.levels))
        cycles = len(self.levels) if used.schedule == "cyclic" else 1
        return replace(used, steps=each * len(self.levels), cycles=cycles, warmup=min(used.warmup, each // 5))

    def document(self) -> dict[str, Any]:
        return {
            "levels": list(self.levels),
            "sparsify": document_of(self.request),
            "calibrating": asdict(self.how),
            "recipe": self.recipe.to_dict(),
        }


class SparseRecovery:
    """Trains a model through phases with one optimiser."""

    def __init__(
        self,
        data: Dataset,
        recipe: Recipe,
        phases: int,
        teacher: VisionTransformer | None = None,
        report: OnReport = lambda _, __: None,
    ) -> None:
        """`recipe`: in steps, of all phases together."""
        self.trainer: Trainer | None = None
        self.losses: list[float] = []
        self._data, self._recipe, self._phases, self._teacher, self._report = data, recipe, phases, teacher, report

    def _fresh(self, model: nn.Module, mask: SparsityMask | None) -> Trainer:
        assert isinstance(model, VisionTransformer)
        return Trainer(copy.deepcopy(model), self._data, self._recipe, self._teacher, mask=mask)

    def resume(self, phase: Phase, state: Path) -> None:
        self.trainer = self._fresh(phase.model, phase.mask)
        self.trainer.load_state(load_file(state))

    def __call__(self, model: nn.Module, mask: SparsityMask | None, phase: int) -> nn.Module:
        if self.trainer is None:
            self.trainer = self._fresh(model, mask)
        else:
            assert isinstance(model, VisionTransformer)
            self.trainer.prune(model, mask)
        self.losses = []
        for report in self.trainer.train((self._recipe.steps or 0) * (phase + 1) // self._phases):
            self.losses.append(report.loss)
            self._report(phase, report)
        return copy.deepcopy(self.trainer.model).eval()


@dataclass(frozen=True, slots=True)
class Done:
    """One phase as the journal has it.

    Attributes:
        loss: mean training loss.
        resumed: read from the journal, not done now.
    """

    phase: int
    phases: int
    sparsity: float
    loss: float
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class _Folder:
    root: Path

    @property
    def journal(self) -> Path:
        return self.root / "run.jsonl"

    def model(self, phase: int) -> Path:
        return self.root / f"phase-{phase:03d}.safetensors"

    def trainer(self, phase: int) -> Path:
        return self.root / f"phase-{phase:03d}.trainer.safetensors"

    def tail(self, phase: int) -> Path:
        return self.root / f"phase-{phase:03d}.tail.run.safetensors"


def run_sweep(
    checkpoint: Checkpoint,
    data: Dataset,
    wanted: SweepRequest,
    folder: Path,
    *,
    teacher: VisionTransformer | None = None,
    report: OnReport = lambda _, __: None,
    device: torch.device = torch.device("cpu"),
) -> Iterator[Done]:
    """Prune and train phase by phase; yields each, those of a run that goes on included.

    Processes that joined (`api.processes`) share batches; the first one writes.

    Args:
        teacher: the uncut model, for recipes with distillation.

    Raises:
        JournalError: the folder holds another run, or another process runs it.
        DataError, SparsityError, PatternError, TrainingError: before anything is written.
    """
    data.check(checkpoint.arch)
    changes = sweep(wanted.levels, wanted.request, wanted.how.of(data), mean_loss)
    model = checkpoint.model().to(device)
    for name, weight in prunable(model, wanted.request.selection).items():
        wanted.request.layout(name, weight)  # what no phase could do is refused before the first one
    header = {
        "journal": "vitfit-sparsify",
        "version": 1,
        "model": model_id(checkpoint),
        "data": f"{data.name}:{data.fingerprint}",
        "teacher": "" if teacher is None else model_id(Checkpoint.of(teacher)),
        **wanted.document(),
    }
    recovery = SparseRecovery(data, wanted.training(len(data.train)), len(changes), teacher, report)
    yield from run_phases(checkpoint, model, changes, recovery, folder, header)


def run_phases(
    checkpoint: Checkpoint,
    model: VisionTransformer,
    changes: Sequence[Change],
    recovery: SparseRecovery,
    folder: Path,
    header: dict[str, Any],
) -> Iterator[Done]:
    """Any list of phases as a run in a folder."""
    files, first = _Folder(folder), processes.share()[0] == 0
    header = json.loads(json.dumps(header))
    journal = Journal(files.journal, header) if first else None
    try:
        processes.wait()
        lines = read_journal(files.journal)[1]
        for line in lines:
            yield Done(**line, resumed=True)
        after = None
        if lines:
            last = load_checkpoint(files.model(lines[-1]["phase"]))
            device = next(model.parameters()).device
            after = Phase(lines[-1]["phase"], last.model().to(device), last.masks)
            if len(lines) < len(changes):
                recovery.resume(after, files.trainer(after.index))
        elif checkpoint.masks is not None:
            after = Phase(-1, model, checkpoint.masks)
        for phase in gradual(model, changes, recovery, after):
            loss = sum(recovery.losses) / max(len(recovery.losses), 1)
            done = Done(phase.index, len(changes), phase.sparsity, loss)
            if journal is not None:
                assert isinstance(phase.model, VisionTransformer)
                step = {"step": "sparsify", "from": header["model"], "phase": phase.index, "reached": phase.sparsity}
                lineage = (*checkpoint.lineage, step | {k: v for k, v in header.items() if k not in _OF_JOURNAL})
                save_checkpoint(Checkpoint.of(phase.model, lineage, phase.mask), files.model(phase.index))
                if phase.index + 1 < len(changes) and recovery.trainer is not None:
                    state = recovery.trainer.state()
                    write_atomically(files.trainer(phase.index), partial(save_file, state))
                journal.append(
                    {"phase": done.phase, "phases": done.phases, "sparsity": done.sparsity, "loss": done.loss}
                )
                files.trainer(phase.index - 1).unlink(missing_ok=True)
            yield done
    except VitfitError:
        if journal is not None and not journal.lines:  # what cannot be done leaves no folder
            files.journal.unlink(missing_ok=True)
            with suppress(OSError):  # what others keep there stays
                files.root.rmdir()
        raise
    finally:
        if journal is not None:
            journal.close()


_OF_JOURNAL = ("journal", "version", "model")


def targets_of(
    folder: Path,
    wanted: SweepRequest,
    data: Dataset,
    teacher: VisionTransformer | None = None,
    report: OnReport = lambda _, __: None,
    device: torch.device = torch.device("cpu"),
) -> Iterator[tuple[float, Checkpoint]]:
    """Each target's checkpoint of a run that has come to its end, with the tail where one is wanted.

    Raises:
        JournalError: the run is not there, or not at its end.
    """
    files = _Folder(folder)
    lines = read_journal(files.journal)[1]
    if len(lines) < len(wanted.levels):
        raise JournalError(f"the run in {folder} has done {len(lines)} of {len(wanted.levels)} phases")
    for target in wanted.targets:
        phase = wanted.levels.index(target)
        found = load_checkpoint(files.model(phase))
        if wanted.tail is not None:
            found = _with_tail(found, wanted.tail, data, teacher, files.tail(phase), partial(report, phase), device)
        yield target, found


def _with_tail(
    found: Checkpoint,
    recipe: Recipe,
    data: Dataset,
    teacher: VisionTransformer | None,
    run_file: Path,
    report: Callable[[TrainReport], None],
    device: torch.device,
) -> Checkpoint:
    model = found.model().to(device)
    for progress in finetune(model, data, recipe, teacher, mask=found.masks, resume=run_file):
        report(progress)
    step = {"step": "finetune", "from": model_id(found), "recipe": recipe.resolved(len(data.train)).to_dict()}
    return Checkpoint.of(model, (*found.lineage, step), found.masks)


def selection_of(name: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Selection:
    """A papers' choice of layers, narrowed by patterns of names.

    Raises:
        UnknownNameError: no such choice.
    """
    if name not in SELECTIONS:
        raise UnknownNameError("choice of layers", name, SELECTIONS)
    found = SELECTIONS[name]
    return replace(found, include=tuple(include) or found.include, exclude=(*found.exclude, *exclude))


def levels_for(targets: tuple[float, ...], first: float, phases: int | None) -> tuple[float, ...]:
    """Sparsity of each phase of a sweep to these targets."""
    return levels(targets, first, phases or max(PHASES, len(targets) + 1))


__all__ = [
    "TAIL",
    "Calibrating",
    "Done",
    "SparseRecovery",
    "SweepRequest",
    "document_of",
    "levels_for",
    "mean_loss",
    "run_phases",
    "run_sweep",
    "selection_of",
    "sparsify_checkpoint",
    "targets_of",
]
