"""What can be said about the request of a job of any kind before it starts, without torch. Each error has its field."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from api.errors import at
from api.job_inputs import check_compress, check_data, check_fit, check_model_and_data, header_of
from api.job_kinds import queue_of
from api.job_requests import (
    CompressJobRequest,
    ExportJobRequest,
    FinetuneJobRequest,
    ProfileJobRequest,
    PruneJobRequest,
    SaliencyJobRequest,
    SparsifyJobRequest,
    StudyJobRequest,
)
from api.job_saving import check_free
from api.library import Library
from api.recipe_changes import recipe_with
from api.settings import Settings
from latency.errors import TargetError
from latency.runtimes import DTYPES, RUNTIMES
from recovery.recipes import RECIPES
from search.study_file import parse_study
from vit.errors import UnknownNameError
from vit.presets import PRESETS
from vit.token_plan import TokenPlan


def check_job(body: BaseModel, library: Library, settings: Settings) -> None:
    """
    Raises:
        LocatedError: an unknown name, or what cannot go together whatever the images say.
    """
    document = body.model_dump(mode="json")
    with at("queue" if document["queue"] else "device"):
        if (queue := queue_of(document)) not in settings.queues:
            raise UnknownNameError("queue", queue, settings.queues)
    CHECKS[document["kind"]](body, library)


def _free(body: Any, library: Library, noun: Any, suffixes: tuple[str, ...] = ("",)) -> None:
    if body.save_as is not None:
        with at("save_as"):
            for suffix in suffixes:
                check_free(library.root, noun, f"{body.save_as}{suffix}")


def _profile(body: ProfileJobRequest, library: Library) -> None:
    with at("runtime"):
        if body.runtime not in RUNTIMES:
            raise UnknownNameError("runtime", body.runtime, RUNTIMES)
    with at("dtype"):
        if body.dtype not in DTYPES:
            raise UnknownNameError("dtype", body.dtype, DTYPES)
        if body.dtype not in (known := RUNTIMES[body.runtime].dtypes.get(body.device, ())):
            raise TargetError(
                f"{body.runtime} has no {body.dtype} on {body.device}; it has {', '.join(known) or 'nothing there'}"
            )
    with at("points"):
        if isinstance(body.points, int) and body.points < 1:
            raise TargetError(f"points must be at least 1, got {body.points}")
    with at("architecture"):
        body.architecture.to_domain()
    _free(body, library, "table")


def _saliency(body: SaliencyJobRequest, library: Library) -> None:
    check_model_and_data(body.model, body.data, library)
    _free(body, library, "saliency")


def _compress(body: CompressJobRequest, library: Library) -> None:
    check_compress(body, library)
    _free(body, library, "model")


def _prune(body: PruneJobRequest, library: Library) -> None:
    header = check_model_and_data(body.model, body.data, library)
    check_fit(body, header.arch, library)
    _recipe(body.recipe, None, None, body.settings)
    _free(body, library, "model")


def _finetune(body: FinetuneJobRequest, library: Library) -> None:
    header = check_model_and_data(body.model, body.data, library)
    _recipe(body.recipe, body.steps, body.epochs, body.settings)
    _teacher(body.teacher, library)
    if body.token_after is not None and body.token_ratio is not None:
        with at("token_after"):
            TokenPlan(tuple(body.token_after), body.token_ratio).check(header.arch)
    _free(body, library, "model")


def _sparsify(body: SparsifyJobRequest, library: Library) -> None:
    check_model_and_data(body.model, body.data, library)
    _recipe(body.recipe, body.steps, body.epochs, body.settings)
    _teacher(body.teacher, library)
    _free(body, library, "model", tuple(f"-{100 * target:g}" for target in body.sweep or ()) or ("",))


def _study(body: StudyJobRequest, library: Library) -> None:
    with at("study"):
        spec = parse_study(json.dumps(body.study))
    arch = None
    if spec.model is not None:
        with at("study.model"):
            if spec.make == "redistribute" and spec.model in PRESETS:
                arch = PRESETS[spec.model]
            else:
                arch = header_of(library.root, spec.model).arch
    if spec.data is not None:
        with at("study.data"):
            check_data(library.root, spec.data, arch)


def _export(body: ExportJobRequest, library: Library) -> None:
    with at("model"):
        header_of(library.root, body.model, classifies=False)


def _recipe(name: str, steps: int | None, epochs: int | None, changes: Mapping[str, Any]) -> None:
    with at("settings"):
        recipe_with(RECIPES[name], changes, steps=steps, epochs=epochs)


def _teacher(name: str | None, library: Library) -> None:
    if name is not None:
        with at("teacher"):
            header_of(library.root, name)


CHECKS: Mapping[str, Callable[[Any, Library], None]] = {
    "profile": _profile,
    "saliency": _saliency,
    "compress": _compress,
    "prune": _prune,
    "finetune": _finetune,
    "sparsify": _sparsify,
    "study": _study,
    "export": _export,
}
