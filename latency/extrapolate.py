"""Beyond a table's grid: the physical model's word, asked for explicitly and marked as modelled.

How far it may be off is what it gets wrong when it has to: fitted without the outermost plane of an axis, it is asked
about that plane, for every axis in turn.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from latency.accuracy import Accuracy
from latency.errors import TableError
from latency.grid import AXES
from latency.physics import fit
from latency.table import LatencyTable, Outside, Provenance
from latency.target import Target
from vit.architecture import MAX_SIZE

Array = npt.NDArray[np.float64]


class Extrapolated:
    """A LatencyModel: the table where it was profiled, its physical model elsewhere.

    Attributes:
        table: what it rests on.
        accuracy: of planes that were left out (see the module).
    """

    kind = "modelled"

    def __init__(self, table: LatencyTable) -> None:
        """
        Raises:
            TableError: no axis has three planes, so nothing can be left out.
        """
        self.table = table
        self.target: Target = table.target
        self.norm: str = table.norm
        self.outside: Outside = table.outside
        self.monotone = table.monotone
        self.accuracy = _left_out(table)
        low, high = self.accuracy.interval
        inner = table.provenance.interval or (1.0, 1.0)
        self.provenance: Provenance = replace(
            table.provenance,
            kind="modelled",
            method=f"beyond the grid a physical model of it; {table.kind}: {table.provenance.method}",
            quality={**table.provenance.quality, "extrapolation_mape": self.accuracy.mape},
            interval=(min(low, 1.0, inner[0]), max(high, 1.0, inner[1])),
        )

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        return dict.fromkeys(AXES, (1, MAX_SIZE))

    @property
    def fingerprint(self) -> str:
        return f"{self.table.fingerprint}-extrapolated"

    def block_times(self, points: npt.ArrayLike) -> Array:
        sizes = np.asarray(points, dtype=np.float64)
        ends = np.array([(axis[0], axis[-1]) for axis in self.table.grid.axes], dtype=np.float64)
        inside = ((sizes >= ends[:, 0]) & (sizes <= ends[:, 1])).all(axis=-1)
        nearest = np.clip(sizes, ends[:, 0], ends[:, 1])
        # Scaled at the grid's edge, so that nothing jumps there.
        scale = self.monotone.block_times(sizes) / self.monotone.block_times(nearest)
        known = self.table.block_times(nearest)
        return np.where(inside, known, known * scale)

    def outside_times(self, embed_dims: npt.ArrayLike) -> Array:
        sizes = np.asarray(embed_dims, dtype=np.float64)
        axis = self.table.grid.embed_dim
        nearest = np.clip(sizes, axis[0], axis[-1])
        more = self.monotone.outside_times(sizes) - self.monotone.outside_times(nearest)
        return np.maximum(self.table.outside_times(nearest) + more, 0.0)


def _left_out(table: LatencyTable) -> Accuracy:
    points = np.stack(np.meshgrid(*table.grid.axes, indexing="ij"), axis=-1).reshape(-1, len(AXES)).astype(np.float64)
    ms = table.block_ms.ravel()
    predicted, truth = [], []
    for column, axis in enumerate(table.grid.axes):
        if len(axis) < 3:
            continue
        outer = points[:, column] == axis[-1]
        model = fit(points[~outer], ms[~outer], table.target.tokens)
        nearest = points[outer].copy()
        nearest[:, column] = axis[-2]
        known = table.block_times(nearest)
        predicted.append(known * model.block_times(points[outer]) / model.block_times(nearest))
        truth.append(ms[outer])
    if not predicted:
        raise TableError(
            f"the table of {table.target.slug} has too few planes to be extrapolated; profile a wider grid"
        )
    return Accuracy.of(np.concatenate(predicted), np.concatenate(truth))
