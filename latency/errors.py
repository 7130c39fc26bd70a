"""Errors of the latency package, all of them VitfitErrors."""

from typing import Self

from vit.errors import VitfitError


class TableError(VitfitError, ValueError):
    """A table or table file that cannot be trusted; the message names the first offending point."""


class TargetError(VitfitError, ValueError):
    """A target that is malformed, not available here, or not the one that was asked for."""


class OutsideGridError(VitfitError, ValueError):
    """A size outside what was profiled. `axis` names the size."""

    def __init__(self, message: str, axis: str) -> None:
        super().__init__(message)
        self.axis = axis

    @classmethod
    def of(cls, axis: str, size: float, low: int, high: int, source: str) -> Self:
        return cls(
            f"{axis}={size:g} is outside [{low}, {high}], the range profiled in {source}; "
            "profile a wider grid or bound the search",
            axis,
        )
