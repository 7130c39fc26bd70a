"""Commands about the catalogue, and about the database that it lies in."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api import cli_remote
from api.console import JsonOption, Server, describe_blocks, out, print_json, print_table, unit_of
from vit.architecture import Architecture
from vit.cost import macs, params

if TYPE_CHECKING:
    from api.catalogue import Catalogue
    from api.catalogue_values import Found
    from api.library import Library

app = typer.Typer(name="catalogue", help="Every architecture found, told or published.", no_args_is_help=True)
database = typer.Typer(name="db", help="The database of catalogue and studies.", no_args_is_help=True)

DataName = Annotated[str | None, typer.Option("--data", "-d", help="Data set whose accuracy counts.")]
TargetName = Annotated[str | None, typer.Option("--target", "-t", help="Slug of a target, or `macs`.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Answers.")]
Kind = Annotated[
    str | None,
    typer.Option(help="preset, published, told, frontier, redistributed, compressed, pruned, trained or study."),
]


def opened() -> "tuple[Library, Catalogue]":
    """The library, and its catalogue with presets and published figures in it."""
    from api.catalogue import Catalogue
    from api.catalogue_sources import presets, published
    from api.db import Database, database_url
    from api.library import Library
    from api.settings import Settings

    settings = Settings()
    catalogue = Catalogue(Database(database_url(settings)))
    catalogue.add([*presets(), *published()])
    return Library.of(settings), catalogue


def _priced(library: "Library", catalogue: "Catalogue", target: str) -> str:
    from api.queries import REVIT_TEMPLATE, resolve_target
    from vit.presets import preset

    latency = resolve_target(target, preset(REVIT_TEMPLATE), library)
    catalogue.price(latency)
    return latency.target.slug


@app.command()
def sync(as_json: JsonOption = False) -> None:
    """Take in the checkpoints of the library (models/*.safetensors), with their lineage."""
    from api.catalogue_sources import fill

    library, catalogue = opened()
    count, broken = fill(catalogue, library.root / "models")
    if as_json:
        print_json({"new": count, "entries": catalogue.count(), "unreadable": broken})
        return
    out.print(f"{count} new, {catalogue.count()} in all", highlight=False)
    for line in broken:
        out.print(f"left out: {line}", highlight=False)


@app.command(name="list")
def list_entries(
    target: TargetName = None,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="At most this latency on the target.")] = None,
    kind: Kind = None,
    data: DataName = None,
    known: Annotated[bool, typer.Option(help="Only entries whose accuracy on --data is known.")] = False,
    made_from: Annotated[
        str | None, typer.Option("--from", help="Id or name: only what was made from it, over any number of steps.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Part of a name.")] = None,
    order: Annotated[str | None, typer.Option(help="accuracy, latency, params, macs or newest.")] = None,
    limit: Limit = 20,
    server: Server = None,
    as_json: JsonOption = False,
) -> None:
    """Entries by budget, target, kind, lineage and data set."""
    from api.catalogue_values import Question

    if server is not None:
        question = {"target": target, "budget_ms": budget_ms, "kind": kind, "data": data, "known": known}
        question |= {"made_from": made_from, "name": name, "order": order, "limit": limit}
        _show(cli_remote.entries(server, **question), target, as_json)
        return
    library, catalogue = opened()
    slug = None if target is None else _priced(library, catalogue, target)
    ancestor = None if made_from is None else catalogue.id_of(made_from)
    found = catalogue.find(
        Question(slug, budget_ms, kind, data, known, ancestor, name, order=order, limit=limit)  # type: ignore[arg-type]
    )
    _show(found, slug, as_json)


@app.command()
def pareto(
    target: Annotated[str, typer.Option("--target", "-t", help="Slug of a target, or `macs`.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Data set whose accuracy counts.")],
    kind: Kind = None,
    limit: Limit = 200,
    server: Server = None,
    as_json: JsonOption = False,
) -> None:
    """Entries that none other is both as fast as and more accurate than."""
    if server is not None:
        front = cli_remote.front(server, target=target, data=data, kind=kind, limit=limit)
        _show(front, target, as_json)
        return
    library, catalogue = opened()
    slug = _priced(library, catalogue, target)
    _show(catalogue.pareto(slug, data, kind, limit), slug, as_json)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="Id or name of the catalogue, preset, file or timm name.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    target: TargetName = None,
    everything: Annotated[bool, typer.Option("--all", help="Equal dimensions, too.")] = False,
    server: Server = None,
    as_json: JsonOption = False,
) -> None:
    """Two architectures dimension by dimension, and whether one is better in all that counts."""
    if server is not None:
        found = cli_remote.compared(server, first, second, target)
        found["cheaper"] = _VERDICTS[found["cheaper"]].format(a=first, b=second)
    else:
        found = _compared(first, second, target)
    if as_json:
        print_json(found)
        return
    rows = found["dimensions"]
    shown = [row for row in rows if everything or not row["same"]]
    table = [(row["dimension"], _cell(row["a"]), _cell(row["b"])) for row in shown]
    if (timed := found["latency_ms"]) is not None:
        table.insert(0, (f"latency on {target}", f"{timed[0]:.3f}", f"{timed[1]:.3f}"))
    print_table(f"{first} and {second}", ("dimension", first, second), table)
    out.print(f"{len(rows) - len(shown)} dimensions are the same; {found['cheaper']}", highlight=False)


def _compared(first: str, second: str, target: str | None) -> dict[str, Any]:
    from api.budget_search import resolve
    from api.queries import resolve_target
    from latency.estimate import estimate
    from vit.compare import compare as dimensions

    library, catalogue = opened()
    a, b = resolve([first, second], library, catalogue)
    costs = [[float(params(one)), float(macs(one))] for one in (a, b)]
    timed = None
    if target is not None:
        timed = [estimate(resolve_target(target, one, library), one).latency_ms for one in (a, b)]
        costs = [[*cost, ms] for cost, ms in zip(costs, timed, strict=True)]
    document = [{"dimension": r.dimension, "a": r.a, "b": r.b, "same": r.same} for r in dimensions(a, b)]
    verdict = _VERDICTS[_cheaper(costs)].format(a=first, b=second)
    return {"a": a.id, "b": b.id, "latency_ms": timed, "cheaper": verdict, "dimensions": document}


_VERDICTS = {
    "a": "{a} costs less or as much in everything",
    "b": "{b} costs less or as much in everything",
    "same": "both cost the same",
    "neither": "each costs less in something",
}
"""By the interface's `cheaper`."""


def _cheaper(costs: Sequence[Sequence[float]]) -> str:
    from api.catalogue_values import dominates

    if dominates(costs[0], costs[1]):
        return "a"
    if dominates(costs[1], costs[0]):
        return "b"
    return "same" if costs[0] == costs[1] else "neither"


def _cell(value: object) -> str:
    return (
        "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )


@app.command()
def show(name: Annotated[str, typer.Argument(help="Id or name.")], as_json: JsonOption = False) -> None:
    """One architecture of the catalogue, and all that is known of it."""
    from api.catalogue_values import Question

    _, catalogue = opened()
    arch = catalogue.architecture(name)
    known = [one for one in catalogue.find(Question(name=name, limit=1000)) if one.architecture == arch.id]
    if as_json:
        print_json({"architecture": arch.to_dict(), "id": arch.id, "entries": [one.to_dict() for one in known]})
        return
    out.print(f"{arch.id}: {params(arch):,} parameters, {macs(arch):,} MACs, EMB {arch.embed_dim}", highlight=False)
    out.print(describe_blocks(arch), highlight=False)
    _show(known, None, as_json=False)


@app.command()
def add(
    architecture: Annotated[str, typer.Argument(help="A file, checkpoint, preset or timm name.")],
    name: Annotated[str | None, typer.Option(help="Its name in the catalogue; else as it was given.")] = None,
    source: Annotated[str, typer.Option(help="Who says so, or where it is from.")] = "told on the command line",
    accuracy: Annotated[
        float | None, typer.Option(help="Top-1, from 0 to 1, with --data, --recipe and --seed.")
    ] = None,
    data: DataName = None,
    recipe: Annotated[str, typer.Option(help="How it was trained, or who published it.")] = "",
    seed: Annotated[list[int] | None, typer.Option(help="Seeds that the accuracy is the mean of.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images that it was measured on.")] = None,
    published: Annotated[bool, typer.Option("--published", help="The accuracy is others', not measured here.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell the catalogue of an architecture, and what is known of its accuracy."""
    from dataclasses import replace

    from api.catalogue_sources import of_checkpoint, told
    from api.catalogue_values import Accuracy
    from api.queries import resolve_architecture

    if (accuracy is None) != (data is None):
        raise typer.BadParameter("--accuracy is on a data set, and --data is of an accuracy: give both or neither")
    figures: list[Accuracy] = []
    if accuracy is not None and data is not None:
        evidence = "published" if published else "measured"
        figures.append(Accuracy(data, accuracy, evidence, recipe, tuple(seed or ()), images))
    _, catalogue = opened()
    if architecture.endswith(".safetensors"):
        entry = of_checkpoint(Path(architecture), figures)
        entry = entry if name is None else replace(entry, name=name)
    else:
        entry = told(name or Path(architecture).stem, resolve_architecture(architecture), source, figures)
    count = catalogue.add([entry])
    if as_json:
        print_json({"new": bool(count), "name": entry.name, "kind": entry.kind})
    else:
        out.print(f"{entry.name}: {'added' if count else 'was there; accuracy noted' if figures else 'was there'}")


@app.command()
def search(
    target: Annotated[str, typer.Option("--target", "-t", help="Slug of a target, or `macs`.")],
    budget_ms: Annotated[float, typer.Option("--budget-ms", help="Latency budget (M MACs for target macs).")],
    saliency: Annotated[str | None, typer.Option("--saliency", "-s", help="Name in the library.")] = None,
    model: Annotated[str | None, typer.Option(help="Architecture whose saliency is looked for.")] = None,
    data: DataName = None,
    profile: Annotated[str, typer.Option("--profile", "-p", help="Of ReViT's answer.")] = "nvidia",
    limit: Limit = 10,
    server: Server = None,
    as_json: JsonOption = False,
) -> None:
    """What fits a budget: the frontier's answer where there is a saliency, else ReViT's and the catalogue's."""
    if server is not None:
        question = {"target": target, "budget_ms": budget_ms, "saliency": saliency, "data": data}
        documents = cli_remote.answers(server, model, **question, profile=profile, limit=limit)
    else:
        documents = _answers(target, budget_ms, saliency, model, data, profile, limit)
    if as_json:
        print_json(documents)
        return
    unit = unit_of(target)
    rows = [(d["answered_by"], d["detail"], f"{d['latency_ms']:.3f}", *_known(d, data)) for d in documents]
    print_table(f"within {budget_ms:g} {unit} on {target}", ("from", "what", unit, "params", "accuracy"), rows)


def _known(answer: dict[str, Any], data: str | None) -> tuple[str, str]:
    """Parameters and accuracy of an answer."""
    entry, shape = answer.get("entry") or {}, answer["architecture"]
    count = entry.get("params") if shape is None else params(Architecture.from_dict(shape))
    values = [one["value"] for one in entry.get("accuracies", ()) if one["data"] == data]
    return "" if count is None else f"{count:,}", _accuracy(max(values, default=None))


def _answers(
    target: str,
    budget_ms: float,
    saliency: str | None,
    model: str | None,
    data: str | None,
    profile: str,
    limit: int,
) -> list[dict[str, Any]]:
    from api.budget_search import answer_budget, resolve
    from api.profile_files import resolve_profile

    library, catalogue = opened()
    arch = None if model is None else resolve([model], library, catalogue)[0]
    answers = answer_budget(
        library,
        catalogue,
        target,
        budget_ms,
        saliency=saliency,
        model=arch,
        data=data,
        profile=resolve_profile(profile, library.root),
        limit=limit,
    )
    return [answer_document(one) for one in answers]


def answer_document(answer: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "answered_by": answer.answered_by,
        "detail": answer.detail,
        "latency_ms": answer.latency_ms,
        "architecture": None if answer.arch is None else answer.arch.to_dict(),
        "id": answer.arch.id if answer.arch is not None else answer.found.architecture,
    }
    if answer.choice is not None:
        document |= {"kept": answer.choice.kept, "bound": answer.choice.bound}
    if answer.found is not None:
        document["entry"] = answer.found.to_dict()
    return document


def _show(found: "Sequence[Found]", target: str | None, as_json: bool) -> None:
    if as_json:
        print_json([one.to_dict() for one in found])
        return
    latency = () if target is None else (unit_of(target),)
    rows = []
    for one in found:
        ms = () if target is None else ("" if one.latency_ms is None else f"{one.latency_ms:.3f}",)
        figures = "; ".join(
            f"{_accuracy(a.value)} {a.data} ({a.evidence}{'' if not a.seeds else f', {len(a.seeds)} seeds'})"
            for a in one.accuracies
        )
        counts = ("" if n is None else f"{n / scale:.2f}" for n, scale in ((one.params, 1e6), (one.macs, 1e9)))
        rows.append((one.name, one.kind, one.architecture or "figures alone", *counts, *ms, figures or "unknown"))
    columns = ("name", "kind", "id", "params M", "MACs G", *latency, "accuracy")
    print_table("Catalogue" if target is None else f"Catalogue, on {target}", columns, rows)


def _accuracy(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


@database.command()
def upgrade(as_json: JsonOption = False) -> None:
    """Bring the database to the version of this vitfit: catalogue and studies."""
    from api.db import database_url, shown
    from api.db import upgrade as bring_up
    from api.settings import Settings
    from api.study_store import upgrade_studies

    url = database_url(Settings())
    before, after = bring_up(url)
    studies = upgrade_studies(url)
    if as_json:
        print_json({"database": shown(url), "before": before, "after": after, "studies": studies})
    else:
        what = f"{before or 'new'} to {after}" if before != after else f"{after}, as it was"
        out.print(f"{shown(url)}: {what}; studies {studies}", highlight=False)


@database.command()
def status(as_json: JsonOption = False) -> None:
    """Which database it is, its version, and which one this vitfit needs."""
    import sqlalchemy as sa

    from api.catalogue_values import DatabaseError
    from api.db import HEAD, database_url, make_engine, shown, sqlite_path, version_of
    from api.settings import Settings

    url = database_url(Settings())
    path = sqlite_path(url)
    try:
        version = version_of(make_engine(url)) if path is None or path.exists() else None
    except sa.exc.DBAPIError as error:
        raise DatabaseError(f"the database {shown(url)} cannot be reached: {error.orig!s:.200}") from None
    if as_json:
        print_json({"database": shown(url), "version": version, "needed": HEAD})
    else:
        out.print(f"{shown(url)}: version {version or 'none yet'}, needed {HEAD}", highlight=False)
