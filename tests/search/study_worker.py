"""A worker of a study in a process of its own, for tests that kill it.

    $ python study_worker.py URL FILE [HANG_AT MARK]

Trials take a moment and train nothing. The HANG_AT-th one writes its learning rate to MARK and never ends.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from search.study import Made, Report, run_study
from search.study_file import Value, load_study
from search.study_storage import close_storage, open_storage
from vit.presets import preset

SECONDS = 0.03


class Quick:
    """Accuracy by a formula, so that equal values have equal accuracy whoever runs them."""

    def __init__(self, hang_at: int = 0, mark: Path | None = None) -> None:
        self.count, self.hang_at, self.mark = 0, hang_at, mark

    def make(self, values: Mapping[str, Value]) -> Made:
        width = float(values["embed_dim"])
        return Made(preset("deit-t"), {"latency_ms": width, "params": 2 * width, "macs": 3 * width})

    def finish(self, values: Mapping[str, Value], made: Made, report: Report) -> Mapping[str, float]:
        self.count += 1
        if self.count == self.hang_at and self.mark is not None:
            self.mark.write_text(repr(values["train.lr"]), encoding="utf-8")
            time.sleep(600)
        for step in range(1, 4):
            time.sleep(SECONDS / 3)
            report(step, accuracy_of(values) * step / 3)
        return {"accuracy": accuracy_of(values)}


def accuracy_of(values: Mapping[str, Value]) -> float:
    return float(values["embed_dim"]) / 1000 + float(values["train.lr"])


def main() -> None:
    url, path, *rest = sys.argv[1:]
    evaluator = Quick(int(rest[0]), Path(rest[1])) if rest else Quick()
    storage = open_storage(url, heartbeat_s=1, grace_s=2)
    for ended in run_study(load_study(Path(path)), storage, evaluator, poll_s=0.2):
        print(ended.state, ended.done, flush=True)
    close_storage(storage)


if __name__ == "__main__":
    main()
