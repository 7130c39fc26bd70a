"""A run or a checkpoint as one page that can be mailed: what it is, why it is so, figures, and its lineage.

Made from the first bytes of a checkpoint and the journal of a run alone, so it needs neither torch nor the images.
Folders of this machine stay out of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from api.page import write_page
from vit.architecture import Architecture, BlockShape
from vit.checkpoint_header import read_header
from vit.cost import macs, params
from vit.errors import CheckpointError, JournalError
from vit.journal import read_journal

JOURNAL = "run.jsonl"

KINDS = {"vitfit-prune": "pruned in rounds, with training in between", "vitfit-sparsify": "weights removed in phases"}
"""Of the journals that a report can be made of."""


def write_run_report(source: Path, path: Path) -> None:
    """Render and write atomically.

    Args:
        source: a checkpoint, or the folder of a run (`prune`, `sparsify --sweep`).

    Raises:
        CheckpointError: no checkpoint, or none of ours.
        JournalError: a folder without the journal of a run that is known here.
    """
    _write(path, **(_of_run(source) if source.is_dir() else _of_checkpoint(source)))


def _of_checkpoint(path: Path) -> dict[str, Any]:
    header = read_header(path)
    arch, lineage = header.arch, [dict(step) for step in header.lineage]
    sparse = None if header.masked is None else header.masked.sparsity
    return {
        "title": path.name,
        "what": f"a Vision Transformer of {arch.depth} blocks" + (", sparse" if sparse else ""),
        "before": _uncut(path),
        "after": arch,
        "sparsity": sparse,
        "lineage": lineage,
        "rows": [],
        "asked": {},
        "target": next((str(step["target"]) for step in reversed(lineage) if step.get("target")), ""),
    }


def _of_run(folder: Path) -> dict[str, Any]:
    journal = folder / JOURNAL
    if not journal.is_file():
        raise JournalError(f"{folder} has no {JOURNAL}; a report is made of a run's folder or of a checkpoint")
    header, rows = read_journal(journal)
    kind = str(header.get("journal", ""))
    if kind not in KINDS:
        raise JournalError(f"{journal} is no journal of {' or '.join(sorted(KINDS))}; it says {kind[:60]!r}")
    if not rows:
        raise JournalError(f"{journal} has no finished round yet; let the run go on, then make its report")
    checkpoints = sorted(path for path in folder.glob("*-[0-9]*.safetensors") if path.stem.count(".") == 0)
    if not checkpoints:
        raise CheckpointError(f"{folder} has no checkpoint of a finished round")
    last = read_header(checkpoints[-1])
    start = folder / "start.safetensors"
    asked = {name: value for name, value in header.items() if name not in ("journal", "version")}
    return {
        "title": folder.name,
        "what": KINDS[kind],
        "before": read_header(start).arch if start.is_file() else None,
        "after": last.arch,
        "sparsity": None if last.masked is None else last.masked.sparsity,
        "lineage": [dict(step) for step in last.lineage],
        "rows": rows,
        "asked": asked,
        "target": str(header.get("target", "")),
    }


def _uncut(checkpoint: Path) -> Architecture | None:
    """What a checkpoint of `compress` was before, by the report that lies beside it."""
    beside = checkpoint.with_suffix("").with_name(f"{checkpoint.stem}.report.json")
    try:
        return Architecture.from_dict(json.loads(beside.read_text(encoding="utf-8"))["before"]["architecture"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # an addition, not what the page is about


def _largest(arch: Architecture) -> Architecture:
    """All blocks as large as the largest one, size by size."""
    sizes = {name: max(getattr(block, name) for block in arch.blocks) for name in BlockShape.__slots__}
    return arch.replace(blocks=(BlockShape(**sizes),) * arch.depth, softmax_scale=None)


def _write(path: Path, **found: Any) -> None:
    after: Architecture = found["after"]
    before: Architecture | None = found["before"]
    same = before is not None and before.depth == after.depth
    write_page(
        path,
        "run",
        {
            "before": (before if before is not None and same else _largest(after)).to_dict(),
            "after": after.to_dict(),
            "rows": found["rows"],
            "unit": "million MACs" if found["target"] == "macs" else "ms",
        },
        title=found["title"],
        what=found["what"],
        target=found["target"],
        before=None if before is None else _described(before),
        after=_described(after),
        arch=after,
        whole=before if same else None,
        sparsity=found["sparsity"],
        rows=found["rows"],
        asked={name: _shown(value) for name, value in found["asked"].items()},
        lineage=[{name: _shown(value) for name, value in step.items()} for step in found["lineage"]],
    )


def _described(arch: Architecture) -> dict[str, Any]:
    return {"id": arch.id, "params": params(arch), "macs": macs(arch), "embed_dim": arch.embed_dim}


def _shown(value: Any) -> str:
    """A figure or words of the lineage; of a path the name alone, of a long document that it is one."""
    if isinstance(value, str):
        return PurePath(value).name if value.startswith(("/", "~")) else value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if "blocks" in value:
            return f"{Architecture.from_dict(dict(value)).id}"
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items() if one not in (None, {}, []))
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) if len(value) <= 12 else f"{len(value)} entries"
    return str(value)
