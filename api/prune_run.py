"""`prune` with training in between, as a run in a folder: nothing is lost by kill -9, any budget on the way is there.

    run.jsonl                       what was asked for, then one line a round
    start.safetensors               the model as it was given
    round-003.safetensors           what round 3 left, trained on
    round-003.saliency.safetensors  what round 3 cut by
    round-003.trainer.safetensors   the optimiser then, of the last round alone

A round counts when its line is there; one that was killed is done again, from the optimiser of the round before and
with the same images and random numbers, so a run that was resumed ends like one that was not, to the bit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from api.library import Library
from api.queries import resolve_target
from api.workflow import Scoring, masks_after, model_id, selection_named
from latency.errors import TargetError
from latency.estimate import LatencyModel, estimate
from recovery import processes
from recovery.data import Dataset
from recovery.errors import TrainingError
from recovery.recipes import Recipe
from recovery.training import Trainer, TrainReport
from search.constraints import Constraints
from search.errors import BudgetError
from search.frontier import Choice
from search.greedy import GreedyChoice
from search.prune import PruneStep, prune
from search.saliency import load_saliency, save_saliency
from search.schedule import Schedule, default_schedule
from vit.architecture import Architecture
from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vit.errors import JournalError, VitfitError
from vit.files import write_atomically
from vit.groups import Group, Keep, groups, size
from vit.journal import Journal, read_journal
from vit.masks import SparsityMask
from vit.model import VisionTransformer
from vit.surgery import shrink

OnReport = Callable[[TrainReport], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest:
    """How to prune.

    Attributes:
        budget_ms: latency to come down to, on the target.
        schedule: rounds, training steps between them, smoothing.
        recipe: of the training between rounds; its steps follow from the schedule.
        scoring: of what is left, anew in every round.
        selection, eta: how sizes are chosen; eta is the latency weight of `greedy`, found if None.

    Raises:
        TrainingError: a recipe with a running mean of the weights, of which nothing would come out.
    """

    budget_ms: float
    schedule: Schedule
    recipe: Recipe
    scoring: Scoring = field(default_factory=lambda: Scoring(criterion="nvit"))
    selection: str = "greedy"
    eta: float | None = None
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        if self.recipe.ema:
            raise TrainingError("ema is for a fine-tune; rounds of pruning go on from the weights themselves")

    def document(self) -> dict[str, Any]:
        return {
            "budget_ms": self.budget_ms,
            "schedule": asdict(self.schedule),
            "recipe": self.recipe.to_dict(),
            "scoring": asdict(self.scoring),
            "selection": self.selection,
            "eta": self.eta,
            "constraints": self.constraints.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Round:
    """One round as the journal has it.

    Attributes:
        budget_ms, latency_ms: of the round, on the target.
        kept: share of the saliency before the round.
        eta: latency weight, of the greedy selection.
        loss: mean training loss after the round; None where nothing was trained.
        removed: group and units that went, by their indices in the model as it was given, in the order they went.
        resumed: read from the journal, not done now.
    """

    round: int
    rounds: int
    arch: Architecture
    budget_ms: float
    latency_ms: float
    kept: float
    eta: float | None
    loss: float | None
    removed: tuple[tuple[str, tuple[int, ...]], ...]
    resumed: bool = False

    def line(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in self.__slots__ if name not in ("arch", "resumed")}
        return document | {"architecture": self.arch.to_dict()}

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> "Round":
        values = {name: value for name, value in line.items() if name != "architecture"}
        values["removed"] = tuple((group, tuple(units)) for group, units in line["removed"])
        return cls(arch=Architecture.from_dict(line["architecture"]), resumed=True, **values)


@dataclass(frozen=True, slots=True)
class _Folder:
    root: Path

    @property
    def journal(self) -> Path:
        return self.root / "run.jsonl"

    @property
    def start(self) -> Path:
        return self.root / "start.safetensors"

    def model(self, index: int) -> Path:
        """After a round; -1 is the model as it was given."""
        return self.start if index < 0 else self.root / f"round-{index:03}.safetensors"

    def saliency(self, index: int) -> Path:
        return self.root / f"round-{index:03}.saliency.safetensors"

    def trainer(self, index: int) -> Path:
        return self.root / f"round-{index:03}.trainer.safetensors"


def model_after(folder: Path, index: int) -> Path:
    """The checkpoint of a round, in the folder of a run."""
    return _Folder(folder).model(index)


def schedule_for(
    arch: Architecture, share: float, rounds: int | None = None, interval: int | None = None, smoothing: float = 0.0
) -> Schedule:
    """The usual schedule for a budget, a share of the uncut model's latency, with what was asked for in its place."""
    usual = default_schedule(arch, min(share, 1.0))
    return Schedule(
        usual.rounds if rounds is None else rounds, usual.interval if interval is None else interval, smoothing
    )


