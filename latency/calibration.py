"""Coefficients of the modelled targets from published throughput, and how far off they are on what was left out.

Images per second of a GPU in a list of published models give, model by model, one equation that is linear in the
coefficients of `latency.devices`. They are solved by least squares of the relative error:

    min_{c >= 0}  Σ_i ((x_i·c + constants_i) / t_i - 1)² / 0.03²

Where a handful of figures is all there is, COMPUTE and MEMORY have one coefficient each, and a weak belief in the
datasheet decides what the figures leave open: Σ_j (c_j / c⁰_j - 1)², c⁰ the cost at 70 % of peak rate and bandwidth.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from latency.devices import TERMS, Execution, Traits, block_terms, outside_terms
from latency.table import Outside

Array = npt.NDArray[np.float64]

ROW_ERROR, BELIEF_ERROR, BELIEF = 0.03, 1.0, 0.7
"""How far a row and the belief may be off, and the share of the datasheet that a runtime is believed to reach."""

COMPUTE, MEMORY = ("gemm", "attention", "stem"), ("softmax", "traffic", "pixels")
"""Terms whose coefficient a datasheet speaks of. Where figures are few, each of the two kinds has one coefficient."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One published throughput, a row of `lut_data/published_throughput.csv`; sizes as in Architecture."""

    device: str
    runtime: str
    dtype: str
    batch: int
    model: str
    image_size: int
    patch_size: int
    tokens: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    layer_scale: int
    pre_norm: int
    images_per_s: float
    source: str

    @property
    def target(self) -> str:
        return f"{self.device}-{self.runtime}-{self.dtype}"

    @property
    def architecture(self) -> tuple[int, int, int, int]:
        """What is left out together: rows of one architecture differ in name, image size or batch alone."""
        return self.embed_dim, self.depth, self.num_heads, self.mlp_dim

    @property
    def batch_ms(self) -> float:
        return 1e3 * self.batch / self.images_per_s

    @property
    def outside(self) -> Outside:
        return Outside((self.image_size,) * 2, (self.patch_size,) * 2, 3, 1000)

    @property
    def traits(self) -> Traits:
        prefix = self.tokens - (self.image_size // self.patch_size) ** 2
        return Traits(bool(self.layer_scale), prefix > 0, bool(self.pre_norm))

    @property
    def point(self) -> tuple[int, int, int, int, int]:
        """Sizes of every block in the order of `grid.AXES`."""
        head_dim = self.embed_dim // self.num_heads
        return self.embed_dim, self.num_heads, head_dim, head_dim, self.mlp_dim


_TEXT = ("device", "runtime", "dtype", "model", "source")
_UNKNOWN_BATCH = "256"


def read_figures(text: str) -> tuple[Figure, ...]:
    """Figures of a CSV file's text, in its order. Where no batch was published it is taken as 256."""

    def value(name: str, entry: str) -> str | int | float:
        if name in _TEXT:
            return entry
        if name == "images_per_s":
            return float(entry)
        return int(entry or _UNKNOWN_BATCH) if name == "batch" else int(entry)

    rows = csv.DictReader(io.StringIO(text))
    return tuple(Figure(**{name: value(name, entry) for name, entry in row.items()}) for row in rows)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class Equations:
    """Published latencies as equations; all arrays have one entry a row.

    Attributes:
        terms: shape (rows, TERMS), of a whole batch.
        constant_ms, floor_ms: of all blocks and the rest; what the host needs to start the blocks.
        batch_ms: as published.
        groups: rows of one group are left out together.
        names: to print.
    """

    terms: Array
    constant_ms: Array
    floor_ms: Array
    batch_ms: Array
    groups: tuple[object, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, execution: Execution, figures: Sequence[Figure]) -> "Equations":
        rows = [
            f.batch
            * (
                f.depth * block_terms(execution, f.tokens, f.traits, f.point)
                + outside_terms(f.outside, float(f.embed_dim))
            )
            for f in figures
        ]
        depth = np.array([f.depth for f in figures], dtype=np.float64)
        return cls(
            terms=np.stack(rows),
            constant_ms=execution.block_ms * (depth + 1),
            floor_ms=execution.launch_ms * depth + execution.block_ms,
            batch_ms=np.array([f.batch_ms for f in figures]),
            groups=tuple(f.architecture for f in figures),
            names=tuple(f"{f.model} b{f.batch}" for f in figures),
        )

    def take(self, keep: npt.NDArray[np.bool_]) -> "Equations":
        chosen = np.flatnonzero(keep)
        return Equations(
            self.terms[keep],
            self.constant_ms[keep],
            self.floor_ms[keep],
            self.batch_ms[keep],
            tuple(self.groups[i] for i in chosen),
            tuple(self.names[i] for i in chosen),
        )

    def predict(self, weights: Array) -> Array:
        """Shape (rows,), ms a batch."""
        return np.maximum(self.floor_ms, self.constant_ms + self.terms @ weights)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a target is calibrated.

    Attributes:
        execution: a name of `devices.EXECUTIONS`.
        peak_tmacs, bandwidth_gbs: of the datasheet, dense, with fp32 accumulation.
        few: figures are few, so that COMPUTE and MEMORY have one coefficient each and no trait has any.
    """

    device: str
    runtime: str
    dtype: str
    execution: str
    peak_tmacs: float
    bandwidth_gbs: float
    few: bool = False

    @property
    def name(self) -> str:
        return f"{self.device}-{self.runtime}-{self.dtype}"

    @property
    def believed(self) -> Array:
        """One belief a row, shape (beliefs, TERMS): what to multiply the coefficients with to get 1."""
        rates = [("gemm", self.peak_tmacs), ("traffic", self.bandwidth_gbs)]
        return np.array([[BELIEF * rate * (name == term) for term in TERMS] for name, rate in rates])

    @property
    def sharing(self) -> Array:
        """Shape (TERMS, unknowns): which coefficients are the same unknown."""
        if not self.few:
            return np.eye(len(TERMS))
        shares = [[float(name in kind) for name in TERMS] for kind in (COMPUTE, MEMORY, ("tokens",))]
        return np.array(shares).T


def fit(plan: Plan, equations: Equations) -> Array:
    """Coefficients in the order of TERMS (the least squares of this file's first lines).

    Rows that the host holds up (within 15 % of the floor) say nothing about the GPU and are left out.
    """
    e = equations.take(equations.batch_ms > 1.15 * equations.floor_ms)
    rows = e.terms / e.batch_ms[:, None] / ROW_ERROR
    right = (1 - e.constant_ms / e.batch_ms) / ROW_ERROR
    beliefs = plan.believed / BELIEF_ERROR
    matrix = np.concatenate([rows, beliefs]) @ plan.sharing
    target = np.concatenate([right, np.full(len(beliefs), 1 / BELIEF_ERROR)])
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0  # a trait that no row has
    solution, _ = nnls(matrix / scale, target)
    weights: Array = plan.sharing @ (solution / scale)
    return weights


def left_out(plan: Plan, equations: Equations, groups: Sequence[object]) -> Array:
    """Predictions for every row by a fit to the rows of all other groups, shape (rows,), ms a batch."""
    predicted = np.empty(len(equations.batch_ms))
    for group in set(groups):
        out = np.array([g == group for g in groups])
        predicted[out] = equations.take(out).predict(fit(plan, equations.take(~out)))
    return predicted
