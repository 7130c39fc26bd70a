"""Errors of the search package, all of them VitfitErrors."""

from vit.errors import VitfitError


class SaliencyError(VitfitError, ValueError):
    """A saliency that is malformed, not readable, or of another model than asked for."""


class BudgetError(VitfitError, ValueError):
    """A budget that nothing meets or that needs no search; the message gives the range that can be asked for."""


class ConstraintError(VitfitError, ValueError):
    """Constraints that contradict each other or the model. `field` names the culprit."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class FrontierError(VitfitError, ValueError):
    """A stored frontier that is not readable, or of another saliency, target or constraints than asked for."""
