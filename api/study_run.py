"""What a study's trials do: the composition of search's studies with recovery's training, hence here.

A trial is judged on training images that are held out of it (a fifth), never on test images: who picks the best of
hundreds of trials by test accuracy reports luck.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from api.library import Library
from api.profile_files import own_profiles
from api.queries import REVIT_TEMPLATE, resolve_architecture, resolve_target, template_of
from latency.estimate import LatencyModel, check_tokens, estimate
from search.errors import BudgetError
from search.profiles import SIZES, Profile, SizeRule, profile_named
from search.redistribute import redistribute, revit
from search.study import Evaluator, Made, Report
from search.study_file import StudySpec, Value
from vit.architecture import Architecture
from vit.cost import macs, params
from vit.presets import preset

if TYPE_CHECKING:
    from api.compress import Based
    from recovery.data import Dataset
    from search.saliency import Saliency
    from vit.checkpoint import Checkpoint
    from vit.model import VisionTransformer

HELD_OUT = 0.2
"""Share of the training images that trials are judged by."""

LOOKS = 6
"""How often training is looked at, where a pruner may stop it."""


def evaluator_of(spec: StudySpec, library: Library, profiles: Mapping[str, Profile] | None = None) -> Evaluator:
    """
    Raises:
        UnknownNameError, CheckpointError, DataError: names in the study that are not there.
    """
    known = own_profiles(library.root) if profiles is None else profiles
    return Redistribution(spec, library, known) if spec.make == "redistribute" else Compression(spec, library)


# --- shapes by a rule --------------------------------------------------------------------------------------------


def changed(profile: Profile, values: Mapping[str, Value], depth: int) -> Profile:
    """A profile with factors on its multipliers (`mlp_dim.scale`), and on ε by thirds (`mlp_dim.first`, ...)."""
    rules: dict[str, SizeRule] = {}
    for size in SIZES:
        rule = profile.rule(size)
        scale = float(values.get(f"{size}.scale", 1.0))
        factors = [float(values.get(f"{size}.{part}", 1.0)) for part in ("first", "middle", "last")]
        if scale != 1.0:
            rule = replace(rule, scale=rule.scale * scale)
        if factors != [1.0] * 3:
            eps = _of_depth(rule, depth, profile.stretch)
            thirds = [0] * (depth // 3) + [1] * (depth - 2 * (depth // 3)) + [2] * (depth // 3)
            rule = replace(
                rule,
                eps=tuple(one * factors[third] for one, third in zip(eps, thirds, strict=True)),
                edge=None,
                edge_eps=None,
            )
        rules[size] = rule
    others = {size: rule for size, rule in rules.items() if len(rule.eps) not in (1, depth)}
    if others:  # ε of all sizes must be of one depth
        rules |= {
            size: replace(rule, eps=_of_depth(rule, depth, profile.stretch), edge_eps=None)
            for size, rule in others.items()
        }
    return replace(profile, **rules)  # type: ignore[arg-type]


def _of_depth(rule: SizeRule, depth: int, stretch: str) -> tuple[float, ...]:
    from search.profiles import STRETCH

    eps = rule.eps * depth if len(rule.eps) == 1 else rule.eps
    eps = eps if len(eps) == depth else STRETCH[stretch](eps, depth)
    return eps if rule.edge_eps is None else (rule.edge_eps, *eps[1:-1], rule.edge_eps)


class Redistribution:
    """Trials that make an architecture by a rule, and train it from scratch where accuracy counts."""

    def __init__(self, spec: StudySpec, library: Library, profiles: Mapping[str, Profile]) -> None:
        self.spec, self.library, self.profiles = spec, library, profiles
        if spec.model is not None:
            self.template = resolve_architecture(spec.model)
            self.latency = resolve_target(spec.target, self.template, library)
        else:
            self.latency = resolve_target(spec.target, preset(REVIT_TEMPLATE), library)
            self.template = template_of(self.latency)
        if spec.trains and spec.model is None and self.latency.target.is_analytic:
            data = self.data  # on MACs any image will do: the data's, in four by four patches
            patch = tuple(max(1, side // 4) for side in data.image_size)
            size = {"image_size": data.image_size, "in_chans": data.in_chans, "num_classes": data.num_classes}
            self.template = self.template.replace(**size, patch_size=patch)
            self.latency = resolve_target(spec.target, self.template, library)
        if spec.trains:
            self.data.check(self.template)
        check_tokens(self.latency, self.template)

    @cached_property
    def data(self) -> "Dataset":
        return _split(
            cast("str", self.spec.data), self.template if self.spec.model is not None else None, self.spec.seed
        )

    def make(self, values: Mapping[str, Value]) -> Made:
        depth = int(values.get("depth", self.template.depth))
        profile = changed(profile_named(str(values.get("profile", "nvidia")), self.profiles), values, depth)
        if "budget_ms" in values:
            arch = redistribute(self.latency, float(values["budget_ms"]), self.template, depth, profile)
        else:
            arch = revit(int(values["embed_dim"]), self.template, depth, profile)
        return Made(arch, _costs(self.latency, arch))

    def finish(self, values: Mapping[str, Value], made: Made, report: Report) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        if "measured_ms" in self.spec.metrics:
            metrics["measured_ms"] = measured_ms(made.arch, self.spec.batch)
        if self.spec.trains:
            metrics["accuracy"] = trained(fresh(made.arch, self.spec.seed), self.data, values, self.spec, report)
        return metrics


# --- compressed models -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Handle:
    based: "Based"
    saliency: "Saliency"
    choice: Any
    given: Any


class Compression:
    """Trials that compress one model, by other criteria, bases and images each time, and may train what is left."""

    def __init__(self, spec: StudySpec, library: Library) -> None:
        from api.workflow import load_model

        self.spec, self.library = spec, library
        self.checkpoint: Checkpoint = load_model(_model_path(cast("str", spec.model), library))
        self.data = _split(cast("str", spec.data), self.checkpoint.arch, spec.seed)
        self.data.check(self.checkpoint.arch)
        self.dense = self.checkpoint.model()
        self.latency = resolve_target(spec.target, self.checkpoint.arch, library)
        self.full_ms = estimate(self.latency, self.checkpoint.arch).latency_ms
        self._latest: dict[str, tuple[object, Any]] = {}

    def _kept(self, what: str, key: object, make: Any) -> Any:
        """The last value of a kind, or a new one: equal images, basis or criterion are not gone through twice."""
        if what not in self._latest or self._latest[what][0] != key:
            self._latest[what] = (key, make())
        return self._latest[what][1]

    def make(self, values: Mapping[str, Value]) -> Made:
        from api.compress import Based, in_its_basis, score
        from api.compress_job import calibration_of
        from search.frontier import Frontier

        images, labels = int(values.get("calibration", 256)), str(values.get("labels", "model"))
        basis, criterion = bool(values.get("basis", True)), str(values.get("criterion", "gates"))
        given = calibration_of(self.data, images, 64, self.spec.seed, labels)
        key: tuple[object, ...] = (images, labels, basis)
        based: Based = self._kept(
            "basis", key, lambda: in_its_basis(self.dense, given) if basis else Based(self.dense, False, None)
        )
        saliency: Saliency = self._kept("saliency", (*key, criterion), lambda: score(based.model, given, criterion))
        frontier: Frontier = self._kept("frontier", (*key, criterion), lambda: Frontier(saliency, self.latency))
        budget = float(values["budget_ms"]) if "budget_ms" in values else float(values["share"]) * self.full_ms
        choice = frontier.best(budget)
        metrics = {**_costs(self.latency, choice.arch), "kept": choice.kept}
        return Made(choice.arch, metrics, _Handle(based, saliency, choice, given))

    def finish(self, values: Mapping[str, Value], made: Made, report: Report) -> Mapping[str, float]:
        from recovery.loop import accuracy

        small = self._small(values, cast("_Handle", made.handle))
        metrics: dict[str, float] = {}
        if "measured_ms" in self.spec.metrics:
            metrics["measured_ms"] = measured_ms(small.arch, self.spec.batch)
        if self.spec.trains:
            metrics["accuracy"] = trained(small, self.data, values, self.spec, report, self.dense)
        elif "accuracy" in self.spec.metrics:
            metrics["accuracy"] = accuracy(small, self.data.test)
        return metrics

    def _small(self, values: Mapping[str, Value], made: _Handle) -> "VisionTransformer":
        from api.compress import fit
        from recovery.refit import RIDGE
        from vit.basis import with_layer_norm
        from vit.groups import EMBED
        from vit.surgery import shrink

        if bool(values.get("refit", True)):
            ridge = float(values.get("ridge", RIDGE))
            return fit(made.based, made.saliency, made.choice, made.given, ridge=ridge).model
        sizes = made.choice.sizes()
        if not made.based.layer_norm:
            return shrink(made.based.model, made.saliency.keep(sizes))
        if sizes[EMBED] < 2:
            raise BudgetError("LayerNorm over one channel leaves nothing; ask for an embed_dim of at least 2")
        sizes[EMBED] -= 1  # as in `api.compress.fit`
        return with_layer_norm(shrink(made.based.model, made.saliency.keep(sizes)))


def _model_path(name: str, library: Library) -> str:
    """A file, or the name of a checkpoint in the library."""
    path = Path(name)
    if path.suffix == ".safetensors" and not path.exists() and (found := library.root / "models" / name).exists():
        return str(found)
    return name


# --- what both need ----------------------------------------------------------------------------------------------


def _costs(latency: LatencyModel, arch: Architecture) -> dict[str, float]:
    found = estimate(latency, arch)
    return {"latency_ms": found.latency_ms, "params": float(params(arch)), "macs": float(macs(arch))}


def _split(name: str, arch: Architecture | None, seed: int) -> "Dataset":
    """Training images in two: to train with, and in the place of the test images to judge by."""
    from recovery.data import load_dataset

    held = load_dataset(name, arch).hold_out(HELD_OUT, seed)
    assert held.validation is not None
    return replace(held, test=held.validation, validation=None)


def fresh(arch: Architecture, seed: int) -> "VisionTransformer":
    """PyTorch's own initialisation: wider than DeiT's, learns few images in fewer steps."""
    import torch
    from torch import nn

    from vit.model import VisionTransformer

    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = VisionTransformer(arch)
        if model.pos_embed is not None:
            nn.init.normal_(model.pos_embed, std=0.02)
    finally:
        torch.random.set_rng_state(state)
    return model


def trained(
    model: "VisionTransformer",
    data: "Dataset",
    values: Mapping[str, Value],
    spec: StudySpec,
    report: Report,
    teacher: "VisionTransformer | None" = None,
) -> float:
    """Accuracy on the images held out, after training by the trial's recipe.

    Raises:
        TrainingError: the recipe cannot be, or training does not come to an end.
        PrunedError: as `report` did.
    """
    from recovery.loop import Recipe, accuracy, finetune

    given: dict[str, Any] = {name.removeprefix("train."): v for name, v in values.items() if name.startswith("train.")}
    steps = int(given.pop("steps"))
    if teacher is None:
        given["distillation"] = 0.0
    every = max(1, steps // LOOKS) if spec.pruner != "none" else steps
    given.setdefault("warmup", min(10, steps // 10))
    recipe = Recipe(steps=steps, seed=spec.seed, report_every=every, **given)
    for index, step in enumerate(finetune(model, data, recipe, teacher), start=1):
        if spec.pruner != "none" and step.step < steps:
            report(index, accuracy(model, data.test))
    return accuracy(model, data.test)


def measured_ms(arch: Architecture, batch: int) -> float:
    """Median latency of a batch, on one thread of this machine."""
    from api.profiling import measure
    from latency.runtimes import find_device, local_target

    device = find_device()
    (found,) = measure([arch], device, local_target(device, "eager", "fp32", batch, arch.tokens), rounds=5)
    return found.latency_ms
