"""Every error that vitfit raises on purpose.

    VitfitError                  base: the user can do something about it
    ├── ArchitectureError        a shape that cannot be built          (ValueError)
    ├── UnsupportedModelError    a model that is no plain ViT          (ValueError)
    ├── CheckpointError          a file that is no checkpoint of ours  (ValueError)
    ├── ExportError              an export that does not agree         (ValueError)
    ├── JournalError             a journal of other work, or in use    (ValueError)
    ├── CalibrationError         images that teach nothing             (ValueError)
    ├── MaskError                a mask that does not fit the model    (ValueError)
    └── UnknownNameError         a name that is not in a list          (LookupError)

The other packages add theirs beside what raises them; all derive from `VitfitError`, so an edge
(CLI, REST) catches one class and shows its one line.
"""

from collections.abc import Iterable
from typing import Any


class VitfitError(Exception):
    """Base of the errors that say what was given, what is allowed and what to do.

    They survive the way to another process: message and attributes come back, whatever their constructor takes.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[VitfitError], args: tuple[Any, ...], attributes: dict[str, Any]) -> VitfitError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class ArchitectureError(VitfitError, ValueError):
    """A shape or an architecture document that describes no model. `field` names the culprit."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnsupportedModelError(VitfitError, ValueError):
    """A model that is not a plain Vision Transformer; the message names the part that differs."""


class CheckpointError(VitfitError, ValueError):
    """A file that cannot be read as a vitfit checkpoint."""


class ExportError(VitfitError, ValueError):
    """An export that was refused: its outputs differ from the model's, it does not run, or its place is taken."""


class JournalError(VitfitError, ValueError):
    """A journal that belongs to other work, or that another process writes."""


class CalibrationError(VitfitError, ValueError):
    """Calibration images that are missing, constant or not finite, or that give such outputs."""


class MaskError(VitfitError, ValueError):
    """A sparsity mask that is none, or that does not fit the model's parameters."""


class UnknownNameError(VitfitError, LookupError):
    """A name that is not in a table of names; the message lists the table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        choices = ", ".join(self.known) if self.known else "none yet"
        super().__init__(f"unknown {kind} {name!r}; known: {choices}")
