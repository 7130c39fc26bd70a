"""Measurement: samples of one duration and what can be said of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STABLE = 0.10
"""Largest interquartile range of a stable measurement, relative to its median (torch.utils.benchmark uses the same)."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Milliseconds of repeated runs of one thing, in the order in which they were taken."""

    samples_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples_ms or not all(0 < s < float("inf") for s in self.samples_ms):
            raise ValueError(f"samples are positive milliseconds, at least one, got {self.samples_ms!r:.100}")

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> "Measurement":
        return cls(tuple(float(s) for s in samples_ms))

    @property
    def median_ms(self) -> float:
        return float(np.median(self.samples_ms))

    @property
    def iqr_ms(self) -> float:
        low, high = np.percentile(self.samples_ms, (25, 75))
        return float(high - low)

    @property
    def is_stable(self) -> bool:
        return self.iqr_ms <= STABLE * self.median_ms
