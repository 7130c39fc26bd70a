"""What can go wrong while single weights are pruned.

VitfitError
└── SparsityError        a sparsity, method or setting that cannot be        (ValueError)
    ├── PatternError     a pattern that does not fit a weight's dimensions
    └── GradientError    gradients that say nothing about a layer; `layer` names it
"""

from vit.errors import VitfitError


class SparsityError(VitfitError, ValueError):
    """A sparsity, a method or a setting that cannot be carried out."""


class PatternError(SparsityError):
    """A pattern of zeros that does not fit the dimensions of a weight or the size of Fisher blocks."""


class GradientError(SparsityError):
    """Gradients of a layer that are not finite, or zero in every batch; `layer` names it."""

    def __init__(self, message: str, layer: str) -> None:
        super().__init__(message)
        self.layer = layer
