"""Cut a model to a budget: score, choose, cut, train on; in one round or in many.

Saliency describes the model that it was computed on. In several rounds the budget shrinks in equal steps and what is
left is scored again, so that later cuts know about earlier ones; trained on between them, what is left makes up for
what went. With NViT's criterion and the greedy choice that is NViT (Yang et al. 2023, poster), without what is odd in
its released code: units are cut, not masked, so that the model which is trained is the one which is kept (under
LayerNorm a masked one is another function), and rounds end at a latency, not at a count of groups.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from latency.estimate import LatencyModel, estimate
from search.constraints import Constraints
from search.frontier import Choice, frontier_choice
from search.greedy import GreedyChoice, greedy_choice
from search.protocols import Recover, Score
from search.saliency import Saliency, smoothed
from search.schedule import Schedule
from vit.groups import Group, Keep
from vit.model import VisionTransformer
from vit.surgery import shrink

Select = Callable[[Saliency, LatencyModel, float, Constraints | None], Choice]

SELECTIONS: dict[str, Select] = {"frontier": frontier_choice, "greedy": greedy_choice}


def greedy_with(eta: float) -> Select:
    """NViT's ranking at a latency weight of the caller's."""
    return partial(greedy_choice, eta=eta)


@dataclass(frozen=True, eq=False)
class PruneStep:
    """One round.

    Attributes:
        model: what is left, trained on where that was asked for.
        choice: its architecture, latency and certificate.
        saliency: of the model before the round, what the choice was made on.
        keep: units of the model before the round that stayed.
    """

    round: int
    model: VisionTransformer
    choice: Choice
    saliency: Saliency
    keep: Keep

    @property
    def removed(self) -> list[tuple[Group, npt.NDArray[np.int64]]]:
        """What went, in the order in which it went: group and indices of units in the model before the round.

        The greedy choice removes chunk after chunk; the frontier chooses all sizes at once, so its order is that of
        the groups.
        """
        chunks = self.choice.removed if isinstance(self.choice, GreedyChoice) else tuple(self.choice.sizes().items())
        orders = {group: self.saliency.order(group) for group, _ in chunks}
        gone = []
        for group, left in chunks:
            gone.append((group, orders[group][left:]))
            orders[group] = orders[group][:left]
        return [(group, units) for group, units in gone if len(units)]


def prune(
    model: VisionTransformer,
    score: Score,
    latency: LatencyModel,
    budget_ms: float,
    *,
    select: Select = frontier_choice,
    schedule: Schedule | None = None,
    constraints: Constraints | None = None,
    recover: Recover | None = None,
    after: PruneStep | None = None,
) -> Iterator[PruneStep]:
    """Yield one step a round; the last one meets the budget and is not trained on. `model` is untouched.

    Args:
        score: called once a round with what is left.
        select: how sizes are chosen, one of SELECTIONS.
        schedule: one round by default.
        recover: trains what is left after every round but the last.
        after: the last step of a run that was stopped, to go on from; what comes is what would have come.

    Raises:
        ConstraintError: constraints that the model cannot meet.
        BudgetError: the budget is outside what the target and the model allow; before anything is cut.
    """
    schedule = schedule or Schedule()
    budgets = schedule.budgets(estimate(latency, model.arch).latency_ms, budget_ms)
    before = after
    for index in range(0 if after is None else after.round + 1, schedule.rounds):
        left = model if before is None else before.model
        saliency = score(left, index)
        if before is not None:
            saliency = smoothed(before.saliency, saliency, schedule.smoothing, before.keep)
        elif schedule.rounds > 1:
            select(saliency, latency, budget_ms, constraints)  # an impossible budget fails before the first cut
        # What is left may be below this round's budget already: then there is nothing to cut.
        step_ms = min(budgets[index], estimate(latency, left.arch).latency_ms) if index else budgets[index]
        choice = select(saliency, latency, step_ms, constraints)
        keep = saliency.keep(choice.sizes())
        small = shrink(left, keep)
        if recover is not None and index + 1 < schedule.rounds:
            recover(small, keep, index)
        before = PruneStep(index, small, choice, saliency, keep)
        yield before
