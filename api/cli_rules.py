"""Commands about rules: architectures by ReViT's and other profiles, and profiles learned from pruned models."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api import cli_remote
from api.console import (
    BudgetMs,
    JsonOption,
    Remember,
    Server,
    describe_blocks,
    open_library,
    out,
    print_json,
    print_table,
    remember,
)
from vit.architecture import Architecture
from vit.cost import macs, params
from vit.files import write_text
from vit.presets import preset

if TYPE_CHECKING:
    from api.library import Library
    from latency.estimate import LatencyModel
    from search.profiles import Profile
    from search.redistribute import Redistributed

ProfileName = Annotated[
    str, typer.Option("--profile", "-p", help="nvidia, poster, deit, one of your own, or a .json file.")
]

app = typer.Typer(name="rules", help="Redistribution profiles: list, show, learn.", no_args_is_help=True)


def redistribute(
    architecture: Annotated[
        str | None, typer.Argument(help="Redistribute this one: the same latency, the profile's shape.")
    ] = None,
    embed_dim: Annotated[int | None, typer.Option("--embed-dim", min=1, help="Width.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="Find the widest for a budget here; several with a budget each, SLUG=MS."),
    ] = None,
    budget_ms: BudgetMs = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Blocks; 12, or the architecture's.")] = None,
    profile: ProfileName = "nvidia",
    out_path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the architecture as JSON.")] = None,
    remember_as: Remember = None,
    server: Server = None,
    as_json: JsonOption = False,
) -> None:
    """ReViT and other profiles: an architecture to train from scratch, of a width, for budgets, or like another one."""
    from api.profile_files import resolve_profile
    from search.redistribute import revit

    names = target or []
    if architecture is not None and (embed_dim is not None or budget_ms is not None or not names):
        raise typer.BadParameter("an architecture is redistributed on targets: give --target, and no budget or width")
    budgets = _asked_budgets(names, budget_ms) if architecture is None else None
    if architecture is None and (embed_dim is None) == (budgets is None):
        raise typer.BadParameter(
            "give either --embed-dim, or --target and --budget-ms, or an architecture and --target"
        )
    if server is not None:
        if remember_as is not None:
            raise typer.BadParameter("--remember is of the catalogue on this machine; leave it or --server out")
        cli_remote.redistribute(
            server, architecture, embed_dim, names, budgets, depth, profile, out_path=out_path, as_json=as_json
        )
        return
    library = open_library()
    rule = resolve_profile(profile, library.root)
    if architecture is not None:
        found = _redistribute_like(architecture, names, rule, depth, library, out_path, as_json)
        if remember_as is not None:
            remember(remember_as, found.after, "redistributed", f"{rule.name}, like {architecture}")
        return
    timed: list[LatencyModel] = []
    if embed_dim is not None:
        arch = revit(embed_dim, depth=depth or 12, profile=rule)
    else:
        assert budgets is not None
        arch, timed = _within(budgets, rule, depth or 12, library)
    if out_path is not None:
        write_text(out_path, arch.to_json() + "\n")
    if remember_as is not None:
        remember(remember_as, arch, "redistributed", rule.name)
    documents = [_timed(latency, arch) for latency in timed]
    if as_json:
        document = {"architecture": arch.to_dict(), "id": arch.id, "params": params(arch), "macs": macs(arch)}
        document |= {"profile": rule.name, "note": rule.note(arch.embed_dim)}
        print_json(document | (documents[0] if documents else {}) | {"targets": documents})
        return
    cli_remote.print_redistributed(rule.name, rule.note(arch.embed_dim), arch, documents)


def _asked_budgets(names: Sequence[str], budget_ms: float | None) -> list[tuple[str, float]] | None:
    from api.queries import budgets_of

    budgets = budgets_of(names) if names else None
    if budgets is None and names and budget_ms is not None:
        return [(names[0], budget_ms)]
    if budgets is not None and budget_ms is not None:
        raise typer.BadParameter("each target has its own budget; leave --budget-ms out")
    return budgets


def _within(
    budgets: Sequence[tuple[str, float]], rule: "Profile", depth: int, library: "Library"
) -> tuple[Architecture, "list[LatencyModel]"]:
    from api.queries import REVIT_TEMPLATE, resolve_target, template_of
    from search.redistribute import redistribute_within

    latencies = [resolve_target(name, preset(REVIT_TEMPLATE), library) for name, _ in budgets]
    tables = [latency for latency in latencies if not latency.target.is_analytic]
    template = template_of((tables or latencies)[0])
    if tables:  # what is closed is closed for models like the first table's
        latencies = [resolve_target(name, template, library) for name, _ in budgets]
    asked = [(latency, ms) for latency, (_, ms) in zip(latencies, budgets, strict=True)]
    return redistribute_within(asked, template, depth, rule), latencies


def _timed(latency: "LatencyModel", arch: Architecture) -> dict[str, Any]:
    from latency.estimate import estimate

    found = estimate(latency, arch)
    return {"target": latency.target.slug, "latency_ms": found.latency_ms, "interval_ms": found.interval_ms}


def _redistribute_like(
    name: str,
    targets: Sequence[str],
    rule: "Profile",
    depth: int | None,
    library: "Library",
    out_path: Path | None,
    as_json: bool,
) -> "Redistributed":
    from api.queries import resolve_architecture, resolve_target
    from search.redistribute import redistribute_like

    arch = resolve_architecture(name)
    found = redistribute_like(arch, [resolve_target(slug, arch, library) for slug in targets], rule, depth)
    if out_path is not None:
        write_text(out_path, found.after.to_json() + "\n")
    if as_json:
        print_json(redistributed_document(found))
        return found
    rows = [
        (what, _number(what, before), _number(what, after), f"{after / before - 1:+.1%}")
        for what, before, after in found.costs()
    ]
    title = f"{name} (EMB {found.before.embed_dim}) in the shape of {rule.name} (EMB {found.after.embed_dim})"
    print_table(title, ("", "before", "after", "change"), rows)
    out.print(describe_blocks(found.after), highlight=False)
    if found.wider is not None:
        over = ", ".join(f"{ms:.3f} on {slug}" for ms, slug in zip(found.wider[1], found.targets, strict=True))
        out.print(f"the next wider, EMB {found.wider[0].embed_dim}, takes {over}", highlight=False)
    if (note := rule.note(found.after.embed_dim)) is not None:
        out.print(f"note: {note}", highlight=False)
    return found


def _number(what: str, value: float) -> str:
    return f"{value:.3f}" if what.startswith("latency") else f"{value:,.0f}"


def redistributed_document(found: "Redistributed") -> dict[str, Any]:
    def side(arch: Architecture, ms: Sequence[float]) -> dict[str, Any]:
        return {
            "id": arch.id,
            "architecture": arch.to_dict(),
            "params": params(arch),
            "macs": macs(arch),
            "latency_ms": dict(zip(found.targets, ms, strict=True)),
        }

    return {
        "profile": found.profile.name,
        "note": found.profile.note(found.after.embed_dim),
        "before": side(found.before, found.ms_before),
        "after": side(found.after, found.ms_after),
        "next_wider": None if found.wider is None else side(*found.wider),
    }


@app.command(name="list")
def list_profiles(as_json: JsonOption = False) -> None:
    """Every profile: ours, and those of the data folder."""
    from api.profile_files import own_profiles, unreadable
    from search.profiles import PROFILES

    root = open_library().root
    known, broken = {**PROFILES, **own_profiles(root)}, unreadable(root)
    if as_json:
        print_json({"profiles": [profile.to_dict() for profile in known.values()], "unreadable": broken})
        return
    rows = [
        (name, "any" if profile.depth is None else profile.depth, profile.source) for name, profile in known.items()
    ]
    print_table("Profiles", ("name", "blocks", "source"), rows)
    for file, why in broken.items():
        out.print(f"{file}: {why}", highlight=False)


@app.command()
def show(
    names: Annotated[list[str], typer.Argument(help="Profiles, up to four to lay over each other.")],
    embed_dim: Annotated[int, typer.Option("--embed-dim", min=1, help="Width to read sizes off at.")] = 384,
    depth: Annotated[int, typer.Option(min=1, help="Blocks.")] = 12,
    svg: Annotated[Path | None, typer.Option(help="Write a picture: sizes over depth, a line a profile.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Sizes of profiles block by block, and what is known of where they are from."""
    from api.profile_files import resolve_profile, trends_of
    from api.rules_picture import COLOURS, drawing

    if len(names) > len(COLOURS):
        raise typer.BadParameter(f"at most {len(COLOURS)} profiles can be laid over each other, got {len(names)}")
    root = open_library().root
    profiles = [resolve_profile(name, root) for name in names]
    learned = {profile.name: found for profile in profiles if (found := trends_of(profile.name, root)) is not None}
    if svg is not None:
        write_text(svg, drawing(profiles, embed_dim, depth, learned))
    if as_json:
        print_json([profile.to_dict() | {"trends": learned.get(profile.name)} for profile in profiles])
        return
    for profile in profiles:
        out.print(f"[bold]{profile.name}[/]: {profile.source}", highlight=False)
        arch = preset("deit-b-distilled").replace(embed_dim=embed_dim, blocks=profile.blocks(embed_dim, depth))
        cli_remote.print_redistributed(profile.name, profile.note(embed_dim), arch, [])


