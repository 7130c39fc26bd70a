"""A model, images and a sparsity -> the same model with that many zeros, the other weights re-tuned.

Layers whose statistics do not fit into the memory that is allowed are done in turn, with the gradients computed anew
for each turn; the answer is the same.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sparsity.choice import cheapest
from sparsity.errors import GradientError, SparsityError
from sparsity.gradients import Batch, Loss, add_up, failing_together, gradients
from sparsity.layers import SELECTIONS, Selection, prunable
from sparsity.methods import METHODS, Method, Problem
from sparsity.pattern import UNSTRUCTURED, Layout, Pattern
from sparsity.solvers import MERGES, Solver
from sparsity.statistics import Statistic
from vit.errors import UnknownNameError
from vit.masks import SparsityMask

Module = TypeVar("Module", bound=nn.Module)
Batches = Callable[[int], Iterable[Batch]]
"""The number of a recomputation -> calibration batches; the same ones each time that it is asked for one number."""

SCOPES = ("global", "uniform")
SILENT = ("stop", "skip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsify:
    """What is asked for.

    Attributes:
        sparsity: fraction of the selected weights to remove, in [0, 1); None where the pattern says it.
        method: one of METHODS.
        pattern: of the zeros.
        scope: global, the cheapest weights of all layers; or uniform, the same fraction of each.
        selection: which weights.
        block_size, damp: of the Fisher blocks; None: the selection's or the method's.
        merge: how oViT compares blocks: marginal, or the paper's cumulative.
        recomputations: so many steps on the way, each with gradients of its own; densities fall geometrically.
        silent: what to do with layers whose gradients are all zero: stop, or skip them (they lose no weight).
        memory_gb: for the statistics of the layers that are done together; None: any. M-FAC, which keeps all gradients,
            goes through the batches once more, to count them.

    Raises:
        SparsityError: a number outside its range, with the range.
        UnknownNameError: a name that is not in its list.
    """

    sparsity: float | None = None
    method: str = "ovit"
    pattern: Pattern = UNSTRUCTURED
    scope: str = "global"
    selection: Selection = SELECTIONS["vit"]
    block_size: int | None = None
    damp: float | None = None
    merge: str = "marginal"
    recomputations: int = 1
    silent: str = "stop"
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("method", self.method, METHODS),
            ("merge", self.merge, MERGES),
            ("scope", self.scope, SCOPES),
            ("way with silent layers", self.silent, SILENT),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        if (self.sparsity is None) == (self.pattern.sparsity is None):
            fixed = self.pattern.sparsity
            raise SparsityError(
                f"the pattern {self.pattern} "
                + ("needs a sparsity" if fixed is None else f"has a sparsity of {fixed:g} of its own; give none")
            )
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise SparsityError(f"sparsity must be from 0 to less than 1, got {self.sparsity}")
        if self.recomputations < 1:
            raise SparsityError(f"recomputations must be at least 1, got {self.recomputations}")
        if self.recomputations > 1 and self.pattern.of:
            raise SparsityError(f"the pattern {self.pattern} is reached in one step; recomputations must be 1")
        if self.block_size is not None and self.block_size < 1:
            raise SparsityError(f"block_size must be at least 1, got {self.block_size}")
        if self.damp is not None and not 0 < self.damp < math.inf:
            raise SparsityError(f"damp must be above zero, got {self.damp}")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise SparsityError(f"memory_gb must be above zero, got {self.memory_gb}")

    @property
    def target(self) -> float:
        return self.pattern.sparsity if self.sparsity is None else self.sparsity  # type: ignore[return-value]

    @property
    def how(self) -> Method:
        return METHODS[self.method]

    def layout(self, name: str, weight: Tensor) -> Layout:
        size = self.block_size or self.selection.block_size or self.how.block_size
        return Layout(name, tuple(weight.shape), self.pattern, size)


@dataclass(frozen=True, eq=False)
class Sparsified(Generic[Module]):
    """
    Attributes:
        model: a copy, with zeros.
        mask: what stays.
        gradients: how many batches were looked at in the last step.
        skipped: layers that kept all they had, for their gradients were zero.
    """

    model: Module
    mask: SparsityMask
    gradients: int
    skipped: tuple[str, ...]


def sparsify(
    model: Module, batches: Batches | None, loss: Loss | None, request: Sparsify, mask: SparsityMask | None = None
) -> Sparsified[Module]:
    """Remove weights; `model` stays as it is.

    Args:
        batches: calibration batches, for methods that need gradients.
        loss: a model and what a batch holds -> its mean loss.
        mask: what was removed before; such weights stay removed. None: weights that are zero are.

    Raises:
        SparsityError, PatternError: what is asked for cannot be.
        GradientError: gradients that are not finite, or say nothing of a layer.
        MaskError: the mask does not fit.
    """
    model = copy.deepcopy(model)
    weights = prunable(model, request.selection)
    if mask is not None:
        mask.apply_(model)
    before = _before(weights, request)
    steps = request.recomputations
    count, skipped = 0, tuple[str, ...]()
    for step in range(1, steps + 1):
        density = (1 - before) * ((1 - request.target) / (1 - before)) ** (step / steps)
        now = (
            request
            if request.pattern.of
            else replace(request, sparsity=1 - density if step < steps else request.target)
        )
        run = _Step(model, weights, None if batches is None else partial(batches, step - 1), loss, now)
        count, skipped = run.carry_out()
    return Sparsified(model, SparsityMask.of(model, weights), count, skipped)


def _before(weights: Mapping[str, Tensor], request: Sparsify) -> float:
    """The sparsity so far.

    Raises:
        SparsityError: it is more than what is asked for: of all, or of a layer where each is to have the same.
    """
    zeros = {name: weight.numel() - int(weight.count_nonzero()) for name, weight in weights.items()}
    parts = {"the weights": list(weights)} if request.scope == "global" else {name: [name] for name in weights}
    if request.pattern.of:  # each group has what stays of it, however much is gone
        parts = {}
    for what, names in parts.items():
        gone, total = sum(zeros[name] for name in names), sum(weights[name].numel() for name in names)
        if gone > round(request.target * total):
            raise SparsityError(
                f"{gone / total:.2%} of {what} are zero already, "
                f"more than the sparsity of {request.target:.2%} asked for"
            )
    return sum(zeros.values()) / sum(weight.numel() for weight in weights.values())


class _Step:
    """All layers to one sparsity, from gradients at one set of weights."""

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        batches: Callable[[], Iterable[Batch]] | None,
        loss: Loss | None,
        request: Sparsify,
    ) -> None:
        self.model, self.weights, self.batches, self.loss, self.request = model, weights, batches, loss, request
        self.layouts = {name: request.layout(name, weight) for name, weight in weights.items()}
        self.blocks = {
            name: self.layouts[name].blocks(
                weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            )
            for name, weight in weights.items()
        }
        if request.how.needs_gradients and (batches is None or loss is None):
            raise SparsityError(f"the method {request.method} needs calibration batches and a loss")
        self.gradients, self.skipped, self.results = 0, set[str](), dict[str, Tensor]()

    def carry_out(self) -> tuple[int, tuple[str, ...]]:
        turns, request = self._turns(), self.request
        if len(turns) == 1 or request.scope == "uniform" or request.pattern.of:
            for turn in turns:
                self._solve(turn)
            return self._written()
        # What every layer loses depends on all of them: first their errors alone, then turn by turn again.
        known: dict[str, Solver] = {}
        for turn in turns:
            known.update(self._errors(turn))
        counts = self._counts(known)
        for turn in turns:
            self._solve(turn, counts)
        return self._written()

    def _solve(self, names: Sequence[str], counts: Mapping[str, Tensor] | None = None) -> None:
        """One turn, of which only the new weights are left: solvers go before the next turn's come.

        Results wait until all layers have theirs: gradients are of one set of weights.
        """
        solvers = self._solvers(names)
        if counts is None:
            counts = self._counts(solvers)
        for name, solver in solvers.items():
            solver.advance(counts[name])
            self.results[name] = solver.result(counts[name])[0]

    def _errors(self, names: Sequence[str]) -> dict[str, Solver]:
        """One turn, of which only the errors are left."""
        solvers = self._solvers(names)
        for solver in solvers.values():
            solver.advance(torch.full_like(solver.errors[:, 0], solver.errors.shape[1], dtype=torch.int64))
        return {name: _Known(solver.errors.clone()) for name, solver in solvers.items()}

    def _turns(self) -> list[list[str]]:
        """Layers that fit into the memory together, in order."""
        limit, used = self.request.memory_gb, 0.0
        if limit is None:
            return [list(self.layouts)]
        gradients = self._to_come()
        turns: list[list[str]] = [[]]
        for name, layout in self.layouts.items():
            need = self._gib(name, layout.block_size, gradients)
            if need > limit:
                raise SparsityError(f"{name} alone takes {need:.3g} GiB {self._advice(name, gradients, limit)}")
            if used + need > limit:
                turns.append([])
                used = 0.0
            turns[-1].append(name)
            used += need
        return turns

    def _to_come(self) -> int:
        """How many gradients there will be, where what is kept depends on it."""
        if self.batches is None or self.request.how.floats(1, 2) == self.request.how.floats(1, 1):
            return 0
        return sum(1 for _ in self.batches())  # of all processes together: each passes over the others' batches

    def _gib(self, name: str, block_size: int, gradients: int) -> float:
        """What a layer's statistics and solver take with blocks of that size."""
        count = -(-self.layouts[name].size // block_size)
        floats = self.request.how.floats(block_size, gradients)
        return count * block_size * floats * self.blocks[name].element_size() / 2**30

    def _advice(self, name: str, gradients: int, limit: float) -> str:
        """What would fit."""
        layout = self.layouts[name]
        if gradients:
            fit = next((few for few in range(gradients, 0, -1) if self._gib(name, layout.block_size, few) <= limit), 0)
            would = f"{fit} gradients would fit" if fit else "no smaller number would fit"
            return f"with {gradients} gradients kept, more than the {limit:g} allowed; {would}"
        group = layout.pattern.of or layout.pattern.unit
        smaller = range(layout.block_size - group, 0, -group)
        size = next((size for size in smaller if self._gib(name, size, 0) <= limit), None)
        would = f"blocks of {size} would fit" if size else "no smaller blocks would fit"
        return f"with Fisher blocks of {layout.block_size}, more than the {limit:g} allowed; {would}"

    def _solvers(self, names: Sequence[str]) -> dict[str, Solver]:
        request = self.request
        statistics = {name: request.how.statistic(self.blocks[name]) for name in names}
        count = self._collect(statistics) if request.how.needs_gradients else 0
        return {
            name: request.how.solve(self._problem(name, count), statistics.pop(name))
            for name in names
            if name not in self.skipped
        }

    def _collect(self, statistics: Mapping[str, Statistic]) -> int:
        assert self.batches is not None
        assert self.loss is not None
        weights = {name: self.weights[name] for name in statistics}
        alive = {name: self.blocks[name] != 0 for name in statistics}
        sparse = {name for name, mask in alive.items() if not bool(mask.all())}
        heard = {name: torch.zeros((), device=self.blocks[name].device) for name in statistics}
        count = torch.zeros((), dtype=torch.int64, device=next(iter(heard.values())).device)
        with failing_together():
            for found in gradients(self.model, self.batches(), self.loss, weights):
                count += 1
                for name, gradient in found.items():
                    laid = self.layouts[name].blocks(gradient.to(self.blocks[name].dtype))
                    if name in sparse:
                        laid = laid * alive[name]
                    if not heard[name]:
                        heard[name] += laid.count_nonzero()
                    statistics[name].add(laid)
        add_up([count, *heard.values()])
        for name, statistic in statistics.items():
            if not float(heard[name]):
                if self.request.silent == "stop":
                    raise GradientError(
                        f"the gradient of {name} is zero in all {int(count)} batches: nothing tells its weights apart; "
                        "exclude the layer, or skip such layers (silent='skip')",
                        name,
                    )
                self.skipped.add(name)
            add_up(statistic.sums())
        self.gradients = int(count)
        return self.gradients

    def _problem(self, name: str, count: int) -> Problem:
        request, layout, blocks = self.request, self.layouts[name], self.blocks[name]
        unit, pattern = request.pattern.unit, request.pattern
        alive = (blocks.view(len(blocks), -1, unit) != 0).any(dim=2)
        groups = layout.block_size // pattern.of if pattern.of else 1
        living = alive.view(len(blocks), groups, -1).sum(dim=2)
        room = (living - pattern.keep).clamp_min(0) if pattern.of else living
        damp = request.how.damp if request.damp is None else request.damp
        return Problem(blocks, alive, room, unit, count, damp, request.merge)

    def _counts(self, solvers: Mapping[str, Solver]) -> dict[str, Tensor]:
        """How many units each block loses."""
        request = self.request
        if request.pattern.of:
            counts = {}
            for name, solver in solvers.items():
                solver.advance(torch.full_like(solver.errors[:, 0], solver.errors.shape[1], dtype=torch.int64))
                counts[name] = solver.errors.isfinite().sum(dim=1)
            return counts
        if request.scope == "uniform":
            return {name: cheapest([solver], self._missing([name]))[0] for name, solver in solvers.items()}
        found = cheapest(list(solvers.values()), self._missing(list(self.weights)))
        return dict(zip(solvers, found, strict=True))

    def _missing(self, names: Sequence[str]) -> int:
        """Units that these layers still have to lose together."""
        unit = self.request.pattern.unit
        total = sum(self.layouts[name].size for name in names)
        gone = total - sum(int(self.blocks[name].count_nonzero()) for name in names)
        return max(0, round(self.request.target * total) - gone) // unit

    @torch.no_grad()
    def _written(self) -> tuple[int, tuple[str, ...]]:
        for name, blocks in self.results.items():
            self.weights[name].copy_(self.layouts[name].weight(blocks))
        return self.gradients, tuple(sorted(self.skipped))


class _Known:
    """Errors of a solver that is no longer there."""

    def __init__(self, errors: Tensor) -> None:
        self.errors = errors

    def advance(self, until: Tensor) -> None:
        del until

    @property
    def exhausted(self) -> Tensor:
        return torch.ones(len(self.errors), dtype=torch.bool, device=self.errors.device)

    def result(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("only its errors are known")
