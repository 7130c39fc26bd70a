"""Target: the one thing that a latency belongs to."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from latency.errors import TargetError

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SLUG = re.compile(r"(.+)-b([1-9][0-9]{0,5})-n([1-9][0-9]{0,5})")

_LONGEST = 120
"""Characters of a setting: with batch, tokens, a digest and an ending it is still the name of a file (255 bytes)."""

MACS = "macs"
"""Device and runtime of the analytic target."""


@dataclass(frozen=True, slots=True)
class Target:
    """Device, runtime, dtype, batch and tokens. Runtime belongs to it: another version, another time.

    Attributes:
        device: for example `a100-80g`, or for CPUs model and threads, `amd-epyc-1t`.
        runtime: for example `eager` (PyTorch).
        dtype: for example `fp32`, `amp`.
        batch: images at a time; latencies are of the whole batch.
        tokens: sequence length.
    """

    device: str
    runtime: str
    dtype: str
    batch: int
    tokens: int

    def __post_init__(self) -> None:
        for name in ("device", "runtime", "dtype"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                raise TargetError(f"target {name} must be lower-case letters, digits, '.' or '-', got {value!r:.100}")
        if len(self.setting) > _LONGEST:
            raise TargetError(
                f"a target's device, runtime and dtype must have at most {_LONGEST} characters together, got "
                f"{len(self.setting)}: {self.setting:.100}..."
            )
        for name in ("batch", "tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
                raise TargetError(f"target {name} must be a whole number from 1, got {value!r:.100}")

    @property
    def slug(self) -> str:
        """One word for files, URLs and command lines: `v100-eager-amp-b256-n197`, or `macs`."""
        if self.is_analytic:
            return MACS
        return f"{self.setting}-b{self.batch}-n{self.tokens}"

    @property
    def setting(self) -> str:
        """The target of any batch and tokens: `v100-eager-amp`."""
        return f"{self.device}-{self.runtime}-{self.dtype}"

    @property
    def is_analytic(self) -> bool:
        return self.device == MACS

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: object) -> Self:
        if not isinstance(document, Mapping) or set(document) != set(cls.__slots__):
            raise TargetError(f"a target has the fields {', '.join(cls.__slots__)}, got {document!r:.200}")
        return cls(**document)


def split_slug(slug: str) -> tuple[str, int, int] | None:
    """Setting, batch and tokens: 'v100-eager-amp-b256-n197' -> ('v100-eager-amp', 256, 197); None for other texts.

    Device, runtime and dtype stay together: each may hold a '-', so only who knows them can tell them apart.
    """
    found = _SLUG.fullmatch(slug)
    return found and (found[1], int(found[2]), int(found[3]))


def device_slug(name: str) -> str:
    """A device's own name as a word, of 80 characters at most: 'NVIDIA A100-SXM4-80GB' -> 'nvidia-a100-sxm4-80gb'."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())[:80].strip("-.") or "unknown"
