"""In how many rounds to prune, and how long to train between two of them."""

import math
from dataclasses import dataclass

from search.errors import BudgetError
from vit.architecture import Architecture
from vit.cost import params

DEIT_B_PARAMS = 86_567_656
NVIT_INTERVAL = 100
"""Training batches between two cuts of a DeiT-B (NViT's published configuration, batches of 512 images)."""

LARGEST_CUT = 0.05
"""Share of the uncut model's latency that a round removes at most, by default."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """
    Attributes:
        rounds: cuts, each of an equal share of the latency that has to go.
        interval: training steps after every cut but the last.
        smoothing: weight of the rounds before in what units are ranked by, as an exponential moving average
            (NViT: 0.9); units are scored anew in every round in any case.

    Raises:
        BudgetError: a value that is none.
    """

    rounds: int = 1
    interval: int = 0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise BudgetError(f"rounds must be at least 1, got {self.rounds}")
        if self.interval < 0:
            raise BudgetError(f"training steps between rounds must be at least 0, got {self.interval}")
        if not 0 <= self.smoothing < 1:
            raise BudgetError(f"smoothing must be from 0 to below 1, got {self.smoothing}")

    def budgets(self, full_ms: float, budget_ms: float) -> list[float]:
        """The budget of every round; the last is `budget_ms` itself."""
        left = [(self.rounds - 1 - index) / self.rounds for index in range(self.rounds)]
        return [budget_ms + (full_ms - budget_ms) * share for share in left]


def default_schedule(arch: Architecture, share: float) -> Schedule:
    """As many rounds as cut LARGEST_CUT each; training steps with the square root of the model's size.

    A DeiT-B gets NViT's 100 steps between rounds, a DeiT-S 51, a DeiT-T 26, a model of a million parameters 11: small
    models recover in fewer steps, and twice the width is four times the parameters.

    Args:
        share: of the uncut model's latency that is kept.
    """
    rounds = max(math.ceil((1 - share) / LARGEST_CUT - 1e-9), 1)
    interval = max(round(NVIT_INTERVAL * math.sqrt(params(arch) / DEIT_B_PARAMS)), 1)
    return Schedule(rounds, interval)
