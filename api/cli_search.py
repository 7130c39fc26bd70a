"""Search: sizes for a budget."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from api import cli_remote
from api.console import (
    BudgetMs,
    EqualBlocks,
    FixEmbedDim,
    JsonOption,
    Minimum,
    Multiple,
    Protect,
    Remember,
    SearchTargets,
    Server,
    Speedup,
    choice_document,
    constraints_of,
    joint_document,
    open_library,
    print_choice,
    print_joint,
    print_json,
    remember,
)
from vit.files import write_text


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
    remember_as: Remember = None,
    server: Server = None,
    as_json: JsonOption = False,
) -> None:
    """The architecture that keeps the most saliency within a budget, with the bound that certifies it.

    Several targets, each with its budget (-t A=2.5 -t B=9), are all met by one architecture.
    """
    from api.queries import budgets_of, check_signal, resolve_saliency, resolve_target
    from api.queries import search as best
    from search.joint import joint_choice

    budgets = budgets_of(target)
    if budgets is not None and (budget_ms is not None or speedup is not None):
        raise typer.BadParameter("each target has its own budget; leave --budget-ms and --speedup out")
    constraints = constraints_of(multiple, minimum, fix_embed_dim, equal_blocks, protect)
    if server is not None:
        if remember_as is not None:
            raise typer.BadParameter("--remember is of the catalogue on this machine; leave it or --server out")
        cli_remote.search(
            server, saliency, budgets, target[0], budget_ms, speedup, constraints, out_path=out_path, as_json=as_json
        )
        return
    library = open_library()
    scored = resolve_saliency(saliency, library)
    if budgets is not None and len(budgets) > 1:
        check_signal(scored)
        asked = [(resolve_target(name, scored.arch, library), ms) for name, ms in budgets]
        joint = joint_choice(scored, asked, constraints)
        latencies, arch = [latency for latency, _ in asked], joint.arch
        document, show = joint_document(joint, latencies), partial(print_joint, joint, latencies)
        within = asked
    else:
        ((name, budget_ms),) = budgets or ((target[0], budget_ms),)
        latency = resolve_target(name, scored.arch, library)
        choice = best(scored, latency, library, budget_ms=budget_ms, speedup=speedup, constraints=constraints)
        document, show, arch = choice_document(choice, latency), partial(print_choice, choice, latency), choice.arch
        within = [(latency, choice.budget_ms)]
    if out_path is not None:
        write_text(out_path, arch.to_json() + "\n")
    if remember_as is not None:
        given = ", ".join(f"{latency.target.slug}={ms:g}" for latency, ms in within)
        remember(remember_as, arch, "frontier", f"search of {saliency} on {given}", scored.arch.id)
    if as_json:
        print_json(document)
    else:
        show()
