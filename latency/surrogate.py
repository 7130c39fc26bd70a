"""A few timed points tell the rest: the physical model, and a smooth correction of what it misses.

    log ms = log physical(sizes) + g(log sizes),   g a Gaussian process (Rasmussen & Williams 2006, 2.2) with a
                                                   Matérn kernel of a length for each axis

The sum of work explains a block to within some percent; what is left (kernels that change with a size, caches) varies
smoothly and is learnt from the residuals. Noise of the timings is part of the process, so it is averaged, not followed.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latency.accuracy import Accuracy
from latency.physics import PhysicalModel, fit

Array = npt.NDArray[np.float64]

FEWEST = 32
"""Points below which nothing is fitted: there are 15 terms and 7 parameters of the correction."""
FOLDS = 10
LEARN_FROM = 400
"""Points from which the correction's lengths are learnt (cubic in their number); values come from all points."""


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """Milliseconds of any block, from those that were timed."""

    physics: PhysicalModel
    correction: Any  # sklearn's GaussianProcessRegressor of log(measured / physical) over _features

    def block_times(self, points: npt.ArrayLike) -> Array:
        """(..., 5) -> (...,), ms."""
        sizes = np.asarray(points, dtype=np.float64)
        flat = sizes.reshape(-1, sizes.shape[-1])
        ms: Array = self.physics.block_times(flat) * np.exp(self.correction.predict(_features(flat)))
        return ms.reshape(sizes.shape[:-1])


def _features(points: Array) -> Array:
    return np.log2(points)


def fit_surrogate(points: Array, ms: Array, tokens: int, kernel: Any = None) -> Surrogate:
    """
    Args:
        points, ms: shapes (P, 5) and (P,).
        tokens: sequence length.
        kernel: of a fit that came before, taken as it is; by default it is learnt.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    physics = fit(points, ms, tokens)
    residual = np.log(ms / physics.block_times(points))
    if kernel is None:
        start = ConstantKernel(0.01, (1e-6, 1.0)) * Matern(np.full(points.shape[1], 2.0), (0.3, 50.0), nu=2.5)
        learner = GaussianProcessRegressor(start + WhiteKernel(1e-3, (1e-7, 0.1)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: the axis does not matter
            learner.fit(_features(points[:LEARN_FROM]), residual[:LEARN_FROM])
        kernel = learner.kernel_
    correction = GaussianProcessRegressor(kernel, optimizer=None).fit(_features(points), residual)
    return Surrogate(physics, correction)


def held_out(points: Array, ms: Array, tokens: int, seed: int = 0) -> Accuracy:
    """What a fit to nine tenths of the points says of the others, every point left out once (of `FOLDS` folds)."""
    kernel = fit_surrogate(points, ms, tokens).correction.kernel_
    folds = np.random.default_rng(seed).permutation(len(ms)) % FOLDS
    predicted = np.empty(len(ms))
    for fold in range(FOLDS):
        left_out = folds == fold
        surrogate = fit_surrogate(points[~left_out], ms[~left_out], tokens, kernel)
        predicted[left_out] = surrogate.block_times(points[left_out])
    return Accuracy.of(predicted, ms)
