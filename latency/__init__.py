"""How long a shape takes on a target, and on what evidence. Imports only vit."""

from latency.estimate import Estimate, LatencyModel, estimate
from latency.table import LatencyTable
from latency.target import Target

__all__ = ["Estimate", "LatencyModel", "LatencyTable", "Target", "estimate"]
