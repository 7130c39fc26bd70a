"""Which shape to keep: saliency, the frontier of a budget, ReViT. Imports only vit and latency."""

from search.frontier import Choice, Frontier
from search.redistribute import revit
from search.saliency import Saliency

__all__ = ["Choice", "Frontier", "Saliency", "revit"]
