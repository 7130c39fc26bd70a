"""What training reported, kept beside what it made, so that a run can be looked at afterwards.

    training.jsonl    a line a report: {"step": 40, "steps": 200, "loss": 0.31, "lr": 0.0004, "accuracy": null, ...}
    run.jsonl         the journal of a run in rounds or phases, as the run itself wrote it

A step that is killed goes on from its last saved state: reports from there on replace those that were written before.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recovery.training import TrainReport

CURVE, JOURNAL = "training.jsonl", "run.jsonl"


class Curve:
    """Reports of one training, in the order of their steps."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CURVE
        self._lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self._resumed = False

    def add(self, report: "TrainReport") -> None:
        if not self._resumed:
            self._drop_from(report.step)
            self._resumed = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")

    def _drop_from(self, step: int) -> None:
        kept = []
        for line in self._lines:
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line)
            except ValueError:
                break  # torn by the kill
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
