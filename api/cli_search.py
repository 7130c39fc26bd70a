"""Commands about shapes: search and redistribute."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from api.console import (
    BudgetMs,
    EqualBlocks,
    FixEmbedDim,
    JsonOption,
    Minimum,
    Multiple,
    Protect,
    SearchTargets,
    Speedup,
    choice_document,
    constraints_of,
    describe_blocks,
    joint_document,
    open_library,
    out,
    print_choice,
    print_joint,
    print_json,
    unit_of,
    with_interval,
)
from vit.cost import macs, params
from vit.files import write_text
from vit.presets import preset


def search(
    saliency: Annotated[str, typer.Option("--saliency", "-s", help="Name in the library, or a .safetensors file.")],
    target: SearchTargets,
    budget_ms: BudgetMs = None,
    speedup: Speedup = None,
    multiple: Multiple = None,
    minimum: Minimum = None,
    fix_embed_dim: FixEmbedDim = None,
    equal_blocks: EqualBlocks = False,
    protect: Protect = None,
    out_path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the architecture as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The architecture that keeps the most saliency within a budget, with the bound that certifies it.

    Several targets, each with its budget (-t A=2.5 -t B=9), are all met by one architecture.
    """
    from api.queries import budgets_of, check_signal, resolve_saliency, resolve_target
    from api.queries import search as best
    from search.joint import joint_choice

    library, budgets = open_library(), budgets_of(target)
    if budgets is not None and (budget_ms is not None or speedup is not None):
        raise typer.BadParameter("each target has its own budget; leave --budget-ms and --speedup out")
    constraints = constraints_of(multiple, minimum, fix_embed_dim, equal_blocks, protect)
    scored = resolve_saliency(saliency, library)
    if budgets is not None and len(budgets) > 1:
        check_signal(scored)
        asked = [(resolve_target(name, scored.arch, library), ms) for name, ms in budgets]
        joint = joint_choice(scored, asked, constraints)
        latencies, arch = [latency for latency, _ in asked], joint.arch
        document, show = joint_document(joint, latencies), partial(print_joint, joint, latencies)
    else:
        ((name, budget_ms),) = budgets or ((target[0], budget_ms),)
        latency = resolve_target(name, scored.arch, library)
        choice = best(scored, latency, library, budget_ms=budget_ms, speedup=speedup, constraints=constraints)
        document, show, arch = choice_document(choice, latency), partial(print_choice, choice, latency), choice.arch
    if out_path is not None:
        write_text(out_path, arch.to_json() + "\n")
    if as_json:
        print_json(document)
    else:
        show()


def redistribute(
    embed_dim: Annotated[int | None, typer.Option("--embed-dim", min=1, help="Width.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Find the widest for a budget here.")] = None,
    budget_ms: BudgetMs = None,
    depth: Annotated[int, typer.Option(min=1, help="Blocks.")] = 12,
    out_path: Annotated[Path | None, typer.Option("--out", "-o", help="Write the architecture as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """ReViT: an architecture to train from scratch, of a width or for a budget."""
    from api.queries import REVIT_TEMPLATE, resolve_target, template_of
    from latency.estimate import estimate as latency_of
    from search.redistribute import redistribute as widest
    from search.redistribute import revit

    if (embed_dim is None) == (target is None or budget_ms is None):
        raise typer.BadParameter("give either --embed-dim, or --target and --budget-ms")
    timed: dict[str, Any] = {}
    if embed_dim is not None:
        arch = revit(embed_dim, depth=depth)
    else:
        assert target is not None
        assert budget_ms is not None
        latency = resolve_target(target, preset(REVIT_TEMPLATE), open_library())
        arch = widest(latency, budget_ms, template_of(latency), depth)
        found = latency_of(latency, arch)
        timed = {"target": latency.target.slug, "latency_ms": found.latency_ms, "interval_ms": found.interval_ms}
    if out_path is not None:
        write_text(out_path, arch.to_json() + "\n")
    if as_json:
        document = {"architecture": arch.to_dict(), "id": arch.id, "params": params(arch), "macs": macs(arch)}
        print_json(document | timed)
        return
    on_target = ""
    if timed:
        ms = f"{timed['latency_ms']:.3f} {unit_of(timed['target'])}"
        on_target = f", {with_interval(ms, timed['interval_ms'])} on {timed['target']}"
    out.print(
        f"ReViT EMB {arch.embed_dim}: {params(arch) / 1e6:.2f} M parameters, {macs(arch) / 1e9:.3f} G MACs{on_target}\n"
        f"{describe_blocks(arch)}",
        highlight=False,
    )
