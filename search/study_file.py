"""A study, declared in a small YAML or JSON file.

    study: digits-shapes                 # its name; the same name goes on with it
    make: redistribute                   # what a trial makes: an architecture by a rule, or a compressed model
    target: macs                         # where latency is estimated
    objectives: [accuracy, latency_ms]
    constraints: {params: {at_most: 2000000}}
    trials: 200
    sampler: nsga2
    data: digits
    space:
      profile: [nvidia, poster]                       # one of these
      embed_dim: {from: 104, to: 256, step: 8}        # a number between
      mlp_dim.scale: {from: 0.5, to: 2, log: true}
    train: {steps: 200, lr: {from: 0.0003, to: 0.003, log: true}}

Everything is checked before anything runs; an error names the line and the key. What may be varied is in `SPACES` and
`TRAIN`, with its type and range. Nothing here needs a model, torch or Optuna.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from search.errors import StudyFileError
from search.profiles import SIZES

Value = str | int | float | bool

MAKES = ("redistribute", "compress")
SAMPLERS = ("nsga2", "tpe", "random")
PRUNERS = ("none", "halving", "hyperband", "median")
CRITERIA = ("gates", "fisher", "nvit", "taylor-abs", "magnitude", "random")

METRICS: Mapping[str, str] = {
    "accuracy": "maximize",
    "kept": "maximize",
    "latency_ms": "minimize",
    "measured_ms": "minimize",
    "params": "minimize",
    "macs": "minimize",
}
"""What a trial is judged by. `kept` is the share of saliency that compress keeps."""

MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Knob:
    """Something that can be varied, or fixed.

    Attributes:
        kind: of its values.
        low, high: for numbers.
        choices: for words, if only some are known.
    """

    kind: Literal["word", "int", "float", "bool"]
    low: float = 0.0
    high: float = math.inf
    choices: tuple[str, ...] = ()


_FACTORS = {
    f"{size}.{part}": Knob("float", 0.05, 20.0) for size in SIZES for part in ("scale", "first", "middle", "last")
}
"""Factors on a rule's multiplier, and on its ε in the first, the middle and the last third of the blocks."""

SPACES: Mapping[str, Mapping[str, Knob]] = {
    "redistribute": {
        "profile": Knob("word"),
        "embed_dim": Knob("int", 8, 4096),
        "budget_ms": Knob("float", 1e-9, 1e12),
        "depth": Knob("int", 6, 1024),
        **_FACTORS,
    },
    "compress": {
        "share": Knob("float", 0.001, 0.999),
        "budget_ms": Knob("float", 1e-9, 1e12),
        "criterion": Knob("word", choices=CRITERIA),
        "labels": Knob("word", choices=("model", "data")),
        "basis": Knob("bool"),
        "refit": Knob("bool"),
        "calibration": Knob("int", 1, 10**7),
        "ridge": Knob("float", 0.0, 1e3),
    },
}

TRAIN: Mapping[str, Knob] = {
    "steps": Knob("int", 1, 10**8),
    "batch_size": Knob("int", 1, 10**6),
    "lr": Knob("float", 1e-9, 10.0),
    "weight_decay": Knob("float", 0.0, 10.0),
    "warmup": Knob("int", 0, 10**7),
    "schedule": Knob("word", choices=("cosine", "cyclic", "constant")),
    "cycles": Knob("int", 1, 10**4),
    "layer_decay": Knob("float", 0.0, 1.0),
    "label_smoothing": Knob("float", 0.0, 0.999),
    "mixup": Knob("float", 0.0, 10.0),
    "cutmix": Knob("float", 0.0, 10.0),
    "drop_path": Knob("float", 0.0, 0.999),
    "ema": Knob("float", 0.0, 0.9999999),
    "clip_grad": Knob("float", 0.0, 1e6),
    "distillation": Knob("float", 0.0, 1.0),
    "temperature": Knob("float", 1e-3, 1e3),
}
"""Fields of a recipe (`recovery.recipes.Recipe`), by which a trial trains."""


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `low` to `high`, both included."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of several values."""

    values: tuple[Value, ...]


Choice = Range | OneOf


@dataclass(frozen=True, slots=True)
class Limit:
    """A constraint on one metric."""

    metric: str
    at_most: float | None = None
    at_least: float | None = None

    def excess(self, value: float) -> float:
        """By how much the limit is missed, in shares of it; 0 or less: it is met."""
        bound = self.at_most if self.at_most is not None else self.at_least
        assert bound is not None
        missed = value - bound if self.at_most is not None else bound - value
        return missed / (abs(bound) or 1.0)


