"""Errors reach other processes, as those of a pool, with message and attributes."""

import copy
import importlib
import inspect
import pickle
import re
from pathlib import Path

import pytest

from api.problems import INTERNAL, Problem
from vit.errors import VitfitError

ROOT = Path(__file__).parents[2]

for package in ("vit", "latency", "search", "sparsity", "recovery", "lut_data", "api"):
    for path in sorted((ROOT / package).rglob("*.py")):
        if re.search(r"^class \w+Error\(", path.read_text(), re.MULTILINE):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def every(kind=VitfitError):
    yield kind
    for child in kind.__subclasses__():
        yield from every(child)


def made(kind):
    """Of whatever the constructor takes: text, and names where several are wanted."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return kind("what was given")
    others = {"known": ("a", "b"), "problem": Problem.model_validate(INTERNAL.document("it broke", "/v1/jobs"))}
    return kind(**{p.name: others.get(p.name, f"some {p.name}") for p in parameters})


@pytest.mark.parametrize(
    "kind", sorted(set(every()), key=lambda kind: kind.__qualname__), ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("way", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_every_error_survives_with_message_and_attributes(kind, way):
    error = made(kind)
    error.add_note("seen on the way")
    again = way(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
