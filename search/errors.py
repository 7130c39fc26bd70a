"""Errors of the search package, all of them VitfitErrors."""

from vit.errors import VitfitError


class SaliencyError(VitfitError, ValueError):
    """A saliency that is malformed, not readable, or of another model than asked for."""


class BudgetError(VitfitError, ValueError):
    """A budget that nothing meets or that needs no search; the message gives the range that can be asked for."""
