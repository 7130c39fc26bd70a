"""What a job may name, and what can be said about its request before it starts, without torch.

    data_dir/models/<model>.safetensors    checkpoints of ours
    data_dir/datasets/<data>/              folders of images: train/ and val/ (or test/), one folder a class in each

A name is looked up among what is there; it never becomes a path otherwise.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from api.errors import at
from api.library import SALIENCIES, Library
from api.queries import budget_of, check_signal
from api.questions import constraints_of
from latency.estimate import estimate
from search.budget import check_budget, smallest_ms
from search.errors import SaliencyError
from vit.architecture import Architecture
from vit.checkpoint_header import CheckpointHeader, is_rebased, read_header
from vit.errors import CheckpointError, UnknownNameError, UnsupportedModelError

if TYPE_CHECKING:
    from api.job_requests import CompressJobRequest, PruneJobRequest

MODELS, DATASETS = "models", "datasets"
SUFFIX = ".safetensors"

BUILT_IN: Mapping[str, tuple[int, int, tuple[int, int]]] = {
    "digits": (10, 1, (16, 16)),
    "gratings": (16, 1, (24, 24)),
    "plaids": (276, 1, (32, 32)),
}
"""num_classes, in_chans and image_size of the data sets of `recovery.data` that are no folders."""


def model_path(name: str) -> Path:
    """Relative to the data folder."""
    return Path(MODELS, name + SUFFIX)


def saliency_path(name: str) -> Path:
    """Relative to the data folder."""
    return Path(SALIENCIES, name + SUFFIX)


def data_source(name: str) -> str:
    """What `recovery.data.load_dataset` calls it in the data folder; built-in data go before folders."""
    return name if _is_built_in(name) else str(Path(DATASETS, name))


def _is_built_in(name: str) -> bool:
    return name.partition(":")[0] in BUILT_IN


def check_compress(body: "CompressJobRequest", library: Library) -> None:
    """
    Raises:
        LocatedError: an unknown name, or what cannot go together whatever the images say; with the field.
    """
    header = check_model_and_data(body.model, body.data, library)
    check_fit(body, header.arch, library)
    if body.saliency is not None:
        with at("saliency"):
            _check_saliency(body.saliency, body.model, header, library)


def check_model_and_data(model: str, data: str, library: Library) -> CheckpointHeader:
    with at("model"):
        header = header_of(library.root, model)
    with at("data"):
        check_data(library.root, data, header.arch)
    return header


def check_fit(body: "CompressJobRequest | PruneJobRequest", arch: Architecture, library: Library) -> None:
    """That the budget can be met on the target, within the constraints."""
    with at(""):
        constraints = constraints_of(body)
        constraints.check(arch)
    with at("target"):
        latency = library.latency_model(body.target, arch)
        full_ms = estimate(latency, arch).latency_ms
    with at("multiples"):
        library.check_work(arch, latency, constraints)
    with at("budget_ms" if body.speedup is None else "speedup"):
        budget_ms = budget_of(full_ms, body.budget_ms, body.speedup)
        check_budget(latency, budget_ms, smallest_ms(latency, arch, constraints), full_ms, arch, constraints)


def header_of(root: Path, name: str, classifies: bool = True) -> CheckpointHeader:
    known = {path.stem: path for path in _entries(root / MODELS) if path.suffix == SUFFIX}
    if name not in known:
        raise UnknownNameError("model", name, sorted(known))
    try:
        header = read_header(known[name])
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(known[name]), known[name].name)) from None
    if classifies and not header.arch.num_classes:
        raise UnsupportedModelError(f"{name} has no classifier (num_classes is 0); this job needs one")
    return header


def check_data(root: Path, name: str, arch: Architecture | None) -> None:
    if _is_built_in(name):
        wanted = BUILT_IN[name.partition(":")[0]]
        if arch is not None and (given := (arch.num_classes, arch.in_chans, arch.image_size)) != wanted:
            raise UnsupportedModelError(
                f"the data {name!r} has num_classes, in_chans and image_size {wanted}, the model has {given}"
            )
        return
    folders = sorted(path.name for path in _entries(root / DATASETS) if path.is_dir())
    if name not in folders:
        raise UnknownNameError("data", name, (*BUILT_IN, *folders))


def _check_saliency(name: str, model: str, header: CheckpointHeader, library: Library) -> None:
    saliency = library.saliency(name)
    check_signal(saliency)
    if not is_rebased(header.lineage):
        raise SaliencyError(
            f"{model} is not in its basis, so {name} is of another one; change it with `vitfit rebase`, score that "
            "checkpoint with `vitfit saliency`, or leave saliency out"
        )
    if saliency.arch != header.arch:
        raise SaliencyError(f"{name} scores another architecture than that of {model}")


def _entries(folder: Path) -> Iterator[Path]:
    """What is in a folder, if it is there; hidden entries are still being written."""
    try:
        yield from (path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return
