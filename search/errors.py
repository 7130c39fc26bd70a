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


class ProfileError(VitfitError, ValueError):
    """A profile that gives no sizes. `field` names the culprit."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TrendError(VitfitError, ValueError):
    """Models that no rule can be learned from."""


class StudyError(VitfitError, ValueError):
    """A study that cannot be gone on with, or that is not there."""


class StorageVersionError(VitfitError, RuntimeError):
    """Studies of an older or newer Optuna."""


class StudyFileError(VitfitError, ValueError):
    """A study file that cannot be run. `line` from 1, and `key` as in `space.embed_dim.from`."""

    def __init__(self, message: str, line: int | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.line, self.key = line, key