class Recovery:
    """Trains between rounds with one optimiser, which every cut cuts too: `search.protocols.Recover`.

    Attributes:
        recipe: as it is used, as long as the whole run.
        trainer: once there was a cut.
        losses: of the reports since the last cut.
    """

    def __init__(
        self,
        data: Dataset,
        schedule: Schedule,
        recipe: Recipe,
        teacher: VisionTransformer,
        report: OnReport = lambda _: None,
    ) -> None:
        self._data, self._teacher, self._report = data, teacher, report
        self._interval = schedule.interval
        steps = max(schedule.interval * (schedule.rounds - 1), 1)
        self.recipe = replace(recipe, steps=steps, epochs=None)
        self.trainer: Trainer | None = None
        self.losses: list[float] = []

    def resume(self, model: VisionTransformer, state: Path) -> None:
        self.trainer = self._new(model)
        self.trainer.load_state(load_file(state))

    def _new(self, model: VisionTransformer) -> Trainer:
        return Trainer(model, self._data, self.recipe, self._teacher)

    def __call__(self, model: VisionTransformer, keep: Keep, round_index: int) -> None:
        if self.trainer is None:
            self.trainer = self._new(model)
        else:
            self.trainer.adopt(model, keep)
        self.losses = []
        for report in self.trainer.train((round_index + 1) * self._interval):
            self.losses.append(report.loss)
            self._report(report)
        model.eval()


def run_prune(
    checkpoint: Checkpoint,
    data: Dataset,
    latency: LatencyModel,
    request: PruneRequest,
    folder: Path,
    *,
    target: str,
    report: OnReport = lambda _: None,
    device: torch.device = torch.device("cpu"),
) -> Iterator[Round]:
    """Prune in rounds with training in between; yields every round, those of a run that goes on included.

    Processes that joined (`api.processes`) share the batches of scoring and training; the first one writes.

    Args:
        folder: of the run; the same call goes on there.
        target: how `latency` was named, for `pick`.
        report: called with the progress of training.

    Raises:
        JournalError: the folder holds another run, or another process runs it.
        BudgetError, ConstraintError: before anything is cut.
    """
    files = _Folder(folder)
    select = selection_named(request.selection, request.eta)
    data.check(checkpoint.arch)
    dense = checkpoint.model().to(device)
    header = {
        "journal": "vitfit-prune",
        "version": 1,
        "model": model_id(checkpoint),
        "data": f"{data.name}:{data.fingerprint}",
        "target": target,
        "table": latency.fingerprint,
        **request.document(),
    }
    with _opened(files, header) as journal:
        if journal is not None and not files.start.exists():
            save_checkpoint(checkpoint, files.start)
        processes.wait()
        done = [Round.of_line(line) for line in read_journal(files.journal)[1]]
        processes.wait()  # all have read what the first will write to
        yield from done
        original = {group: np.arange(size(checkpoint.arch, group)) for group in groups(checkpoint.arch)}
        for made in done:
            for group, units in _removed_of(made):
                original[group] = np.setdiff1d(original[group], units)
        trains, rounds = request.schedule.interval > 0, request.schedule.rounds
        masks = load_checkpoint(files.model(done[-1].round)).masks if done else checkpoint.masks
        arch = done[-1].arch if done else checkpoint.arch
        if trains:
            masks = None  # training fills zeros again
        recovery = Recovery(data, request.schedule, request.recipe, dense, report)
        after = _step_of(files, done[-1], device) if done else None
        if after is not None and trains and len(done) < rounds:
            recovery.resume(after.model, files.trainer(after.round))
        for step in prune(
            dense,
            request.scoring.on(data),
            latency,
            request.budget_ms,
            select=select,
            schedule=request.schedule,
            constraints=request.constraints,
            recover=recovery if trains else None,
            after=after,
        ):
            made = _round_of(step, rounds, original, recovery.losses)
            for group, kept in step.keep.indices.items():
                original[group] = original[group][kept]
            masks, arch = masks_after(masks, arch, step.keep), step.model.arch
            if journal is not None:
                save_saliency(step.saliency, files.saliency(step.round))
                save_checkpoint(_checkpoint_of(checkpoint, step, header, made, masks), files.model(step.round))
                if recovery.trainer is not None and step.round + 1 < rounds:
                    state = recovery.trainer.state()
                    write_atomically(files.trainer(step.round), partial(save_file, state))
                journal.append(made.line())
                files.trainer(step.round - 1).unlink(missing_ok=True)
            yield made


