"""The kinds of jobs, known without torch: their steps, who does them, and how long they may take.

A step leaves files and a JSON document, and is not done again once it is done. The functions are in the module that a
kind names; only the process that does steps (`api.runner`) loads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Kind:
    """
    Attributes:
        steps: in their order.
        module: has `STEPS`, a function for each.
        timeout: seconds of work after which a job is given up.
        alone: it measures: nothing else runs on its device meanwhile.
    """

    steps: tuple[str, ...]
    module: str
    timeout: float
    alone: bool = False

    def load(self, step: str) -> Any:
        return import_module(self.module).STEPS[step]


KINDS: Mapping[str, Kind] = {
    "profile": Kind(("measure",), "api.job_steps_measure", 7 * DAY, alone=True),
    "saliency": Kind(("score",), "api.job_steps_models", 12 * HOUR),
    "compress": Kind(("basis", "saliency", "refit", "report"), "api.compress_steps", DAY),
    "prune": Kind(("rounds", "finish"), "api.job_steps_models", 14 * DAY),
    "finetune": Kind(("train",), "api.job_steps_models", 14 * DAY),
    "sparsify": Kind(("phases", "targets"), "api.job_steps_models", 14 * DAY),
    "study": Kind(("trials",), "api.job_steps_study", 14 * DAY),
    "export": Kind(("export",), "api.job_steps_models", 2 * HOUR),
}


def queue_of(document: Mapping[str, Any]) -> str:
    """The queue that a request asks for: the one of its device where it names none."""
    return str(document.get("queue") or document.get("device") or "cpu")