@dataclass(frozen=True, slots=True)
class StudySpec:
    """
    Attributes:
        make: one of MAKES.
        model: what compress starts from; what redistribute takes image, classes and tokens from (the target's if none).
        varied, fixed: of `space`, by key; `train.<key>` for the recipe's.
        constraints: limits on metrics.
        trials: how many are to be finished, over all runs and workers.
        batch: of `measured_ms`.
    """

    name: str
    make: str
    target: str
    objectives: tuple[str, ...]
    varied: Mapping[str, Choice]
    fixed: Mapping[str, Value] = field(default_factory=dict)
    constraints: tuple[Limit, ...] = ()
    trials: int = 100
    sampler: str = "tpe"
    population: int = 50
    pruner: str = "none"
    seed: int = 0
    data: str | None = None
    model: str | None = None
    batch: int = 64
    trains: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that a trial has to find out."""
        return tuple(dict.fromkeys([*self.objectives, *(limit.metric for limit in self.constraints)]))

    @property
    def in_memory(self) -> bool:
        """Whether a trial is arithmetic alone: then trials are run in memory and stored many at a time."""
        return self.make == "redistribute" and not self.trains and "measured_ms" not in self.metrics

    def identity(self) -> dict[str, Any]:
        """What has to stay the same when a study is gone on with: all but how many trials."""
        return {
            "make": self.make,
            "target": self.target,
            "objectives": list(self.objectives),
            "varied": {name: _plain(choice) for name, choice in self.varied.items()},
            "fixed": dict(self.fixed),
            "constraints": [[one.metric, one.at_most, one.at_least] for one in self.constraints],
            "sampler": self.sampler,
            "population": self.population,
            "pruner": self.pruner,
            "seed": self.seed,
            "data": self.data,
            "model": self.model,
            "batch": self.batch,
            "trains": self.trains,
        }


def _plain(choice: Choice) -> Any:
    if isinstance(choice, OneOf):
        return list(choice.values)
    return {"from": choice.low, "to": choice.high, "step": choice.step, "log": choice.log}


def load_study(path: Path) -> StudySpec:
    """
    Raises:
        StudyFileError: no file, or one that cannot be run; `FILE:LINE: key: what is wrong`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StudyFileError(f"{path} is larger than {MAX_BYTES // 2**20} MiB; no study file is")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyFileError(f"no study file at {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise StudyFileError(f"{path} is not text in UTF-8") from None
    if path.suffix == ".json":
        text = text.replace("\t", " ")  # JSON allows tabs between its parts, YAML does not
    try:
        return parse_study(text)
    except StudyFileError as error:
        where = path.name if error.line is None else f"{path.name}:{error.line}"
        raise StudyFileError(f"{where}: {error}", error.line, error.key) from None


def parse_study(text: str) -> StudySpec:
    """
    Raises:
        StudyFileError: names the line and the key.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise StudyFileError(f"not YAML or JSON: {error.problem}", None if mark is None else mark.line + 1) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise StudyFileError(f"not YAML or JSON: {error!s:.200}") from None
    if node is None:
        raise StudyFileError("the file is empty; a study has study, make, target, objectives and space", 1)
    return _Reader(node).spec()


_TOP = (
    "study",
    "make",
    "model",
    "target",
    "objectives",
    "constraints",
    "trials",
    "sampler",
    "population",
    "pruner",
    "seed",
    "data",
    "batch",
    "space",
    "train",
)


class _Reader:
    """Reads the tree of a file, which knows the line of everything in it."""

    def __init__(self, node: yaml.Node) -> None:
        self.top = self.mapping(node, "", _TOP)

    def fail(self, node: yaml.Node, key: str, message: str) -> StudyFileError:
        return StudyFileError(f"{key}: {message}" if key else message, node.start_mark.line + 1, key or None)

    def mapping(self, node: yaml.Node, key: str, known: Sequence[str] | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """By key its own node and its value's."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, key, "must be a mapping of keys to values")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for name, value in node.value:
            text = str(name.value) if isinstance(name, yaml.ScalarNode) else "?"
            path = f"{key}.{text}" if key else text
            if known is not None and text not in known:
                raise self.fail(name, path, f"unknown key; known are {', '.join(known)}")
            if text in found:
                raise self.fail(name, path, f"given twice, first in line {found[text][0].start_mark.line + 1}")
            found[text] = (name, value)
        return found

    def scalar(self, node: yaml.Node, key: str) -> Value:
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, key, "must be a single value")
        value = yaml.SafeLoader("").construct_object(node)
        if isinstance(value, str) and node.style is None and (number := _number(value)) is not None:
            return number  # 1e-3, which YAML 1.1 takes for a word
        if not isinstance(value, str | int | float | bool):
            raise self.fail(node, key, f"must be a word, a number, true or false, got {node.value!r:.60}")
        return value

    def word(self, name: str, default: str | None = None, choices: Sequence[str] = ()) -> str | None:
        if name not in self.top:
            return default
        node = self.top[name][1]
        value = self.scalar(node, name)
        if not isinstance(value, str) or not value:
            raise self.fail(node, name, f"must be a word, got {value!r:.60}")
        if choices and value not in choices:
            raise self.fail(node, name, f"must be one of {', '.join(choices)}, got {value!r:.60}")
        return value

    def needed(self, name: str, choices: Sequence[str] = ()) -> str:
        value = self.word(name, None, choices)
        if value is None:
            raise StudyFileError(f"{name}: is missing; a study has study, make, target, objectives and space", 1, name)
        return value

    def count(self, name: str, default: int, least: int = 1) -> int:
        if name not in self.top:
            return default
        node = self.top[name][1]
        value = self.scalar(node, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 10**9:
            raise self.fail(node, name, f"must be a whole number from {least}, got {value!r:.60}")
        return value

    def spec(self) -> StudySpec:
        name, make = self.needed("study"), self.needed("make", MAKES)
        if len(name) > 200:
            raise self.fail(self.top["study"][1], "study", "is longer than 200 characters")
        varied, fixed = self.space("space", SPACES[make], "")
        trained = self.space("train", TRAIN, "train.") if "train" in self.top else ({}, {})
        varied, fixed = varied | trained[0], fixed | trained[1]
        if "train" in self.top and "train.steps" not in varied and "train.steps" not in fixed:
            raise self.fail(self.top["train"][0], "train", "needs steps")
        if not varied:
            where = self.top.get("space", (None, None))[0]
            raise StudyFileError(
                "space: nothing varies; give at least one list or range",
                None if where is None else where.start_mark.line + 1,
                "space",
            )
        spec = StudySpec(
            name,
            make,
            self.needed("target"),
            self.objectives(make),
            varied,
            fixed,
            self.limits(make),
            self.count("trials", 100),
            cast("str", self.word("sampler", "tpe", SAMPLERS)),
            self.count("population", 50, 2),
            cast("str", self.word("pruner", "none", PRUNERS)),
            self.count("seed", 0, 0),
            self.word("data"),
            self.word("model"),
            self.count("batch", 64),
            "train" in self.top,
        )
        self.check(spec)
        return spec

    def check(self, spec: StudySpec) -> None:
        """What goes together."""

        def fail(name: str, message: str) -> StudyFileError:
            node = self.top[name][0] if name in self.top else self.top["study"][0]
            return self.fail(node, name, message)

        where = "objectives" if "accuracy" in spec.objectives else "constraints"
        if "accuracy" in spec.metrics and spec.data is None:
            raise fail(where, "accuracy needs data; name them, as in `data: digits`")
        if "accuracy" in spec.metrics and spec.make == "redistribute" and not spec.trains:
            raise fail(where, "accuracy of a new shape needs training; give `train: {steps: ...}`")
        if spec.trains and spec.data is None:
            raise fail("train", "training needs data; name them, as in `data: digits`")
        if spec.trains and "accuracy" not in spec.metrics:
            raise fail("train", "nothing is judged by accuracy, so that training changes nothing; leave it out")
        if spec.make == "compress":
            if spec.model is None:
                raise fail("make", "compress needs a model; name a checkpoint, as in `model: dense.safetensors`")
            if spec.data is None:
                raise fail("make", "compress reads images; name data, as in `data: digits`")
        keys = {*spec.varied, *spec.fixed}
        sizes = {"embed_dim", "budget_ms"} if spec.make == "redistribute" else {"share", "budget_ms"}
        if len(keys & sizes) != 1:
            given = " and ".join(sorted(keys & sizes)) or "none"
            raise fail("space", f"give exactly one of {' and '.join(sorted(sizes))}, got {given}")
        if spec.pruner != "none":
            if len(spec.objectives) > 1:
                raise fail("pruner", "pruners stop trials by one objective; make the others constraints")
            if spec.objectives != ("accuracy",) or not spec.trains:
                raise fail("pruner", "pruners stop training that falls behind in accuracy; make that the objective")

    def objectives(self, make: str) -> tuple[str, ...]:
        if "objectives" not in self.top:
            raise StudyFileError("objectives: is missing; name one or several", 1, "objectives")
        _, node = self.top["objectives"]
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not nodes:
            raise self.fail(node, "objectives", f"is empty; name one or several of {', '.join(METRICS)}")
        found = []
        for index, one in enumerate(nodes):
            key = f"objectives[{index}]"
            self.metric(one, key, str(self.scalar(one, key)), make)
            if (metric := str(self.scalar(one, key))) in found:
                raise self.fail(one, key, f"{metric} is named twice")
            found.append(metric)
        return tuple(found)

    def metric(self, node: yaml.Node, key: str, metric: str, make: str) -> None:
        if metric not in METRICS:
            raise self.fail(node, key, f"must be one of {', '.join(METRICS)}, got {metric!r:.60}")
        if metric == "kept" and make != "compress":
            raise self.fail(node, key, "kept is the share of saliency that compress keeps")

    def limits(self, make: str) -> tuple[Limit, ...]:
        if "constraints" not in self.top:
            return ()
        found = []
        for metric, (name, node) in self.mapping(self.top["constraints"][1], "constraints", None).items():
            key = f"constraints.{metric}"
            self.metric(name, key, metric, make)
            bounds = self.mapping(node, key, ("at_most", "at_least"))
            if len(bounds) != 1:
                raise self.fail(name, key, "give at_most or at_least")
            ((which, (_, bound)),) = bounds.items()
            value = self.scalar(bound, f"{key}.{which}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise self.fail(bound, f"{key}.{which}", f"must be a number, got {value!r:.60}")
            found.append(Limit(metric, **{which: float(value)}))
        return tuple(found)

    def space(self, name: str, knobs: Mapping[str, Knob], prefix: str) -> tuple[dict[str, Choice], dict[str, Value]]:
        """What varies, and what is fixed."""
        if name not in self.top:
            raise StudyFileError(f"{name}: is missing", 1, name)
        varied: dict[str, Choice] = {}
        fixed: dict[str, Value] = {}
        for key, (_, node) in self.mapping(self.top[name][1], name, list(knobs)).items():
            path, knob = f"{name}.{key}", knobs[key]
            if isinstance(node, yaml.SequenceNode):
                values = tuple(self.value(one, f"{path}[{index}]", knob) for index, one in enumerate(node.value))
                if not values:
                    raise self.fail(node, path, "is an empty list; give the values to choose from")
                if len(set(values)) < len(values):
                    raise self.fail(node, path, "names a value twice")
                varied[prefix + key] = OneOf(values)
            elif isinstance(node, yaml.MappingNode):
                varied[prefix + key] = self.range(node, path, knob)
            else:
                fixed[prefix + key] = self.value(node, path, knob)
        return varied, fixed

    def range(self, node: yaml.Node, path: str, knob: Knob) -> Range:
        if knob.kind not in ("int", "float"):
            raise self.fail(node, path, "is no number; give a value, or a list to choose from")
        parts = self.mapping(node, path, ("from", "to", "step", "log"))
        for end in ("from", "to"):
            if end not in parts:
                raise self.fail(node, path, f"a range needs {end}")
        low, high = (self.value(parts[end][1], f"{path}.{end}", knob) for end in ("from", "to"))
        assert not isinstance(low, str)
        assert not isinstance(high, str)
        if not low < high:
            raise self.fail(node, path, f"is an empty range: from {low:g} to {high:g}")
        step, log = None, False
        if "log" in parts:
            flag = self.scalar(parts["log"][1], f"{path}.log")
            if not isinstance(flag, bool):
                raise self.fail(parts["log"][1], f"{path}.log", "must be true or false")
            log = flag
        if "step" in parts:
            given = self.scalar(parts["step"][1], f"{path}.step")
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= high - low:
                raise self.fail(
                    parts["step"][1], f"{path}.step", f"must be above 0 and fit the range, got {given!r:.60}"
                )
            if knob.kind == "int" and not isinstance(given, int):
                raise self.fail(parts["step"][1], f"{path}.step", f"must be a whole number, got {given!r:.60}")
            step = given
        if log and step is not None:
            raise self.fail(node, path, "a logarithmic range has no step; leave one of them out")
        if log and low <= 0:
            raise self.fail(node, path, f"a logarithmic range starts above 0, got {low:g}")
        return Range(float(low), float(high), step, log, knob.kind == "int")

    def value(self, node: yaml.Node, path: str, knob: Knob) -> Value:
        value = self.scalar(node, path)
        match knob.kind:
            case "bool" if isinstance(value, bool):
                return value
            case "word" if isinstance(value, str) and (not knob.choices or value in knob.choices):
                return value
            case "word":
                known = f"one of {', '.join(knob.choices)}" if knob.choices else "a word"
                raise self.fail(node, path, f"must be {known}, got {value!r:.60}")
            case "bool":
                raise self.fail(node, path, f"must be true or false, got {value!r:.60}")
        whole = knob.kind == "int"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise self.fail(node, path, f"must be a {'whole ' if whole else ''}number, got {value!r:.60}")
        if not knob.low <= value <= knob.high:
            raise self.fail(node, path, f"must be from {knob.low:g} to {knob.high:g}, got {value:g}")
        return value if whole else float(value)


def _number(text: str) -> float | None:
    try:
        return float(text) if "e" in text.lower() and text[:1] in "+-.0123456789" else None
    except ValueError:
        return None
