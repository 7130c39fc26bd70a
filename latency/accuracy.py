"""Predicted against measured: how far off, and whether the order is right."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors are shares of the measured time, |predicted / measured - 1|.

    Attributes:
        count: pairs.
        mape, median, p95, worst: mean, median, 95th percentile and largest error.
        bias: median of predicted / measured - 1, with its sign.
        rank_correlation: Spearman's; 1 when predicted order is measured order, None for fewer than three pairs.
        interval: 5th and 95th percentile of measured / predicted.
    """

    count: int
    mape: float
    median: float
    p95: float
    worst: float
    bias: float
    rank_correlation: float | None
    interval: tuple[float, float]

    @classmethod
    def of(cls, predicted: npt.ArrayLike, measured: npt.ArrayLike) -> "Accuracy":
        """
        Args:
            predicted, measured: positive times, one shape.
        """
        p, m = np.asarray(predicted, np.float64).ravel(), np.asarray(measured, np.float64).ravel()
        if p.shape != m.shape or not len(p):
            raise ValueError(f"one measured time for each predicted one, got {m.shape} and {p.shape}")
        error = np.abs(p / m - 1)
        low, high = np.percentile(m / p, (5, 95))
        return cls(
            count=len(p),
            mape=float(error.mean()),
            median=float(np.median(error)),
            p95=float(np.percentile(error, 95)),
            worst=float(error.max()),
            bias=float(np.median(p / m - 1)),
            rank_correlation=float(spearmanr(p, m).statistic) if len(p) > 2 else None,
            interval=(float(low), float(high)),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
