"""What every foreign table format needs: a bounded read, exact changes of unit, a full grid from loose points."""

import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latency.errors import TableError
from latency.grid import AXES, Grid
from latency.storage import MAX_BYTES, MAX_ROWS
from latency.table import Outside
from latency.target import Target
from vit.architecture import MAX_SIZE

Array = npt.NDArray[np.float64]
Point = tuple[int, int, int, int, int]
"""Sizes in the order of `grid.AXES`."""


@dataclass(frozen=True, slots=True)
class Description:
    """What the caller says about a file, for whatever the file itself leaves open.

    A file that does say it has to say the same: what is given here never overrules a file.

    Attributes:
        imported_at: UTC, ISO 8601.
        target, norm: what the latencies belong to.
        outside: geometry of the part outside the blocks.
        outside_ms: time outside the blocks, ms per batch: one number, or one per embed_dim. There is no default: a
            model without patch embedding and classifier would look faster than any.
        source, license: where the figures come from, and on which terms.
    """

    imported_at: str
    target: Target | None = None
    norm: str | None = None
    outside: Outside | None = None
    outside_ms: float | Mapping[int, float] | None = None
    source: str | None = None
    license: str | None = None


def read_text(path: Path) -> str:
    """The text of a file that is no larger than any table; what is larger is refused before it is read.

    Raises:
        TableError: no file, none that can be read, too large, or no UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TableError("is no regular file")  # a pipe or a device has no size that could be checked
        if status.st_size <= MAX_BYTES:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)  # it may have grown since
            if len(content) <= MAX_BYTES:
                return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise TableError("there is no such file") from None
    except UnicodeDecodeError as error:
        raise TableError(f"is no UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise TableError(f"cannot be read: {error.strerror}") from None
    raise TableError(f"is larger than {MAX_BYTES // 2**20} MiB; no latency table is")


def scaled(text: str, power: int) -> float:
    """The double nearest to `text` * 10**power: the decimal point moves before the one rounding.

    Multiplying a double by 1000 instead would round a second time, and 0.0011 s would not always be 1.1 ms.

    Raises:
        ValueError: no number.
    """
    mantissa, _, exponent = text.strip().lower().partition("e")
    if mantissa.lstrip("+-") in ("nan", "inf", "infinity"):
        return float(mantissa)
    return float(f"{mantissa}e{int(exponent or 0) + power}")


def described(point: Sequence[int]) -> str:
    return " ".join(f"{name}={size}" for name, size in zip(AXES, point, strict=True))


def size_of(text: str, name: str) -> int:
    """
    Raises:
        TableError: anything but a plain whole number from 1.
    """
    if not (text.isascii() and text.isdigit() and not text.startswith("0") and len(text) < 10):
        raise TableError(f"{name} must be a whole number from 1 to {MAX_SIZE}, got {text!r:.40}")
    if (size := int(text)) > MAX_SIZE:
        raise TableError(f"{name} must be a whole number from 1 to {MAX_SIZE}, got {size}")
    return size


def full_grid(points: Sequence[Point]) -> tuple[Grid, npt.NDArray[np.intp]]:
    """The grid whose product these points are, and the order that sorts them (last axis fastest).

    Nothing of the size of the product is built: scattered points would make it huge.

    Raises:
        TableError: none, too many, doubled, or not a full product; the first such point is named.
    """
    if not points:
        raise TableError("holds no block")
    if len(points) > MAX_ROWS:
        raise TableError(f"holds {len(points)} points; at most {MAX_ROWS} are read")
    sizes = np.array(points, dtype=np.int64)
    order = np.lexsort(sizes.T[::-1])
    ranked = sizes[order]
    doubled = np.flatnonzero((ranked[1:] == ranked[:-1]).all(axis=1))
    if len(doubled):
        raise TableError(f"the point {described(ranked[doubled[0]].tolist())} is there twice")
    axes = [np.unique(column) for column in sizes.T]
    expected = np.empty((len(points) + 1, len(AXES)), dtype=np.int64)
    rows = np.arange(len(points) + 1)
    for column, axis in reversed(list(enumerate(axes))):
        rows, index = np.divmod(rows, len(axis))
        expected[:, column] = axis[index]
    missing = math.prod(len(axis) for axis in axes) - len(points)
    if missing:
        # Sorted points are a part of the sorted product: where the two part, the product's point is the hole.
        differ = np.flatnonzero((ranked != expected[:-1]).any(axis=1))
        hole = expected[differ[0] if len(differ) else len(points)]
        raise TableError(
            f"the sizes make {missing + len(points)} points, {len(points)} of them are there; the first hole is "
            f"{described(hole.tolist())}"
        )
    return Grid(*(tuple(axis.tolist()) for axis in axes)), order


def outside_times(given: float | Mapping[int, float], embed_dims: Sequence[int]) -> Array:
    """One time per embed_dim.

    Raises:
        TableError: a width without a time, or a time without a width.
    """
    if not isinstance(given, Mapping):
        return np.full(len(embed_dims), float(given))
    if missing := [embed for embed in embed_dims if embed not in given]:
        raise TableError(f"outside_ms has no time for embed_dim={missing[0]}")
    if extra := [embed for embed in given if embed not in embed_dims]:
        raise TableError(f"outside_ms is given for embed_dim={extra[0]}, of which the file has no block")
    return np.array([given[embed] for embed in embed_dims], dtype=np.float64)
