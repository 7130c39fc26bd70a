"""A block's milliseconds as a non-negative sum of the work in it: a few timed points tell the rest.

    ms = sum over terms of c_t * work_t(EMB, H, QK, V, MLP),   c_t >= 0

where the work of a term is multiply-adds of one matrix product, or elements moved between two of them, or one block.
Every term grows with every size, so the fit does, too: what one more unit costs is never negative. Differences of
neighbours in a table are not so well behaved (steps of QK and V are mostly noise), which is why pruning takes its
savings from here. Coefficients are fitted by non-negative least squares (Lawson & Hanson 1974) of relative errors.

Shapes: P points of 5 sizes in the order of `grid.AXES`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from latency.errors import TableError

Array = npt.NDArray[np.float64]

TILE = 16
"""Channels that matrix kernels handle at once; a part of a tile takes as long as the whole."""


def work(points: npt.ArrayLike, tokens: int) -> dict[str, Array]:
    """The terms, by name: millions of multiply-adds (`*_macs`), millions of elements (others), `block` = 1.

    Args:
        points: shape (..., 5).
        tokens: sequence length.

    Returns:
        Arrays of shape (...,) for one image. None decreases when a size grows.
    """
    embed, heads, qk, v, mlp = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
    n, attention = float(tokens), float(tokens) * tokens

    def tiles(size: Array) -> Array:
        return TILE * np.ceil(size / TILE)

    wider = np.maximum(qk, v)
    terms = {
        "qk_macs": 2 * n * embed * heads * qk,
        "v_macs": 2 * n * embed * heads * v,
        "mlp_macs": 2 * n * embed * mlp,
        "scores_macs": attention * heads * qk,
        "mixing_macs": attention * heads * v,
        "tiled_attention_macs": attention * heads * tiles(wider),  # unequal QK and V are padded to the wider
        "stream": n * embed,
        "qk": n * heads * qk,
        "v": n * heads * v,
        "padded": n * heads * wider,
        "mlp": n * mlp,
        "scores": attention * heads,
        "head_rows": n * heads,
        "weights": embed * (2 * heads * (qk + v) + 2 * mlp),
    }
    return {name: term / 1e6 for name, term in terms.items()} | {"block": np.ones_like(embed)}


@dataclass(frozen=True, slots=True)
class PhysicalModel:
    """
    Attributes:
        tokens: sequence length.
        coefficients: ms per unit of each term's work, by name; none is negative.
    """

    tokens: int
    coefficients: dict[str, float]

    def __post_init__(self) -> None:
        for name, value in self.coefficients.items():
            if not 0 <= value < float("inf"):
                raise TableError(f"coefficients are finite and not negative, {name} is {value}")

    def block_times(self, points: npt.ArrayLike) -> Array:
        """Milliseconds of blocks; (..., 5) -> (...,)."""
        terms = work(points, self.tokens)
        result: Array = sum((c * terms[name] for name, c in self.coefficients.items()), start=np.zeros(()))
        return result

    def savings(self, points: npt.ArrayLike) -> Array:
        """Milliseconds that a block saves when one unit of each axis leaves; (..., 5) -> (..., 5), >= 0."""
        sizes = np.asarray(points, dtype=np.float64)
        fewer = np.maximum(sizes[..., None, :] - np.eye(sizes.shape[-1]), 0.0)
        return np.maximum(self.block_times(sizes)[..., None] - self.block_times(fewer), 0.0)


def fit(points: npt.ArrayLike, ms: npt.ArrayLike, tokens: int) -> PhysicalModel:
    """The coefficients with the least squared relative error at some timed points.

    Args:
        points: shape (P, 5).
        ms: shape (P,), positive.

    Raises:
        TableError: no points, or times that are not positive.
    """
    times = np.asarray(ms, dtype=np.float64)
    if not len(times) or not (np.isfinite(times) & (times > 0)).all():
        raise TableError("a physical model is fitted to at least one point with positive times")
    terms = work(points, tokens)
    relative = np.stack([term / times for term in terms.values()], axis=1)
    scale = np.abs(relative).max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(relative / scale, np.ones(len(times)))
    return PhysicalModel(tokens, dict(zip(terms, (found / scale).tolist(), strict=True)))
