"""What fills the catalogue: presets, published figures, the checkpoints of the library, and what somebody tells it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.catalogue import Catalogue
from api.catalogue_values import Accuracy, Entry
from vit.architecture import Architecture
from vit.checkpoint_header import read_header
from vit.errors import VitfitError
from vit.presets import PRESETS, PUBLISHED, PublishedResult, preset

if TYPE_CHECKING:
    from recovery.recipes import Recipe
    from search.study_report import Standing

IMAGENET = "imagenet-1k"

_KIND_OF_STEP = {"compress": "compressed", "prune": "pruned", "finetune": "trained", "pick": "pruned"}
"""Kinds of what the last step of a lineage made; anything else is what somebody brought."""


def presets() -> Iterator[Entry]:
    for name, arch in PRESETS.items():
        yield Entry(f"preset:{name}", name, "preset", arch, "vitfit's presets")


def published() -> Iterator[Entry]:
    """Rows of published tables, as printed. Whether ours have the printed costs is another matter (see the presets)."""
    for row in PUBLISHED:
        yield _published(row)


def _published(row: PublishedResult) -> Entry:
    printed: dict[str, Any] = {"params_m": row.params_m, "macs_g": row.macs_g, "speedup": dict(row.speedup)}
    return Entry(
        f"published:{row.source}:{row.name}",
        row.name,
        "published",
        preset(row.preset) if row.preset else None,
        row.source,
        params=round(row.params_m * 1e6),
        macs=None if row.macs_g is None else round(row.macs_g * 1e9),
        figures=printed,
        accuracies=(Accuracy(IMAGENET, row.top1 / 100, "published", row.source),),
    )


def checkpoints(folder: Path) -> Iterator[tuple[Path, Entry | None, str]]:
    """Every checkpoint of a folder: its entry, or why there is none."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors" and path.name[0] != ".")
    except OSError:
        return
    for path in paths:
        try:
            yield path, of_checkpoint(path), ""
        except VitfitError as error:
            yield path, None, str(error)


def of_checkpoint(path: Path, accuracies: Sequence[Accuracy] = ()) -> Entry:
    """
    Raises:
        CheckpointError: no checkpoint of ours.
    """
    header = read_header(path)
    step: Mapping[str, Any] = header.lineage[-1] if header.lineage else {}
    parents = [str(one["from_architecture"]) for one in header.lineage if one.get("from_architecture")]
    return Entry(
        f"checkpoint:{header.arch.id}:{path.name}"[:200],
        path.stem[:200],
        _KIND_OF_STEP.get(str(step.get("step")), "told"),
        header.arch,
        f"checkpoint {path.name}",
        parent=parents[-1] if parents and parents[-1] != header.arch.id else None,
        lineage=header.lineage,
        accuracies=tuple(accuracies),
    )


def compressed_accuracy(report: Mapping[str, Any], seed: int) -> Accuracy:
    """Of what `vitfit compress` made, on the held-out images, from its report."""
    steps, images = report["finetune"], report["calibration"]["images"]
    recipe = f"compress on {images} images, " + (f"{steps} steps of fine-tuning" if steps else "without training")
    found = report["accuracy"]
    return Accuracy(report["calibration"]["data"], found["after"], "measured", recipe, (seed,), found["images"])


def validated_accuracy(value: float, data: str, recipe: "Recipe") -> Accuracy:
    """Of what a fine-tune made, on the training images that it held out."""
    document = json.dumps(recipe.to_dict(), sort_keys=True)
    return Accuracy(f"{data} (training images held out)", value, "measured", document, (recipe.seed,))


def told(name: str, arch: Architecture, source: str, accuracies: Sequence[Accuracy] = (), kind: str = "told") -> Entry:
    return Entry(f"{kind}:{arch.id}:{name}"[:200], name, kind, arch, source, accuracies=tuple(accuracies))


def fill(catalogue: Catalogue, models: Path) -> tuple[int, list[str]]:
    """All that is known without being told: presets, published figures, and the library's checkpoints.

    Returns:
        How many entries are new, and which files could not be read, with the reason.
    """
    count, broken = catalogue.add([*presets(), *published()]), []
    found = []
    for path, entry, why in checkpoints(models):
        if entry is None:
            broken.append(f"{path.name}: {why}")
        else:
            found.append(entry)
    return count + catalogue.add(found), broken


def of_study(found: "Standing", seed: int) -> Iterator[Entry]:
    """The best architectures of a study; accuracy where it was measured, on images held out of training."""
    asks = found.identity
    for one in found.best:
        accuracies: tuple[Accuracy, ...] = ()
        if "accuracy" in one.metrics:
            recipe = json.dumps({**asks["fixed"], **one.values}, sort_keys=True, ensure_ascii=False)
            data = f"{asks['data']} (training images held out)"
            accuracies = (Accuracy(data, one.metrics["accuracy"], "measured", recipe, (seed,)),)
        yield Entry(
            f"study:{found.name}:{one.number}"[:200],
            f"{found.name} {one.number}"[:200],
            "study",
            one.arch,
            f"study {found.name}, trial {one.number}",
            accuracies=accuracies,
        )
