"""Commands that ask a service (`--server`, VITFIT_SERVER) in the place of the library on this machine.

An ARCH is found here, so that files and checkpoints of this machine can be asked about; a target, a saliency and a
profile are the service's. What is printed is what the same command prints here.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from api.console import describe_blocks, out, print_found, print_json, print_table, unit_of, with_interval
from vit.architecture import Architecture
from vit.cost import macs, params
from vit.files import write_text

if TYPE_CHECKING:
    from api.catalogue_bodies import EntryList
    from api.catalogue_values import Found
    from api.client import Client
    from api.questions import SearchedTarget
    from search.constraints import Constraints

Document = dict[str, Any]


def connect(server: str) -> "Client":
    """The client of a service, with the key of VITFIT_API_KEY: on a command line others would see it."""
    from api.client import Client

    return Client(server, os.environ.get("VITFIT_API_KEY") or None)


@contextmanager
def asked(server: str) -> "Iterator[Client]":
    with connect(server) as client:
        yield client


def targets(server: str, as_json: bool) -> None:
    with asked(server) as client:
        found = client.targets()
    if as_json:
        print_json([one.model_dump(mode="json") for one in found.targets])
        return
    rows: list[tuple[str, str, str, str]] = [
        (one.target, one.kind, f"batch {one.batch}", one.file or "shipped") for one in found.targets
    ]
    rows += [("", "", "unreadable", f"{one.file}: {one.error}") for one in found.unreadable]
    print_table(f"targets of {server}", ("target", "kind", "images", "from"), rows)


def estimates(server: str, names: Sequence[str], slugs: Sequence[str], components: bool) -> list[Document]:
    """As `vitfit estimate` has them, but for what removing a unit would save, which the service does not say."""
    from api.queries import resolve_architecture

    archs = [resolve_architecture(name) for name in names]
    with asked(server) as client:
        asks = {"targets": list(slugs), "architectures": [arch.to_dict() for arch in archs], "components": components}
        found = client.estimate(asks)
    evidence = {one.target: one for one in found.targets}
    documents = []
    for name, one in zip(names, found.architectures, strict=True):
        for given in one.estimates:
            estimate = given.model_dump(mode="json")
            documents.append(
                {
                    "architecture": name,
                    "id": one.id,
                    "target": estimate["target"],
                    "kind": estimate["kind"],
                    "latency_ms": estimate["latency_ms"],
                    "interval_ms": estimate["interval_ms"],
                    "block_ms": estimate["block_ms"],
                    "outside_ms": estimate["outside_ms"],
                    "params": one.params,
                    "macs": one.macs,
                    "provenance": evidence[given.target].provenance.model_dump(mode="json"),
                    "notes": estimate["notes"],
                    **({"components": estimate["components"]} if components else {}),
                }
            )
    return documents


def search(
    server: str,
    saliency: str,
    budgets: Sequence[tuple[str, float]] | None,
    target: str,
    budget_ms: float | None,
    speedup: float | None,
    constraints: "Constraints",
    out_path: Path | None,
    as_json: bool,
) -> None:
    body: Document = {"saliency": saliency, **constraints.to_dict()}
    if budgets is not None:
        body["targets"] = [{"target": name, "budget_ms": ms} for name, ms in budgets]
    else:
        body |= {"target": target} | _set(budget_ms=budget_ms, speedup=speedup)
    with asked(server) as client:
        found = client.search(body)
    arch = found.architecture.to_domain()
    timed = [_timed(one) for one in found.targets]
    if out_path is not None:
        write_text(out_path, arch.to_json() + "\n")
    if not as_json:
        kinds = [one.kind for one in found.targets]
        timed = [one | {"kind": kind} for one, kind in zip(timed, kinds, strict=True)]
        print_found(arch, found.kept, found.bound, timed)
        return
    costs = {"kept": found.kept, "bound": found.bound, "params": found.params, "macs": found.macs}
    document = {"architecture": arch.to_dict(), "id": found.id, **costs}
    print_json(document | (timed[0] if len(timed) == 1 else {"targets": timed}))


def _timed(one: "SearchedTarget") -> Document:
    fields = {"target", "latency_ms", "interval_ms", "budget_ms", "provenance"}
    return one.model_dump(mode="json", include=fields)


def redistribute(
    server: str,
    architecture: str | None,
    embed_dim: int | None,
    names: Sequence[str],
    budgets: Sequence[tuple[str, float]] | None,
    depth: int | None,
    profile: str,
    out_path: Path | None,
    as_json: bool,
) -> None:
    from api.queries import resolve_architecture

    body: Document = {"profile": profile} | _set(depth=depth)
    if architecture is not None:
        if len(names) > 1:
            raise typer.BadParameter("a service redistributes an architecture on one target at a time")
        body |= {"architecture": resolve_architecture(architecture).to_dict(), "target": names[0]}
    elif embed_dim is not None:
        body["embed_dim"] = embed_dim
    else:
        body["targets"] = [{"target": name, "budget_ms": ms} for name, ms in budgets or ()]
    with asked(server) as client:
        found = client.redistribute(body)
    arch = found.architecture.to_domain()
    if out_path is not None:
        write_text(out_path, arch.to_json() + "\n")
    timed = [one.model_dump(mode="json", include={"target", "latency_ms", "interval_ms"}) for one in found.targets]
    if as_json:
        document: Document = {"architecture": arch.to_dict(), "id": found.id, "params": found.params}
        document |= {"macs": found.macs, "profile": found.profile, "note": found.note}
        if found.before is not None:
            document |= {"before": found.before.model_dump(mode="json"), "before_ms": found.before_ms}
        print_json(document | (timed[0] if timed else {}) | {"targets": timed})
        return
    if found.before is not None and found.before_ms is not None:
        before = found.before
        was = f"{found.before_ms:.3f} {unit_of(timed[0]['target'])} on {timed[0]['target']}"
        costs = f"{before.params / 1e6:.2f} M parameters, {before.macs / 1e9:.3f} G MACs, {was}"
        out.print(f"before EMB {before.architecture.embed_dim}: {costs}", highlight=False)
    print_redistributed(found.profile, found.note, arch, timed)


def print_redistributed(profile: str, note: str | None, arch: Architecture, timed: Sequence[Document]) -> None:
    on_targets = ""
    for one in timed:
        ms = f"{one['latency_ms']:.3f} {unit_of(one['target'])}"
        on_targets += f", {with_interval(ms, one['interval_ms'])} on {one['target']}"
    costs = f"{params(arch) / 1e6:.2f} M parameters, {macs(arch) / 1e9:.3f} G MACs{on_targets}"
    title = "ReViT" if profile == "nvidia" else profile
    out.print(f"{title} EMB {arch.embed_dim}: {costs}\n{describe_blocks(arch)}", highlight=False)
    if note is not None:
        out.print(f"note: {note}", highlight=False)


def entries(server: str, **question: Any) -> "list[Found]":
    with asked(server) as client:
        return _found(client.find_entries(_set(**question)))


def front(server: str, **question: Any) -> "list[Found]":
    with asked(server) as client:
        return _found(client.pareto_front(_set(**question)))


def compared(server: str, first: str, second: str, target: str | None) -> Document:
    from api.queries import resolve_architecture

    a, b = (resolve_architecture(name).to_dict() for name in (first, second))
    with asked(server) as client:
        return client.compare({"a": a, "b": b} | _set(target=target)).model_dump(mode="json")


def answers(server: str, model: str | None, **question: Any) -> list[Document]:
    from api.queries import resolve_architecture

    body = _set(**question) | ({} if model is None else {"model": resolve_architecture(model).to_dict()})
    with asked(server) as client:
        found = client.search_by_budget(body)
    return [one.model_dump(mode="json") for one in found.answers]


def _found(listed: "EntryList") -> "list[Found]":
    from api.catalogue_values import Accuracy, Found

    return [
        Found(
            serial=one.entry,
            name=one.name,
            kind=one.kind,
            architecture=one.architecture_id,
            parent=one.parent,
            params=one.params,
            macs=one.macs,
            source=one.source,
            figures=one.figures,
            created_at=one.created_at,
            latency_ms=one.latency_ms,
            accuracies=tuple(
                Accuracy(a.data, a.value, a.evidence, a.recipe, tuple(a.seeds), a.images) for a in one.accuracies
            ),
        )
        for one in listed.entries
    ]


def _set(**fields: Any) -> Document:
    """Those that were given."""
    return {name: value for name, value in fields.items() if value is not None}
