"""The catalogue: every architecture that vitfit found, was told or that was published, in one place.

    catalogue = Catalogue(Database(url))
    catalogue.add(entries)
    catalogue.price(latency)                      # latencies on a target, once; new entries are added when asked again
    catalogue.find(Question(target="macs", budget_ms=2000, data="digits:5f70..."))
    catalogue.pareto("macs", "digits:5f70...")

Questions by budget scan one table by one covering index (`api.db.points`), so that 100,000 architectures take
milliseconds on SQLite and on PostgreSQL.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

import sqlalchemy as sa

from api.catalogue_values import Accuracy, CatalogueError, Entry, Found, Question
from api.db import Database, accuracies, architectures, entries, points, targets
from latency.errors import TargetError
from latency.estimate import LatencyModel, check_tokens, estimate_many
from vit.architecture import Architecture
from vit.errors import UnknownNameError

_AT_ONCE = 500
"""Rows of one statement: SQLite takes at most 32,766 parameters."""

_PRICED_AT_ONCE = 5_000

_MANY = 1_000
"""New rows after which statistics are made anew."""


class Priced(NamedTuple):
    """An entry with its latency on a target, and what questions by budget filter by."""

    entry: int
    kind: str
    params: int
    macs: int
    ms: float


class Catalogue:
    """
    Raises:
        DatabaseError: from every method.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # --- what comes in -------------------------------------------------------------------------------------------

    def add(self, new: Iterable[Entry]) -> int:
        """Add entries; those that are there by their key keep what they are and gain new accuracies.

        Returns:
            How many were not there before.
        """
        count = 0
        for part in _parts(new, _AT_ONCE):
            with self.database.writing() as connection:
                count += _add(connection, part)
        if count >= _MANY:
            self._tidy()
        return count

    def price(self, latency: LatencyModel) -> int:
        """Latencies on a target of every entry that has none there yet; after a new table of all of them.

        Entries with another number of tokens, or with sizes that the table does not cover, have no latency there.

        Returns:
            How many entries were looked at.
        """
        seen, more = 0, True
        while more:
            with self.database.writing() as connection:
                count, more = _price(connection, latency)
                seen += count
        if seen >= _MANY:
            self._tidy()
        return seen

    def _tidy(self) -> None:
        """After many new rows: statistics for PostgreSQL's planner, and what lets it answer from indexes alone."""
        engine = self.database.engine
        if engine.dialect.name != "postgresql":
            return  # SQLite finds its indexes without
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE catalogue_points, catalogue_entries, catalogue_accuracies")
            connection.exec_driver_sql("ANALYZE catalogue_architectures")

    # --- what is asked -------------------------------------------------------------------------------------------

    def count(self) -> int:
        with self.database.reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(entries)).scalar_one())

    def architecture(self, name: str) -> Architecture:
        """By id, or by the name of an entry that has a shape.

        Raises:
            UnknownNameError: no such id or name; for figures without a shape says so.
        """
        query = sa.select(architectures.c.document)
        with self.database.reading() as connection:
            found = connection.execute(query.where(architectures.c.id == name)).scalar()
            if found is None:
                join = query.join(entries, entries.c.architecture == architectures.c.serial)
                found = connection.execute(join.where(entries.c.name == name).order_by(entries.c.serial)).scalar()
            if found is None:
                named = connection.execute(sa.select(entries.c.serial).where(entries.c.name == name)).scalar()
        if found is None and named is not None:
            raise CatalogueError(f"the shape of {name} was never published; the catalogue has its figures alone")
        if found is None:
            raise UnknownNameError("entry of the catalogue", name, ("names and ids of `vitfit catalogue list`",))
        return Architecture.from_json(found)

    def id_of(self, name: str) -> str:
        """Id of an architecture, of one that is no entry itself too, or of the entry of a name.

        Raises:
            UnknownNameError, CatalogueError: as `architecture`.
        """
        return name if re.fullmatch(r"arch-[0-9a-f]{16}", name) else self.architecture(name).id

    def find(self, question: Question) -> list[Found]:
        """Answers, the best first."""
        with self.database.reading() as connection:
            return _found(connection, _answers(connection, question))

    def pareto(self, target: str, data: str, kind: str | None = None, limit: int = 200) -> list[Found]:
        """Entries that no other one is both as fast as and more accurate than, fast to slow.

        Each step of this staircase is one look into an index: the fastest that is more accurate than the last.
        """
        with self.database.reading() as connection:
            return _found(connection, connection.execute(_staircase(target, data, kind, limit)).all())

    def data_sets(self) -> list[str]:
        with self.database.reading() as connection:
            return list(connection.execute(sa.select(accuracies.c.data).distinct().order_by("data")).scalars())


