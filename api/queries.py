"""What can be asked without torch: architectures by name, tables, estimates, searches, ReViT.

An ARCH is a preset (`deit-s`), a JSON file, a checkpoint, or a timm name (the last one alone loads torch and timm).
A target is a slug of the library, of a modelled device, the path of a table file, or `macs`.
"""

from collections.abc import Sequence
from pathlib import Path

from api.library import Library
from latency.errors import TableError
from latency.estimate import LatencyModel
from latency.storage import load_table
from search.constraints import Constraints
from search.errors import BudgetError, SaliencyError
from search.frontier import Choice
from search.saliency import Saliency, load_saliency
from vit.architecture import Architecture
from vit.errors import CheckpointError, UnknownNameError
from vit.presets import PRESETS, preset

MAX_JSON_BYTES = 4 * 2**20

REVIT_TEMPLATE = "deit-b-distilled"
"""ReViT was trained as the distilled DeiT is."""


def resolve_architecture(name: str) -> Architecture:
    """
    Raises:
        UnknownNameError: neither a preset, a file nor a timm model.
        ArchitectureError, CheckpointError: a file that describes no model.
    """
    if name in PRESETS:
        return preset(name)
    path = Path(name)
    if path.suffix == ".json":
        if not path.is_file():
            raise UnknownNameError("architecture file", name, ())
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES // 2**20} MiB; no architecture is")
        return Architecture.from_json(path.read_text(encoding="utf-8"))
    if path.suffix == ".safetensors":
        from vit.checkpoint_header import read_header

        return read_header(path).arch
    if "/" in name or path.suffix in (".pt", ".pth", ".parquet"):
        raise UnknownNameError("architecture", name, (*PRESETS, "a .json file", "a .safetensors checkpoint"))
    from vit.timm_models import architecture

    try:
        return architecture(name)
    except UnknownNameError:
        raise UnknownNameError(
            "architecture", name, (*PRESETS, "a timm name", "a .json file", "a .safetensors checkpoint")
        ) from None


def resolve_target(name: str, arch: Architecture, library: Library) -> LatencyModel:
    """The latency model of a target.

    Raises:
        UnknownNameError, TableError: no such table, or one that cannot be trusted.
    """
    if name.endswith(".parquet"):
        return load_table(Path(name))
    if "/" in name:
        raise TableError(f"{name} is no table; tables are .parquet files")
    return library.latency_model(name, arch)


def resolve_saliency(name: str, library: Library) -> Saliency:
    if name.endswith(".safetensors"):
        return load_saliency(Path(name))
    return library.saliency(name)


def budget_of(full_ms: float, budget_ms: float | None, speedup: float | None) -> float:
    """A budget in ms from exactly one of the two ways to give it.

    Raises:
        BudgetError: none or both, or a speed-up that is none.
    """
    if (budget_ms is None) == (speedup is None):
        raise BudgetError("give exactly one of budget_ms and speedup")
    if budget_ms is not None:
        return budget_ms
    assert speedup is not None
    if not speedup > 1:
        raise BudgetError(f"a speedup is a number above 1, got {speedup}")
    return full_ms / speedup


def budgets_of(targets: Sequence[str]) -> list[tuple[str, float]] | None:
    """(target, budget in ms) of every SLUG=MS; None for a single target without a budget of its own.

    Raises:
        BudgetError: one of several has no budget.
    """
    found = []
    for text in targets:
        name, _, budget_ms = text.rpartition("=")
        try:
            found.append((name, float(budget_ms)))
        except ValueError:
            if len(targets) == 1:
                return None
            raise BudgetError(f"each of several targets takes its budget, SLUG=MS; {text} has none") from None
    return found


def search(
    saliency: Saliency,
    latency: LatencyModel,
    library: Library,
    *,
    budget_ms: float | None = None,
    speedup: float | None = None,
    constraints: Constraints | None = None,
) -> Choice:
    """The best architecture for a budget, from the library's frontier where it has one.

    Raises:
        BudgetError: outside what the table and the model allow.
        ConstraintError: constraints that the model cannot meet.
        SaliencyError: saliency without any signal.
    """
    check_signal(saliency)
    frontier = library.frontier_of(saliency, latency, constraints or Constraints())
    return frontier.best(budget_of(frontier.full_ms, budget_ms, speedup))


def check_signal(saliency: Saliency) -> None:
    """
    Raises:
        SaliencyError: there is nothing to rank.
    """
    if saliency.total == 0:
        raise SaliencyError("the saliency is zero everywhere; nothing can be ranked")


def template_of(latency: LatencyModel) -> Architecture:
    """DeiT with the image, classes and number of tokens that a target was made for."""
    arch, outside = preset(REVIT_TEMPLATE), latency.outside
    arch = arch.replace(
        image_size=outside.image_size,
        patch_size=outside.patch_size,
        in_chans=outside.in_chans,
        num_classes=outside.num_classes,
        norm=latency.norm,
    )
    prefix = latency.target.tokens - arch.patches
    if prefix <= 0:
        return arch.replace(class_token=False, dist_token=False, pool="avg")
    return arch.replace(dist_token=prefix == 2, reg_tokens=prefix - 1 if prefix > 2 else 0)
