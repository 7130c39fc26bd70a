"""How long a shape takes on a target, and on what evidence. Imports only vit.

tables      target, grid, table, storage, interop/ (others' formats), compare
answers     estimate, components (of blocks), interpolate, analytic (the target `macs`), extrapolate (beyond a grid)
measuring   runtimes/ (what runs), timer, measurement, bench (builds and times points), plan (what is next),
            profiler (one machine), fanout (a cluster), validation and accuracy (is a table true)
modelling   physics and surrogate (from timed points), devices, calibration and modelled (from published figures)
"""

from latency.estimate import Estimate, LatencyModel, estimate
from latency.table import LatencyTable
from latency.target import Target

__all__ = ["Estimate", "LatencyModel", "LatencyTable", "Target", "estimate"]