@app.command()
def learn(
    name: Annotated[str, typer.Argument(help="Name of the profile.")],
    saliency: Annotated[
        list[str] | None,
        typer.Option("--saliency", "-s", help="A model's saliency, from the library or a file; one for each seed."),
    ] = None,
    target: Annotated[str, typer.Option("--target", "-t", help="Whose frontiers are asked.")] = "macs",
    share: Annotated[
        list[float] | None, typer.Option(help="Budgets as shares of the whole model's latency; 0.6, 0.45 and 0.3.")
    ] = None,
    pruned: Annotated[
        list[str] | None,
        typer.Option(
            "--pruned", help="GROUP=ARCH: a pruned model; those cut from one model are one group, whatever its name."
        ),
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a picture of it beside NVIDIA's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Learn a profile from frontiers and pruned models: what goes with depth and width, and what does not."""
    from api.profile_files import save_profile
    from api.queries import check_signal, resolve_architecture, resolve_saliency, resolve_target
    from api.rules_picture import drawing
    from search.profiles import NVIDIA
    from search.trends import from_frontiers
    from search.trends import learn as read_off

    library = open_library()
    groups: list[list[Architecture]] = []
    shares = share or [0.6, 0.45, 0.3]
    for given in saliency or ():
        scored = resolve_saliency(given, library)
        check_signal(scored)
        from search.constraints import Constraints

        frontier = library.frontier_of(scored, resolve_target(target, scored.arch, library), Constraints())
        groups += from_frontiers([frontier], shares)
    by_name: dict[str, list[Architecture]] = {}
    for text in pruned or ():
        group, separator, arch = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"--pruned takes GROUP=ARCH, got {text!r:.80}")
        by_name.setdefault(group, []).append(resolve_architecture(arch))
    groups += by_name.values()
    source = f"frontiers on {target} at {', '.join(f'{one:g}' for one in shares)}" if saliency else ""
    trends = read_off(groups, source=" and ".join(part for part in (source, "pruned models" if pruned else "") if part))
    profile = trends.profile(name)
    path = save_profile(profile, library.root, trends)
    if svg is not None:
        depth, width = groups[0][0].depth, max(trends.embed_range[1], NVIDIA.least_embed_dim(12))
        write_text(svg, drawing([profile, NVIDIA], width, depth, {name: trends.to_dict()}))
    if as_json:
        print_json({"path": str(path), "profile": profile.to_dict(), "trends": trends.to_dict()})
        return
    rows = []
    for size, depth_trend in trends.depth.items():
        width_trend = trends.width[size]
        p = "one model cannot tell" if depth_trend.p is None else f"p {depth_trend.p:.3g}"
        interval = width_trend.interval
        power = "unknown" if interval is None else f"{width_trend.power:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"
        rows.append(
            (
                size,
                depth_trend.shape if depth_trend.is_there else f"no trend ({p})",
                " ".join(f"{one:.2f}" for one in depth_trend.eps),
                f"EMB^{power}" if width_trend.is_there else f"no trend ({power})",
            )
        )
    print_table(f"{name}, in {path}", ("size", "with depth", "eps", "with EMB"), rows)