def _add(connection: sa.Connection, new: Sequence[Entry]) -> int:
    by_id = {entry.arch.id: entry.arch for entry in new if entry.arch is not None}
    serials = _serials_of(connection, architectures.c.id, by_id)
    fresh = [arch for id_, arch in by_id.items() if id_ not in serials]
    if fresh:
        rows = [
            {"id": a.id, "document": a.to_json(), "depth": a.depth, "embed_dim": a.embed_dim, "tokens": a.tokens}
            for a in fresh
        ]
        connection.execute(architectures.insert(), rows)
        serials = _serials_of(connection, architectures.c.id, by_id)
    by_key = {entry.key: entry for entry in new}
    known = _serials_of(connection, entries.c.key, by_key)
    added = [entry for key, entry in by_key.items() if key not in known]
    if added:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        connection.execute(
            entries.insert(),
            [
                {
                    "key": entry.key,
                    "architecture": None if entry.arch is None else serials[entry.arch.id],
                    "name": entry.name,
                    "kind": entry.kind,
                    "parent": entry.parent,
                    "params": entry.params,
                    "macs": entry.macs,
                    "source": entry.source,
                    "lineage": json.dumps(list(entry.lineage)),
                    "figures": json.dumps(dict(entry.figures)),
                    "created_at": now,
                }
                for entry in added
            ],
        )
        known = _serials_of(connection, entries.c.key, by_key)
    rows = [
        {
            "entry": known[entry.key],
            "data": one.data,
            "value": one.value,
            "evidence": one.evidence,
            "recipe": one.recipe,
            "seeds": json.dumps(list(one.seeds)),
            "images": one.images,
        }
        for entry in new
        for one in entry.accuracies
    ]
    _add_accuracies(connection, rows)
    return len(added)


