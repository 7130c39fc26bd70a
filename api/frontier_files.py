"""Frontiers on disk, so that a service that was started again answers without building them.

    folder/<fingerprint of what it was made for>.safetensors

A cache: whatever cannot be read is built again, whatever cannot be written is not kept, and of too many files those go
that were used longest ago.
"""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from latency.estimate import LatencyModel
from search.constraints import Constraints
from search.errors import FrontierError
from search.frontier import Frontier
from search.frontier_storage import VERSION, load_frontier, made_for, save_frontier
from search.saliency import Saliency
from vit.fingerprint import fingerprint

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class FrontierFiles:
    """
    Attributes:
        folder: need not exist; made with the first file.
        limit: files that are kept at most; 0 keeps none.
    """

    folder: Path
    limit: int

    def load(self, saliency: Saliency, latency: LatencyModel, constraints: Constraints) -> Frontier | None:
        """The frontier of these three, if a file holds it."""
        path = self._path(saliency, latency, constraints)
        if not path.is_file():
            return None
        try:
            frontier = load_frontier(path, saliency, latency, constraints)
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # read now, whatever the file system notes
        except FrontierError as error:
            logger.warning("building a frontier again: %s", error)
            return None
        except OSError:
            pass  # a folder that may only be read
        return frontier

    def save(self, frontier: Frontier) -> None:
        """Keep a frontier, if the folder may be written."""
        if not self.limit:
            return
        try:
            save_frontier(frontier, self._path(frontier.saliency, frontier.latency, frontier.constraints))
            self._forget()
        except OSError as error:
            logger.warning("a frontier is not kept in %s: %s", self.folder, error)

    def _path(self, saliency: Saliency, latency: LatencyModel, constraints: Constraints) -> Path:
        key = fingerprint([VERSION, made_for(saliency, latency, constraints)])
        return self.folder / f"{key[:32]}{SUFFIX}"

    def _forget(self) -> None:
        paths = [path for path in self.folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")]
        for path in sorted(paths, key=_used, reverse=True)[self.limit :]:
            path.unlink(missing_ok=True)


def _used(path: Path) -> float:
    try:
        return path.stat().st_atime
    except OSError:
        return 0.0  # another process was faster
