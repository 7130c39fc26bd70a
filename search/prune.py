"""Cut a model to a budget without training in between: score, choose, cut; in one round or several.

Saliency describes the model that it was computed on. In several rounds the budget shrinks in equal steps and what is
left is scored again, so that later cuts know about earlier ones.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from latency.estimate import LatencyModel, estimate
from search.constraints import Constraints
from search.criteria import compute_saliency
from search.errors import BudgetError
from search.frontier import Choice, frontier_choice
from search.greedy import greedy_choice
from search.protocols import Loss
from search.saliency import Saliency
from vit.model import VisionTransformer
from vit.surgery import shrink

Batches = Iterable[tuple[Tensor, Tensor]]
Select = Callable[[Saliency, LatencyModel, float, Constraints | None], Choice]

SELECTIONS: dict[str, Select] = {"frontier": frontier_choice, "greedy": greedy_choice}


@dataclass(frozen=True, eq=False)
class PruneStep:
    """One round.

    Attributes:
        model: what is left.
        choice: its architecture, latency and certificate.
        saliency: what the choice was made on.
    """

    round: int
    model: VisionTransformer
    choice: Choice
    saliency: Saliency


def prune(
    model: VisionTransformer,
    batches: Callable[[int], Batches],
    latency: LatencyModel,
    budget_ms: float,
    *,
    criterion: str,
    loss: Loss,
    select: Select = frontier_choice,
    rounds: int = 1,
    constraints: Constraints | None = None,
    first: Saliency | None = None,
) -> Iterator[PruneStep]:
    """Yield one step a round; the last one meets the budget. `model` is untouched.

    Args:
        batches: round -> calibration batches.
        select: how sizes are chosen, one of SELECTIONS.
        first: saliency of `model`, if it is known already.

    Raises:
        ConstraintError: constraints that the model cannot meet.
        BudgetError: the budget is outside what the target and the model allow, or rounds is below 1.
    """
    if rounds < 1:
        raise BudgetError(f"rounds must be at least 1, got {rounds}")
    start_ms = estimate(latency, model.arch).latency_ms
    for index in range(rounds):
        if first is not None and index == 0:
            saliency = first
        else:
            saliency = compute_saliency(model, batches(index), criterion, loss)
        if index == 0 and rounds > 1:
            select(saliency, latency, budget_ms, constraints)  # an impossible budget fails before the first cut
        left = rounds - 1 - index
        step_ms = budget_ms + (start_ms - budget_ms) * left / rounds
        if index > 0:  # what is left may be below this round's budget already: then there is nothing to cut
            step_ms = min(step_ms, estimate(latency, model.arch).latency_ms)
        choice = select(saliency, latency, step_ms, constraints)
        model = shrink(model, saliency.keep(choice.sizes()))
        yield PruneStep(index, model, choice, saliency)