def _add_accuracies(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Those that are not there yet, also on targets whose latencies are known."""
    if not rows:
        return
    identity = ("entry", "data", "evidence", "recipe", "seeds")
    there = set(
        connection.execute(
            sa.select(*(accuracies.c[name] for name in identity)).where(
                accuracies.c.entry.in_({row["entry"] for row in rows})
            )
        ).all()
    )
    fresh = {tuple(row[name] for name in identity): row for row in rows}
    new = [row for key, row in fresh.items() if key not in there]
    if not new:
        return
    connection.execute(accuracies.insert(), new)
    touched = {row["entry"] for row in new}
    priced = connection.execute(
        sa.select(points.c.target, points.c.entry, points.c.kind, points.c.params, points.c.macs, points.c.ms).where(
            points.c.entry.in_(touched), points.c.data == ""
        )
    ).all()
    if priced:
        connection.execute(points.delete().where(points.c.entry.in_(touched), points.c.data != ""))
        for target in sorted({row.target for row in priced}):
            _insert_points(
                connection,
                target,
                [Priced(*row[1:]) for row in priced if row.target == target],
                nameless=False,
            )


def _price(connection: sa.Connection, latency: LatencyModel) -> tuple[int, bool]:
    """The next entries without latency on a target: how many were looked at, and whether there are more.

    Everything that it goes by is read in the transaction that writes, so that several may do this at once.
    """
    slug, fingerprint = latency.target.slug, latency.fingerprint
    if latency.target.is_analytic:  # its fingerprint is of one template; here every architecture is its own
        fingerprint = slug
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(f"vitfit {slug}"))))
    known = connection.execute(sa.select(targets).where(targets.c.target == slug)).one_or_none()
    newest = connection.execute(sa.select(sa.func.max(entries.c.serial))).scalar() or 0
    upto = known.upto if known is not None and known.fingerprint == fingerprint else 0
    if known is not None and known.fingerprint == fingerprint and upto >= newest:
        return 0, False
    if upto == 0:
        connection.execute(points.delete().where(points.c.target == slug))
    rows = connection.execute(
        sa.select(entries.c.serial, entries.c.kind, entries.c.params, entries.c.macs, architectures.c.document)
        .join(architectures, architectures.c.serial == entries.c.architecture)
        .where(entries.c.serial > upto)
        .order_by(entries.c.serial)
        .limit(_PRICED_AT_ONCE)
    ).all()
    _insert_points(connection, slug, _priced(latency, rows))
    more = len(rows) == _PRICED_AT_ONCE
    connection.execute(targets.delete().where(targets.c.target == slug))
    row = {"target": slug, "fingerprint": fingerprint, "upto": rows[-1].serial if more else newest}
    connection.execute(targets.insert(), row)
    return len(rows), more


def _serials_of(connection: sa.Connection, column: sa.Column[str], names: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in _parts(names, _AT_ONCE):
        query = sa.select(column, column.table.c.serial).where(column.in_(part))
        found |= {row[0]: row.serial for row in connection.execute(query)}
    return found


def _priced(latency: LatencyModel, rows: Sequence[Any]) -> list[Priced]:
    """All that the target can time."""
    if latency.target.is_analytic:
        return [Priced(row.serial, row.kind, row.params, row.macs, row.macs / 1e6) for row in rows]
    timed: list[tuple[Any, Architecture]] = []
    for row in rows:
        arch = Architecture.from_json(row.document)
        try:
            check_tokens(latency, arch)
        except TargetError:
            continue
        if _covers(latency, arch):
            timed.append((row, arch))
    times = [one.latency_ms for one in estimate_many(latency, [arch for _, arch in timed])]
    return [Priced(row.serial, row.kind, row.params, row.macs, ms) for (row, _), ms in zip(timed, times, strict=True)]


def _covers(latency: LatencyModel, arch: Architecture) -> bool:
    for name, (low, high) in latency.bounds.items():
        sizes = [arch.embed_dim] if name == "embed_dim" else [getattr(block, name) for block in arch.blocks]
        if min(sizes) < low or max(sizes) > high:
            return False
    return True


def _insert_points(connection: sa.Connection, target: str, priced: Sequence[Priced], *, nameless: bool = True) -> None:
    """Rows of entries on a target: one without a data set, and one for each that its accuracy is known on."""
    for part in _parts(priced, _AT_ONCE):
        best: dict[int, list[tuple[str, float]]] = {}
        query = (
            sa.select(accuracies.c.entry, accuracies.c.data, sa.func.max(accuracies.c.value))
            .where(accuracies.c.entry.in_([one.entry for one in part]))
            .group_by(accuracies.c.entry, accuracies.c.data)
        )
        for entry, data, value in connection.execute(query):
            best.setdefault(entry, []).append((data, value))
        rows = [
            {"target": target, "data": data, "accuracy": value, **one._asdict()}
            for one in part
            for data, value in [*([("", None)] if nameless else []), *best.get(one.entry, [])]
        ]
        if rows:
            connection.execute(points.insert(), rows)


def _staircase(target: str, data: str, kind: str | None, limit: int) -> sa.Select[Any]:
    def fastest(one: Any, *conditions: Any) -> Any:
        query = sa.select(one.c.entry).where(one.c.target == target, one.c.data == data, *conditions)
        if kind is not None:
            query = query.where(one.c.kind == kind)
        return query.order_by(one.c.ms, one.c.accuracy.desc()).limit(1).scalar_subquery()

    first, other, last, shown = (points.alias(name) for name in ("first", "other", "last", "shown"))
    steps = sa.select(fastest(first).label("entry"), sa.literal(1).label("step")).cte("steps", recursive=True)
    more = fastest(other, other.c.ms >= last.c.ms, other.c.accuracy > last.c.accuracy)
    at_last = sa.and_(last.c.entry == steps.c.entry, last.c.target == target, last.c.data == data)
    steps = steps.union_all(
        sa.select(more, steps.c.step + 1).select_from(steps.join(last, at_last)).where(steps.c.step < limit)
    )
    here = sa.and_(shown.c.entry == steps.c.entry, shown.c.target == target, shown.c.data == data)
    return sa.select(shown.c.entry, shown.c.ms).select_from(steps.join(shown, here)).order_by(steps.c.step)


def _answers(connection: sa.Connection, question: Question) -> Sequence[Any]:
    """(entry, latency or None) of what answers, the best first."""
    if question.target is not None:
        return _by_target(connection, question)
    if question.data is not None and question.order in (None, "accuracy"):
        return [(entry, None) for entry in _by_accuracy(connection, question)]
    query = _filtered(sa.select(entries.c.serial, sa.null()), question)
    if question.data is not None and question.known:
        query = query.where(
            sa.exists().where(accuracies.c.entry == entries.c.serial, accuracies.c.data == question.data)
        )
    column = {"params": entries.c.params, "macs": entries.c.macs}.get(question.order or "")
    query = query.order_by(entries.c.serial.desc() if column is None else column.nulls_last())
    return connection.execute(query.limit(question.limit)).all()


def _by_accuracy(connection: sa.Connection, question: Question) -> list[int]:
    """Down the index of accuracies, each entry once; then what has none, unless only known ones are asked for."""
    query = sa.select(accuracies.c.entry).where(accuracies.c.data == question.data)
    if _is_filtered(question):
        query = _filtered(query.join(entries, entries.c.serial == accuracies.c.entry), question)
    query = query.order_by(accuracies.c.value.desc(), accuracies.c.serial)
    found: dict[int, None] = {}
    with connection.execute(query, execution_options={"yield_per": question.limit}) as rows:
        for entry in rows.scalars():
            found.setdefault(entry)
            if len(found) == question.limit:
                return list(found)
    if question.known:
        return list(found)
    rest = _filtered(sa.select(entries.c.serial), question).where(
        ~sa.exists().where(accuracies.c.entry == entries.c.serial, accuracies.c.data == question.data)
    )
    rest = rest.order_by(entries.c.serial.desc()).limit(question.limit - len(found))
    return [*found, *connection.execute(rest).scalars()]


def _by_target(connection: sa.Connection, question: Question) -> Sequence[Any]:
    def ask(data: str, limit: int, but: Sequence[int] = ()) -> Sequence[Any]:
        query = sa.select(points.c.entry, points.c.ms).where(points.c.target == question.target, points.c.data == data)
        if question.budget_ms is not None:
            query = query.where(points.c.ms <= question.budget_ms)
        for column, most in ((points.c.params, question.max_params), (points.c.macs, question.max_macs)):
            if most is not None:
                query = query.where(column <= most)
        if question.kind is not None:
            query = query.where(points.c.kind == question.kind)
        if but:
            query = query.where(points.c.entry.not_in(but))
        if question.ancestor is not None or question.name is not None:
            only = replace(question, max_params=None, max_macs=None, kind=None)
            query = _filtered(query.join(entries, entries.c.serial == points.c.entry), only)
        match question.order:
            case "latency":
                query = query.order_by(points.c.ms)
            case "params" | "macs":
                query = query.order_by(points.c[question.order])
            case "newest":
                query = query.order_by(points.c.entry.desc())
            case _:
                ranks = (points.c.accuracy.desc(), points.c.ms) if data else (points.c.ms.desc(),)
                query = query.order_by(*ranks)
        return connection.execute(query.limit(limit)).all()

    if question.data is None:
        return ask("", question.limit)
    found = ask(question.data, question.limit)
    if question.known or len(found) == question.limit:
        return found
    return [*found, *ask("", question.limit - len(found), [row[0] for row in found])]


def _is_filtered(question: Question) -> bool:
    given = (question.ancestor, question.name, question.max_params, question.max_macs, question.kind)
    return any(one is not None for one in given)


def _filtered(query: sa.Select[Any], question: Question) -> sa.Select[Any]:
    """By what entries are, of a query that has them."""
    if question.kind is not None:
        query = query.where(entries.c.kind == question.kind)
    if question.name is not None:
        query = query.where(entries.c.name.contains(question.name, autoescape=True))
    if question.max_params is not None:
        query = query.where(entries.c.params <= question.max_params)
    if question.max_macs is not None:
        query = query.where(entries.c.macs <= question.max_macs)
    if question.ancestor is not None:
        made = (
            sa.select(architectures.c.id)
            .join(entries, entries.c.architecture == architectures.c.serial)
            .where(entries.c.parent == question.ancestor)
            .cte("made", recursive=True)
        )
        children = entries.alias("children")
        made = made.union(
            sa.select(architectures.c.id)
            .join(children, children.c.architecture == architectures.c.serial)
            .join(made, made.c.id == children.c.parent)
        )
        query = query.where(sa.or_(entries.c.parent == question.ancestor, entries.c.parent.in_(sa.select(made.c.id))))
    return query


def _found(connection: sa.Connection, answers: Sequence[Any]) -> list[Found]:
    """Entries with their latencies, in the order that they come in."""
    rows: dict[int, Any] = {}
    known: dict[int, list[Accuracy]] = {}
    for part in _parts((serial for serial, _ in answers), _AT_ONCE):
        query = sa.select(entries, architectures.c.id.label("architecture_id")).join(
            architectures, architectures.c.serial == entries.c.architecture, isouter=True
        )
        rows |= {row.serial: row for row in connection.execute(query.where(entries.c.serial.in_(part)))}
        figures = sa.select(accuracies).where(accuracies.c.entry.in_(part)).order_by(accuracies.c.serial)
        for row in connection.execute(figures):
            one = Accuracy(row.data, row.value, row.evidence, row.recipe, tuple(json.loads(row.seeds)), row.images)
            known.setdefault(row.entry, []).append(one)
    return [
        Found(
            serial,
            row.name,
            row.kind,
            row.architecture_id,
            row.parent,
            row.params,
            row.macs,
            row.source,
            json.loads(row.figures),
            row.created_at,
            ms,
            tuple(known.get(serial, ())),
        )
        for serial, ms in answers
        for row in [rows[serial]]
    ]


def _parts(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part