@contextmanager
def _opened(files: _Folder, header: dict[str, Any]) -> Iterator[Journal | None]:
    """The journal, for the first process. What was asked for and cannot be done leaves no folder."""
    if processes.share()[0] > 0:
        yield None
        return
    with Journal(files.journal, header) as journal:
        try:
            yield journal
        except VitfitError:
            if not journal.lines:
                for path in (files.journal, files.start):
                    path.unlink(missing_ok=True)
                with suppress(OSError):  # what others keep there stays
                    files.root.rmdir()
            raise


def _round_of(
    step: PruneStep, rounds: int, original: Mapping[Group, npt.NDArray[np.int64]], losses: list[float]
) -> Round:
    choice, last = step.choice, step.round + 1 == rounds
    return Round(
        step.round,
        rounds,
        choice.arch,
        choice.budget_ms,
        choice.latency_ms,
        choice.kept,
        choice.eta if isinstance(choice, GreedyChoice) else None,
        float(np.mean(losses)) if losses and not last else None,
        tuple((str(group), tuple(original[group][units].tolist())) for group, units in step.removed),
    )


def _removed_of(made: Round) -> Iterator[tuple[Group, list[int]]]:
    by_name = {str(group): group for group in groups(made.arch)}
    for name, units in made.removed:
        yield by_name[name], list(units)


def _step_of(files: _Folder, made: Round, device: torch.device) -> PruneStep:
    """A round of the journal, with what lies beside it."""
    saliency = load_saliency(files.saliency(made.round))
    choice = Choice(made.arch, made.latency_ms, made.budget_ms, made.kept, None)
    model = load_checkpoint(files.model(made.round)).model().to(device)
    return PruneStep(made.round, model, choice, saliency, saliency.keep(choice.sizes()))


def _checkpoint_of(
    before: Checkpoint, step: PruneStep, header: Mapping[str, Any], made: Round, masks: SparsityMask | None
) -> Checkpoint:
    done = {
        "step": "prune",
        "from": header["model"],
        "from_architecture": before.arch.id,
        **{name: value for name, value in header.items() if name not in ("journal", "version", "model")},
        "round": made.round,
        "latency_ms": made.latency_ms,
        "saliency_kept": made.kept,
        **({"masks": "dropped"} if before.masks is not None and masks is None else {}),
    }
    return Checkpoint.of(step.model, (*before.lineage, done), masks)


# --- any budget on the way ---------------------------------------------------------------------------------------


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except VitfitError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise JournalError(f"{folder} holds no run of `vitfit prune` that can be read: {error!r:.200}") from None


def pick(
    folder: Path, library: Library, budget_of: Callable[[float], float]
) -> tuple[Checkpoint, Choice, LatencyModel]:
    """The model that a run had on its way at a budget: of the last round above it, cut by what the next one cut by.

    Args:
        budget_of: latency of the uncut model -> budget.

    Raises:
        JournalError, CheckpointError: no run that can be read.
        TargetError: its target has changed.
        BudgetError: above the uncut model, or below where the run has got to.
    """
    files = _Folder(folder)
    with _readable(folder):
        header, lines = read_journal(files.journal)
        rounds = [Round.of_line(line) for line in lines]
        start = load_checkpoint(files.start)
        latency = resolve_target(header["target"], start.arch, library)
        if latency.fingerprint != header["table"]:
            raise TargetError(f"{header['target']} has changed since this run; its budgets mean something else now")
        full_ms = estimate(latency, start.arch).latency_ms
        budget_ms = budget_of(full_ms)
        reached = min((made.latency_ms for made in rounds), default=full_ms)
        if not budget_ms >= reached:
            raise BudgetError(
                f"the run in {folder} went from {full_ms:.4g} to {reached:.4g} on {latency.target.slug}, "
                f"a budget of {budget_ms:.4g} is below that"
            )
        index = next(made.round for made in rounds if made.latency_ms <= budget_ms)
        before, saliency = load_checkpoint(files.model(index - 1)), load_saliency(files.saliency(index))
        constraints = Constraints.from_dict(header["constraints"])
        select = selection_named(header["selection"], header["eta"])
    choice = select(saliency, latency, budget_ms, constraints)
    keep = saliency.keep(choice.sizes())
    small, masks = shrink(before.model(), keep), masks_after(before.masks, before.arch, keep)
    step = {"step": "pick", "budget_ms": budget_ms, "latency_ms": choice.latency_ms, "after_round": index - 1}
    return Checkpoint.of(small, (*before.lineage, step), masks), choice, latency
