"""What the commands share: options, and how results, progress and errors look.

Results go to stdout, as tables or with --json as one JSON document; progress and errors go to stderr.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vit.architecture import Architecture
from vit.cost import macs, params

if TYPE_CHECKING:
    from api.catalogue_values import Accuracy
    from api.library import Library
    from latency.estimate import LatencyModel
    from search.constraints import Constraints
    from search.frontier import Choice
    from search.joint import JointChoice

out, err = Console(), Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Target = Annotated[str, typer.Option("--target", "-t", help="Slug of a target, a .parquet table, or `macs`.")]
Targets = Annotated[
    list[str],
    typer.Option("--target", "-t", help="Slug of a target, a .parquet table, or `macs`; give several to compare."),
]
SearchTargets = Annotated[
    list[str],
    typer.Option(
        "--target", "-t", help="Slug of a target, a .parquet table, or `macs`; several with a budget each, SLUG=MS."
    ),
]
Data = Annotated[
    str,
    typer.Option("--data", "-d", help="digits, gratings or plaids[:noise=..,seed=..], a folder, hfds:.. or wds:.."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
BudgetMs = Annotated[float | None, typer.Option("--budget-ms", help="Latency budget (M MACs for target macs).")]
Speedup = Annotated[float | None, typer.Option("--speedup", help="Budget as a factor over the whole model.")]
Multiple = Annotated[
    list[str] | None,
    typer.Option("--multiple", help="Step of a size, mlp_dim=32; give it several times. Else 8, and 1 for heads."),
]
Minimum = Annotated[
    list[str] | None, typer.Option("--minimum", "--min", help="Smallest size, mlp_dim=512; give it several times.")
]
FixEmbedDim = Annotated[
    str | None, typer.Option("--fix-embed-dim", help="`whole` keeps embed_dim, a size cuts it to that one.")
]
EqualBlocks = Annotated[bool, typer.Option("--equal-blocks", help="The same sizes for all blocks.")]
Protect = Annotated[
    str | None, typer.Option("--protect", help="Blocks or sizes that stay as they are: 0,11,qk_dim,3.mlp_dim.")
]
Remember = Annotated[
    str | None, typer.Option("--remember", metavar="NAME", help="Put what was found into the catalogue, by this name.")
]
Criterion = Annotated[
    str, typer.Option("--criterion", "-c", help="gates, fisher, nvit, taylor-abs, magnitude or random.")
]
Labels = Annotated[
    str, typer.Option(help="Whose labels saliency reads: data, or model (drawn from its own predictions).")
]
Batches = Annotated[int, typer.Option(min=1, help="Calibration batches.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per calibration or training batch.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
DeviceName = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Runtime = Annotated[str, typer.Option(help="eager, compile, onnxruntime, openvino or tensorrt.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16, fp16 or amp.")]
Batch = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads that the timed model may use.")]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="VITFIT_SERVER",
        metavar="URL",
        help="Ask this service; where it wants a key, that in VITFIT_API_KEY.",
    ),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Fetch published weights of a timm name.")]


def escaped(text: str) -> str:
    return text.replace("[", "\\[")


def open_library() -> "Library":
    from api.library import Library
    from api.settings import Settings

    return Library.of(Settings())


def remember(name: str, arch: Architecture, kind: str, source: str, parent: str | None = None) -> None:
    """Put an architecture into the catalogue."""
    from dataclasses import replace

    from api.catalogue_sources import told
    from api.cli_catalogue import opened

    _, catalogue = opened()
    catalogue.add([replace(told(name, arch, source, kind=kind), parent=parent)])


def remember_checkpoint(path: Path, accuracies: Sequence["Accuracy"] = ()) -> None:
    """Put a checkpoint that was just written into the catalogue; where that cannot be, say so and leave it."""
    from api.catalogue_sources import of_checkpoint
    from api.catalogue_values import DatabaseError
    from api.cli_catalogue import opened

    try:
        opened()[1].add([of_checkpoint(path, accuracies)])
    except DatabaseError as error:
        err.print(f"note: {path} is not in the catalogue: {error}", highlight=False)


def print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """The first column names the rows, and is never cut."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        first = index == 0
        table.add_column(column, justify="left" if first else "right", no_wrap=first, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out.print(table)


@contextmanager
def progress_bar(task: str, total: int) -> Iterator[Any]:
    """A bar on stderr with a time to finish; gives a function that sets what is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task(task, total=total)
        yield lambda done: progress.update(bar, completed=done)


def describe_blocks(arch: Architecture) -> str:
    """Sizes of all blocks in a line each, equal neighbours together."""
    lines: list[list[Any]] = []
    for index, b in enumerate(arch.blocks):
        if lines and lines[-1][1] == b:
            lines[-1][2] = index
        else:
            lines.append([index, b, index])
    return "\n".join(
        f"blocks {first}-{last}: H {b.num_heads}, QK {b.qk_dim}, V {b.v_dim}, MLP {b.mlp_dim}"
        if last > first
        else f"block {first}: H {b.num_heads}, QK {b.qk_dim}, V {b.v_dim}, MLP {b.mlp_dim}"
        for first, b, last in lines
    )


def unit_of(slug: str) -> str:
    return "M MACs" if slug.startswith("macs") else "ms"


def with_interval(text: str, interval_ms: tuple[float, float] | None) -> str:
    """A latency, and where it is modelled what it may be."""
    return text if interval_ms is None else f"{text} ({interval_ms[0]:.3f} to {interval_ms[1]:.3f})"


def constraints_of(
    multiple: list[str] | None,
    minimum: list[str] | None,
    fix_embed_dim: str | None,
    equal_blocks: bool,
    protect: str | None,
) -> "Constraints":
    """
    Raises:
        typer.BadParameter: an option that cannot be read.
        ConstraintError: constraints that contradict each other.
    """
    from search.constraints import Constraints

    fixed = int(fix_embed_dim) if fix_embed_dim is not None and fix_embed_dim.isdecimal() else fix_embed_dim
    protected = [text.strip() for text in (protect or "").split(",") if text.strip()]
    document = {
        "multiples": _sizes("--multiple", multiple or ()),
        "minimum": _sizes("--minimum", minimum or ()),
        "fix_embed_dim": fixed,
        "equal_blocks": equal_blocks,
        "protect": [int(text) for text in protected if text.isdecimal()],
        "protect_sizes": [text for text in protected if not text.isdecimal()],
    }
    return Constraints.from_dict(document)


def _sizes(option: str, given: Iterable[str]) -> dict[str, int]:
    pairs = (text.partition("=") for text in given)
    return {name.strip(): _whole_number(f"{option} {name}", size) for name, _, size in pairs}


def _whole_number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{option} takes a whole number, got {text!r:.60}") from None


def choice_document(choice: "Choice", latency: "LatencyModel") -> dict[str, Any]:
    return {
        **_found_document(choice),
        **_timed_document(latency, choice.latency_ms, choice.budget_ms),
    }


def joint_document(joint: "JointChoice", latencies: Sequence["LatencyModel"]) -> dict[str, Any]:
    on_each = zip(latencies, joint.latency_ms, joint.budget_ms, strict=True)
    return {**_found_document(joint), "targets": [_timed_document(*each) for each in on_each]}


def _found_document(choice: "Choice | JointChoice") -> dict[str, Any]:
    return {
        "architecture": choice.arch.to_dict(),
        "id": choice.arch.id,
        "kept": choice.kept,
        "bound": choice.bound,
        "params": params(choice.arch),
        "macs": macs(choice.arch),
    }


def _timed_document(latency: "LatencyModel", latency_ms: float, budget_ms: float) -> dict[str, Any]:
    return {
        "target": latency.target.slug,
        "latency_ms": latency_ms,
        "interval_ms": latency.provenance.interval_ms(latency_ms),
        "budget_ms": budget_ms,
        "provenance": latency.provenance.to_dict(),
    }


def print_choice(choice: "Choice", latency: "LatencyModel") -> None:
    timed = _timed_document(latency, choice.latency_ms, choice.budget_ms) | {"kind": latency.kind}
    print_found(choice.arch, choice.kept, choice.bound, [timed])


def print_joint(joint: "JointChoice", latencies: Sequence["LatencyModel"]) -> None:
    on_each = zip(joint_document(joint, latencies)["targets"], latencies, strict=True)
    timed = [one | {"kind": latency.kind} for one, latency in on_each]
    print_found(joint.arch, joint.kept, joint.bound, timed)


def print_found(arch: Architecture, kept: float, bound: float | None, timed: Sequence[dict[str, Any]]) -> None:
    """What a search found, on the targets of its documents."""
    for one in timed:
        text = f"{one['latency_ms']:.3f} {unit_of(one['target'])}"
        out.print(
            f"{with_interval(text, one['interval_ms'])} of {one['budget_ms']:.3f} on {one['target']} ({one['kind']})",
            highlight=False,
        )
    within = "the budget" if len(timed) == 1 else "all budgets"
    gap = "" if bound is None else f"; nothing within {within} keeps more than {bound:.2%}"
    out.print(
        f"keeps {kept:.2%} of the saliency{gap}\n"
        f"{params(arch) / 1e6:.2f} M parameters, {macs(arch) / 1e9:.3f} G MACs, EMB {arch.embed_dim}\n"
        f"{describe_blocks(arch)}",
        highlight=False,
    )
