"""Library: a folder of latency tables and saliencies, and the frontiers that were made of them.

    data_dir/tables/*.parquet            one table per target; file names are free
    data_dir/saliencies/*.safetensors    the file's stem is the saliency's name
    data_dir/frontiers/*.safetensors     made here and read again; may be removed at any time

Tables that come with vitfit are read where they lie, beside those of the folder, and are called `shipped/<file>`.
Modelled devices need no table: they answer at any batch and tokens.

Files may come, go and change while a service runs. A name that somebody asks for is looked up among the files that
are there; it never becomes a path.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Self, TypeVar

import lut_data
from api.cache import Cache
from api.frontier_files import FrontierFiles
from api.settings import Settings
from latency.analytic import MacsModel
from latency.devices import calibrations, device_model
from latency.errors import TableError
from latency.estimate import LatencyModel
from latency.storage import load_table
from latency.table import KINDS, LatencyTable
from latency.target import MACS, split_slug
from search.constraints import Constraints
from search.errors import SaliencyError
from search.frontier import Frontier
from search.joint import JointChoice, joint_choice
from search.saliency import Saliency, load_saliency
from vit.architecture import BLOCK_UNITS, Architecture
from vit.errors import UnknownNameError, VitfitError
from vit.groups import EMBED, Group

logger = logging.getLogger(__name__)

TABLES, SALIENCIES, FRONTIERS = "tables", "saliencies", "frontiers"
SHIPPED = "shipped/"
"""Before the names of files that come with vitfit; a file of the library has no '/' in its name."""

_EVIDENCE = tuple(kind for kind in KINDS if kind != "analytic")
"""Of several tables of one target the one with the best evidence answers."""

V = TypeVar("V", LatencyTable, Saliency)


class SearchTooLargeError(VitfitError, ValueError):
    """A search over more sizes than this library is set to weigh."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """One state of one file: another stamp, another content."""

    file: str
    inode: int
    mtime_ns: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Read(Generic[V]):
    """A file of the library: what it holds, or why it cannot be used."""

    stamp: Stamp
    value: V | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A table file, `shipped/...` where it comes with vitfit.

    `slug`, `kind` and `created_at` are empty where the file cannot be read.
    """

    file: str
    stamp: Stamp
    table: LatencyTable | None
    error: str | None = None

    @property
    def slug(self) -> str:
        return self.table.target.slug if self.table else ""

    @property
    def kind(self) -> str:
        return self.table.kind if self.table else ""

    @property
    def created_at(self) -> str:
        return self.table.provenance.created_at if self.table else ""

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.table.provenance.interval if self.table else None

    @property
    def shipped(self) -> bool:
        return self.file.startswith(SHIPPED)

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"file": self.file, "error": self.error}
        if self.table is not None:
            document |= {
                "target": self.slug,
                **self.table.target.to_dict(),
                "kind": self.kind,
                "bounds": {name: list(ends) for name, ends in self.table.bounds.items()},
                "provenance": self.table.provenance.to_dict(),
            }
        return document


@dataclass(frozen=True, slots=True)
class SaliencyEntry:
    """A saliency file; `name` is its stem."""

    file: str
    stamp: Stamp
    saliency: Saliency | None
    error: str | None = None

    @property
    def name(self) -> str:
        return Path(self.file).stem


class Library:
    """Reads on demand and keeps what was read until its file changes. All methods may be called from many threads."""

    def __init__(
        self,
        root: Path,
        *,
        shipped: Sequence[Path] = (),
        devices: Collection[str] = (),
        max_frontiers: int = 16,
        max_frontier_files: int = 64,
        max_block_choices: int = 2_000_000,
        max_search_work: int = 500_000_000,
    ) -> None:
        """
        Args:
            root: need not exist; an absent folder is an empty one.
            shipped: tables that are read, never written, beside those of the folder.
            devices: modelled devices that answer, names of `latency.devices.calibrations`.
            max_frontiers, max_frontier_files: how many frontiers are kept in memory, and on disk.
            max_block_choices, max_search_work: largest search, in sizes of one block, and in sizes times blocks
                times EMBED sizes.
        """
        self.root, self.devices = root, tuple(sorted(devices))
        self._shipped = tuple(shipped)
        self._max_block_choices, self._max_search_work = max_block_choices, max_search_work
        self._tables: Cache[Stamp, Read[LatencyTable]] = Cache(256)
        self._saliencies: Cache[Stamp, Read[Saliency]] = Cache(64)
        self._digests: Cache[Stamp, str] = Cache(1024)
        self._frontiers: Cache[tuple[object, ...], Frontier] = Cache(max_frontiers)
        self._frontier_files = FrontierFiles(root / FRONTIERS, max_frontier_files)
        self._building = Lock()

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The library that the environment asks for, with what comes with vitfit."""
        return cls(
            settings.data_dir,
            shipped=lut_data.tables() if settings.shipped_tables else (),
            devices=calibrations() if settings.shipped_tables else (),
            max_frontiers=settings.max_frontiers,
            max_frontier_files=settings.max_frontier_files,
            max_block_choices=settings.max_block_choices,
            max_search_work=settings.max_search_work,
        )

    def check(self) -> None:
        """
        Raises:
            OSError: the folder is not there, is none, or may not be read.
        """
        next(self.root.iterdir(), None)

    def targets(self) -> list[TableEntry]:
        """Every table file by name, the shipped ones last.

        Of several tables of one target all but the one that answers carry an error.
        """
        files = (*self._files(TABLES, ".parquet"), *_stamped(self._shipped, SHIPPED))
        found = [
            TableEntry(read.stamp.file, read.stamp, read.value, read.error)
            for read in _read(files, self._tables, load_table)
        ]
        answering: dict[str, TableEntry] = {}
        for entry in sorted((e for e in found if e.table), key=_precedence):
            answering[entry.slug] = entry
        return [
            entry
            if entry.table is None or answering[entry.slug] is entry
            else TableEntry(
                entry.file,
                entry.stamp,
                entry.table,
                f"not used: {answering[entry.slug].file} is a table of the same target, and goes first "
                f"({', then '.join(_EVIDENCE)}; then your own, then the newest)",
            )
            for entry in found
        ]

    def path_of(self, entry: TableEntry | SaliencyEntry) -> Path:
        """The file of an entry."""
        if isinstance(entry, SaliencyEntry):
            return self.root / SALIENCIES / entry.file
        name = entry.file.removeprefix(SHIPPED)
        return next(path for path in self._shipped if path.name == name) if entry.shipped else self.root / TABLES / name

    def digest_of(self, entry: TableEntry | SaliencyEntry) -> str:
        """sha256 of its file, kept until the file changes."""
        return self._digests.get(entry.stamp, partial(_digest, self.path_of(entry)))

    def table(self, slug: str) -> LatencyTable:
        """
        Raises:
            UnknownNameError: lists the targets that the library has tables of.
        """
        return self.find_table(slug)[0]

    def find_table(self, slug: str) -> tuple[LatencyTable, str]:
        """The table of a target, and the name of its file.

        Raises:
            UnknownNameError: lists the targets that the library has tables of.
        """
        usable = self._usable()
        if slug not in usable:
            raise self._unknown(slug, usable)
        entry = usable[slug]
        assert entry.table is not None
        return entry.table, entry.file

    def saliencies(self) -> list[SaliencyEntry]:
        """Every saliency file, by name."""
        return [
            SaliencyEntry(read.stamp.file, read.stamp, read.value, read.error)
            for read in _read(self._files(SALIENCIES, ".safetensors"), self._saliencies, load_saliency)
        ]

    def saliency(self, name: str) -> Saliency:
        """
        Raises:
            UnknownNameError: lists the saliencies.
            SaliencyError: the file is there and cannot be used.
        """
        entry = self._saliency_entry(name)
        assert entry.saliency is not None
        return entry.saliency

    def latency_model(self, slug: str, arch: Architecture) -> LatencyModel:
        """The table of a target; for `macs` and modelled devices the closed form for models like `arch`.

        Raises:
            UnknownNameError: lists the targets.
        """
        return self.find(slug, arch)[0]

    def find(self, slug: str, arch: Architecture) -> tuple[LatencyModel, Stamp | None]:
        """As `latency_model`, with the state of the table's file; None for a closed form.

        Raises:
            UnknownNameError: lists the targets.
        """
        if slug == MACS:
            return MacsModel(arch), None
        usable = self._usable()
        entry, parts = usable.get(slug), split_slug(slug)
        # A shipped modelled table is its device's closed form on a grid; the form itself also answers beyond the grid,
        # and knows the traits of models like `arch`.
        if parts is not None and parts[0] in self.devices and (entry is None or _sampled(entry)):
            setting, batch, tokens = parts
            return device_model(setting, arch, batch, tokens), entry.stamp if entry else None
        if entry is None:
            raise self._unknown(slug, usable)
        assert entry.table is not None
        return entry.table, entry.stamp

    def frontier(self, saliency_name: str, slug: str, constraints: Constraints | None = None) -> Frontier:
        """All budgets of one saliency on one target: slow the first time, then a look-up until a file changes.

        Raises:
            UnknownNameError: names the kind of thing that is not known, and lists what is.
            SaliencyError: the saliency cannot be used, or ranks nothing.
            SearchTooLargeError: more sizes than this library is set to weigh.
            ConstraintError: constraints that the model cannot meet.
            TargetError, BudgetError: the target was made for other models.
        """
        constraints = constraints or Constraints()
        key, saliency, latency = self._frontier_key(saliency_name, slug, constraints)

        def build() -> Frontier:
            constraints.check(saliency.arch)
            self.check_work(saliency.arch, latency, constraints)
            return self.frontier_of(saliency, latency, constraints)

        return self._frontiers.get(key, build)

    def frontier_at_hand(
        self, saliency_name: str, slug: str, constraints: Constraints | None = None
    ) -> Frontier | None:
        """As `frontier` where it is in memory, and None where it is not: in a millisecond either way."""
        return self._frontiers.peek(self._frontier_key(saliency_name, slug, constraints or Constraints())[0])

    def _frontier_key(
        self, saliency_name: str, slug: str, constraints: Constraints
    ) -> tuple[tuple[object, ...], Saliency, LatencyModel]:
        scored = self._signal(saliency_name)
        assert scored.saliency is not None
        latency, stamp = self.find(slug, scored.saliency.arch)
        return (scored.stamp, stamp or slug, json.dumps(constraints.to_dict())), scored.saliency, latency

    def joint_choice(
        self, saliency_name: str, budgets: Sequence[tuple[str, float]], constraints: Constraints | None = None
    ) -> JointChoice:
        """The architecture within a budget on each of several targets, by slug; some seconds every time.

        Raises:
            As `frontier`, and BudgetError: budgets that nothing was found to meet.
        """
        saliency, constraints = self._signal(saliency_name).saliency, constraints or Constraints()
        assert saliency is not None
        constraints.check(saliency.arch)
        found = [(self.latency_model(slug, saliency.arch), budget_ms) for slug, budget_ms in budgets]
        for latency, _ in found:
            self.check_work(saliency.arch, latency, constraints)
        if len(budgets) == 1:
            ((slug, budget_ms),) = budgets
            return JointChoice.of(self.frontier(saliency_name, slug, constraints).best(budget_ms))
        with self._building:
            return joint_choice(saliency, found, constraints)

    def frontier_of(self, saliency: Saliency, latency: LatencyModel, constraints: Constraints) -> Frontier:
        """A frontier that was built before and is still on disk, or a new one."""
        if (known := self._frontier_files.load(saliency, latency, constraints)) is not None:
            return known
        with self._building:  # one at a time: a frontier takes a core and a hundred megabytes while it is built
            frontier = Frontier(saliency, latency, constraints)
        self._frontier_files.save(frontier)
        return frontier

    def check_work(self, arch: Architecture, latency: LatencyModel, constraints: Constraints) -> None:
        """
        Raises:
            SearchTooLargeError: more sizes than this library is set to weigh.
        """

        def count(group: Group) -> int:
            return len(constraints.sizes(arch, group, latency.bounds))

        choices = [math.prod(count(Group(unit, block)) for unit in BLOCK_UNITS) for block in range(arch.depth)]
        work = count(EMBED) * sum(choices)
        if max(choices) > self._max_block_choices or work > self._max_search_work:
            raise SearchTooLargeError(
                f"the search would weigh {max(choices):,} sizes per block and {work:,} in all; at most "
                f"{self._max_block_choices:,} and {self._max_search_work:,} are allowed; ask for larger multiples"
            )

    def _usable(self) -> dict[str, TableEntry]:
        return {entry.slug: entry for entry in self.targets() if entry.error is None}

    def _unknown(self, slug: str, usable: Iterable[str]) -> UnknownNameError:
        others = ("and modelled devices at any -b<batch>-n<tokens>",) if self.devices else ()
        return UnknownNameError("target", slug, (MACS, *sorted(usable), *others))

    def _signal(self, name: str) -> SaliencyEntry:
        """A saliency that ranks something."""
        entry = self._saliency_entry(name)
        if entry.saliency is not None and entry.saliency.total == 0:
            raise SaliencyError(f"the saliency {name} is zero everywhere; nothing can be ranked")
        return entry

    def _saliency_entry(self, name: str) -> SaliencyEntry:
        known = {entry.name: entry for entry in self.saliencies()}
        if name not in known:
            raise UnknownNameError("saliency", name, sorted(known))
        if (error := known[name].error) is not None:
            raise SaliencyError(error)
        return known[name]

    def _files(self, folder: str, suffix: str) -> Iterator[tuple[Path, Stamp]]:
        """Files with the suffix, by name; hidden ones are still being written."""
        try:
            paths = sorted((self.root / folder).iterdir())
        except OSError:
            return
        yield from _stamped(path for path in paths if path.suffix == suffix and not path.name.startswith("."))


def _stamped(paths: Iterable[Path], prefix: str = "") -> Iterator[tuple[Path, Stamp]]:
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # removed since it was listed, or a link to nowhere
        yield path, Stamp(prefix + path.name, status.st_ino, status.st_mtime_ns, status.st_size)


def _read(
    files: Iterable[tuple[Path, Stamp]], cache: Cache[Stamp, Read[V]], load: Callable[[Path], V]
) -> list[Read[V]]:
    return [cache.get(stamp, partial(_load, path, stamp, load)) for path, stamp in files]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sampled(entry: TableEntry) -> bool:
    return entry.shipped and entry.kind == "modelled"


def _precedence(entry: TableEntry) -> tuple[int, bool, str, str]:
    """Sorts the table that answers last."""
    return -_EVIDENCE.index(entry.kind), not entry.shipped, entry.created_at, entry.file


def _load(path: Path, stamp: Stamp, load: Callable[[Path], V]) -> Read[V]:
    if not path.is_file():
        return Read(stamp, None, f"{path.name} is not a file")
    try:
        return Read(stamp, load(path))
    except VitfitError as error:
        return Read(stamp, None, str(error).replace(str(path), path.name))
    except Exception as error:  # somebody else's file must not take the rest of the library down
        logger.warning("cannot read %s", path, exc_info=True)
        reason = TableError if load is load_table else SaliencyError
        return Read(stamp, None, f"{path.name} cannot be read ({type(error).__name__}): {reason.__doc__}")
